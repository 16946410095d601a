"""Workers wait on a core each, and run wherever they may."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.fine.board import Board, board_file
from neuroscale_couple.fine.jobs import NONE, Again, Done, Job, Spec, packed_task, unpacked_done
from neuroscale_couple.fine.pool import Process
from neuroscale_couple.fine.seats import NOWHERE, cores, own_core, seated, seats

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not place processes")
MICRO = """
import os
class MicroSimulation:
    def __init__(self, sim_id): pass
    def solve(self, data, dt): return {"y": float(len(os.sched_getaffinity(0)))}
"""


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6, 7})
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("workers", "place", "expected"),
    [
        (4, None, [3, 5, 6, 7]),
        (6, None, [3, 5, 6, 7, 3, 5]),
        (3, None, [NOWHERE] * 3),  # a core stays free
        (2, "0", [3, 5]),
        (2, "1", [6, 7]),  # of two ranks
        (1, "1", [NOWHERE]),
    ],
)
def test_workers_that_fill_all_cores_have_a_seat_each(
    workers: int, place: str | None, expected: list[int], four_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place is not None:
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", place)
    assert cores() == (4 if place is None else 2)
    assert seats(workers) == expected


def test_a_wait_is_on_the_seat_and_work_anywhere() -> None:
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    with seated(core):
        assert os.sched_getaffinity(0) == {core}
        assert own_core()() in (core, NOWHERE)
    assert os.sched_getaffinity(0) == allowed
    for elsewhere in (NOWHERE, 10**6):
        with seated(elsewhere):
            assert os.sched_getaffinity(0) == allowed


def test_a_worker_sleeps_on_its_seat_and_its_simulations_may_use_all_cores(tmp_path: Path) -> None:
    (tmp_path / "micro_seated.py").write_text(MICRO)
    spec = Spec("micro_seated", (str(tmp_path),), (("x", 0),), (("y", 0),), points=1)
    seat = min(os.sched_getaffinity(0))
    with board_file(1, 1, 2) as memory:
        process = Process(spec, memory.fileno(), 0, [seat])
        process.facts()
        status = Path(f"/proc/{process._process.pid}/status")
        deadline = time.monotonic() + 30
        while waits_on(status) != str(seat) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert waits_on(status) == str(seat)

        first = Job(np.array([0]), 0.1, np.array([0]), np.array([0]), np.zeros((1, 1)), NONE, NONE)
        for task in (first, Again(0.1)):
            process.link.send_bytes(packed_task(task))
            assert unpacked_done(process.link.recv_bytes()) == Done({})
        board = Board(memory.fileno(), 1, 1, 1, 1)
        process.close()
    assert board.outputs[0, 0] == len(os.sched_getaffinity(0))


def waits_on(status: Path) -> str:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("Cpus_allowed_list"))
    return line.split()[1]
