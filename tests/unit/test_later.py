"""What can wait is done while the run waits, in order, and nothing of it is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.later import Later, later
from neuroscale_couple.ledger import Counts, Ledger, read_table
from neuroscale_couple.values import Audit, Reply


def test_nothing_waits_where_nobody_says_that_the_run_waits() -> None:
    done: list[int] = []
    Later().put(lambda: done.append(1))
    assert done == [1]


def test_what_was_put_is_done_in_a_thread_once_the_run_waits() -> None:
    work, done = Later(), list[tuple[int, bool]]()

    def note(number: int) -> None:
        done.append((number, threading.current_thread() is threading.main_thread()))

    work.go()
    for number in range(3):
        work.put(lambda number=number: note(number))
    assert done == []
    work.go()
    work.put(lambda: note(3))  # the run has ended before it waits again
    work.close()
    assert done == [(0, False), (1, False), (2, False), (3, True)]
    work.put(lambda: note(4))
    assert done[-1] == (4, True)


def test_what_goes_wrong_is_raised_in_the_run() -> None:
    work = Later()
    work.go()
    work.put(lambda: (_ for _ in ()).throw(ValueError("no")))
    work.go()
    with pytest.raises(ValueError, match="no"):
        work.settle()
    work.settle()
    work.close()


@pytest.mark.parametrize(("sync", "total", "rows"), [(False, 0.01, 0), (False, 0.5, 1), (True, 0.01, 1)])
def test_only_brief_windows_without_checkpoints_are_written_later(
    tmp_path: Path, sync: bool, total: float, rows: int
) -> None:
    none, codes = np.zeros(0), np.zeros(2, dtype=np.uint8)
    reply = Reply(np.zeros((2, 1)), np.zeros((2, 1, 0)), codes, codes, np.zeros(2))
    audit = Audit(np.zeros(0, dtype=np.int64), codes[:0], none, none, none)
    ledger = Ledger(tmp_path, sync=sync)
    later.go()
    try:
        for window, took in enumerate((total, 0.01, 0.5)):
            ledger.add(
                window=window, time=0.1, iterations=1, points=2, counts=Counts(), audit=audit, reply=reply,
                seconds={"total": took}, model_version=0,
            )  # fmt: skip
            if window == 0:
                assert len(read_table(tmp_path / "ledger.csv").get("window", [])) == rows
    finally:
        later.close()
    assert read_table(tmp_path / "ledger.csv")["window"] == [0, 1, 2]
    ledger.close()
