"""The ledger: whole rows on the disk after every window, and nothing of windows that did not happen."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.evaluation.fields import PointFields, read_points, windows_of
from neuroscale_couple.ledger import COLUMNS, Ledger, Table, read_table, window_line
from neuroscale_couple.ledger import Counts as RealCounts
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.timers import Timers
from neuroscale_couple.values import F64, Audit, FieldSpec, Layout, Points, Reply

LAYOUT = Layout((FieldSpec("flux", ("x", "y"), "W/m2"),))


class Counts:
    """One rank's counts of a window."""

    def __init__(self, fine: int = 2) -> None:
        self.source = np.array([10, 3, fine])
        self.reason = np.zeros(len(Reason), dtype=np.int64)
        self.reason[Reason.UNCERTAIN] = fine
        self.fine_solves, self.fine_iterations = fine + 2, 7
        self.asked, self.seconds = np.array([12, 5, 2]), np.array([0.25, 0.5, 2.0])


def reply(n: int = 5) -> Reply:
    source = np.array([Source.FINE] + [Source.SURROGATE_COARSE] * (n - 1), dtype=np.uint8)
    return Reply(np.arange(2.0 * n).reshape(n, 2), np.zeros((n, 2, 2)), source, source * 0, np.full(n, 0.01))


def add(ledger: Ledger, window: int, error: tuple[float, ...] = (0.01, 0.03), inputs: F64 | None = None) -> None:
    m = len(error)
    zero, true = np.zeros(m), np.array(error)
    source = np.zeros(m, dtype=np.uint8)
    if m:
        ledger.add_audits(window, np.arange(m), source, zero + 0.02, true, np.ones((m, 2)), np.full((m, 2), 2.0))
    ledger.add(
        window=window, time=0.5 * (window + 1), iterations=3, points=5, counts=Counts(), reply=reply(),
        audit=Audit(np.arange(m), source, zero, zero, true), seconds={"fine": 0.5, "total": 1.0}, model_version=4,
        inputs=inputs,
    )  # fmt: skip


def test_row_holds_what_happened(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, None, 0.02, LAYOUT.columns)
    add(ledger, 0)
    ledger.close()
    table = read_table(tmp_path / "ledger.csv")
    assert tuple(table) == COLUMNS
    row = {name: values[0] for name, values in table.items()}
    assert (row["answered_surrogate_coarse"], row["answered_fine"], row["refused_uncertain"]) == (10, 2, 2)
    assert (row["audits"], row["audit_p50"], row["audit_max"], row["audit_above"]) == (2, 0.02, 0.03, 0.5)
    assert (row["fine_solves"], row["seconds_fine"], row["model_version"]) == (4, 0.5, 4)
    assert (row["asked_surrogate_coarse"], row["asked_surrogate_fine"], row["rank_seconds_fine"]) == (12, 5, 2)
    audits = read_table(tmp_path / "audits.csv")
    assert audits["source"] == ["surrogate_coarse"] * 2
    assert audits["error"] == [0.01, 0.03]
    assert (audits["predicted.flux.x"], audits["fine.flux.y"]) == ([1, 1], [2, 2])


def test_the_range_of_each_input_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, TwoRanks(), inputs=("x", "y"))
    add(ledger, 0, inputs=np.array([[1.0, -2.0], [3.0, 5.0]]))
    add(ledger, 1, inputs=np.zeros((0, 2)))
    add(ledger, 2)
    table = read_table(tmp_path / "ledger.csv")
    assert {name: table[name] for name in ("lowest_x", "lowest_y", "highest_x", "highest_y")} == {
        "lowest_x": [1.0, "", ""], "lowest_y": [-2.0, "", ""],
        "highest_x": [3.0, "", ""], "highest_y": [5.0, "", ""],
    }  # fmt: skip


def test_window_without_audits_leaves_the_cells_empty(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, 0, ())
    row = read_table(tmp_path / "ledger.csv")
    assert (row["audits"], row["audit_p95"]) == ([0], [""])
    assert not (tmp_path / "audits.csv").exists()


def test_fresh_run_forgets_an_earlier_one(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    add(first, 0)
    add(first, 1)
    second = Ledger(tmp_path)
    add(second, 0, ())
    assert read_table(tmp_path / "ledger.csv")["window"] == [0]
    assert not (tmp_path / "audits.csv").exists()


def test_resume_keeps_committed_windows_and_drops_torn_rows(tmp_path: Path) -> None:
    fields = PointFields(tmp_path / "fields", None, Points(np.arange(5), np.zeros((5, 2)), np.ones(5)), LAYOUT)
    first = Ledger(tmp_path, fields=fields)
    for window in range(3):
        add(first, window)
    first.close()
    with (tmp_path / "ledger.csv").open("a") as stream:
        stream.write("3,0.1,2")  # killed while writing
    again = PointFields(tmp_path / "fields", None, Points(np.arange(5), np.zeros((5, 2)), np.ones(5)), LAYOUT)
    second = Ledger(tmp_path, fields=again)
    second.truncate(2)
    assert read_table(tmp_path / "ledger.csv")["window"] == [0, 1]
    add(second, 2)
    second.close()
    assert read_table(tmp_path / "ledger.csv")["window"] == [0, 1, 2]
    assert read_table(tmp_path / "audits.csv")["window"] == [0, 0, 1, 1, 2, 2]
    assert [(w, t) for w, t, _ in windows_of(tmp_path / "fields", "points")] == [(0, 0.5), (1, 1.0), (2, 1.5)]


def test_resume_survives_tables_and_fields_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = Points(np.arange(5), np.zeros((5, 2)), np.ones(5))
    first = Ledger(tmp_path, fields=PointFields(tmp_path / "fields", None, points, LAYOUT))
    add(first, 0)
    (tmp_path / "ledger.csv").write_bytes(b"\x00\xff\n\xfe,3\n")
    (tmp_path / "audits.csv").write_bytes(b"")
    (tmp_path / "fields" / "points.pvd").write_text("<VTK")
    second = Ledger(tmp_path, fields=PointFields(tmp_path / "fields", None, points, LAYOUT))
    second.truncate(1)
    add(second, 1)
    assert read_table(tmp_path / "ledger.csv")["window"] == [1]
    assert "points.pvd cannot be read" in caplog.text and "it is begun anew" in caplog.text
    assert [window for window, _, _ in windows_of(tmp_path / "fields", "points")] == [1]


def test_reader_leaves_a_torn_row_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2")
    assert read_table(tmp_path / "t.csv") == {"a": [1.0], "b": ["x"]}
    assert read_table(tmp_path / "missing.csv") == {}


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    """A process that is killed right after `add` returned leaves the row whole."""
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd()); from pathlib import Path\n"
        "from tests.unit.test_ledger import Ledger, add\n"
        f"ledger = Ledger(Path({str(tmp_path)!r})); add(ledger, 0); add(ledger, 1); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True).returncode == -9
    table = read_table(tmp_path / "ledger.csv")
    assert table["window"] == [0, 1]
    assert len(read_table(tmp_path / "audits.csv")["window"]) == 4


def test_full_disk_is_said_once_and_the_run_goes_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, 0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, ledger.tables["ledger.csv"].descriptor)
    os.close(full)
    with pytest.warns(
        UserWarning, match=r"ledger\.csv: cannot be written \(No space left on device\); the run goes on"
    ):
        add(ledger, 1)
    add(ledger, 2)


def test_point_fields_hold_the_answer_in_the_order_of_ids(tmp_path: Path) -> None:
    order = np.array([4, 2, 0, 1, 3])
    points = Points(order, np.column_stack([order, order]) * 1.0, np.ones(5))
    PointFields(tmp_path, None, points, LAYOUT, every=2).write(0, 0.1, reply())
    assert windows_of(tmp_path, "points") == []
    PointFields(tmp_path, None, points, LAYOUT, every=2).write(1, 0.2, reply())
    ((window, at, path),) = windows_of(tmp_path, "points")
    coordinates, values = read_points(path)
    assert (window, at) == (1, 0.2)
    assert coordinates[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert values["flux"][4].tolist() == [0, 1]
    assert values["source"].ravel().tolist() == [0, 0, 0, 0, 2]


def test_rows_that_are_taken_in_part_are_an_error(tmp_path: Path) -> None:
    """A pipe that nobody empties takes what it has room for, as a disk does that fills up."""
    table = Table(tmp_path / "t.csv", ["text"])
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        os.dup2(write, table.descriptor)
        with pytest.raises(BlockingIOError):
            table.append([["x" * 500_000]], sync=False)
    finally:
        table.close()
        os.close(read)
        os.close(write)


def test_fields_on_a_full_disk_are_said_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = PointFields(tmp_path, None, Points(np.arange(5), np.zeros((5, 2)), np.ones(5)), LAYOUT)
    fields.write(0, 0.1, reply())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("meshio.Mesh.write", full)
    fields.write(1, 0.2, reply())
    fields.write(2, 0.3, reply())
    assert caplog.text.count("fields of window 1 cannot be written (No space left on device); the run goes on") == 1
    assert [window for window, _, _ in windows_of(tmp_path, "points")] == [0]


class TwoRanks:
    """Rank 0 of two ranks that did the same."""

    rank, size = 0, 2

    def gather(self, mine: object, root: int) -> list[object]:
        return [mine, mine]


def test_numbers_are_summed_over_ranks(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, TwoRanks(), 0.02)
    add(ledger, 0)
    row = {name: values[0] for name, values in read_table(tmp_path / "ledger.csv").items()}
    assert (row["points"], row["answered_surrogate_coarse"], row["fine_solves"], row["audits"]) == (10, 20, 8, 4)
    assert (row["asked_surrogate_fine"], row["rank_seconds_surrogate_fine"]) == (10, 1.0)
    assert row["seconds_fine"] == 0.5  # the slowest rank's


def test_window_line_shows_shares_and_warns_in_red() -> None:
    row = {"window": 0, "time": 0.5, "iterations": 3, "audits": 2, "audit_p95": 0.03, "seconds_total": 1.0}
    row |= {"answered_surrogate_coarse": 60, "answered_surrogate_fine": 30, "answered_fine": 10}
    line = window_line(row, 0.02)
    assert "accepted [bold] 90.0 %[/]  fallback  10.0 %  audit p95 [red]3.00 %[/] (n=2)" in line
    assert "[green]3.00 %[/]" in window_line(row, 0.05)
    assert "no audit" in window_line(row | {"audits": 0}, 0.02)


def test_a_file_gets_the_line_without_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(Ledger(tmp_path), 0)
    said = capsys.readouterr().out
    assert said.startswith("window    1  t=0.5 ") and said.endswith("audit p95 2.90 % (n=2)  1.00 s\n")


def spend(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_timers_are_exclusive_and_start_again() -> None:
    timers = Timers()
    with timers("outer"):
        spend(0.02)
        with timers("inner"):
            spend(0.04)
    first = timers.take()
    assert first["inner"] > 1.5 * first["outer"]
    assert first["outer"] + first["inner"] <= first["total"]
    second = timers.take()
    assert second["inner"] == second["outer"] == 0.0
    assert second["total"] < first["total"]


def test_timers_count_a_stage_that_raised() -> None:
    timers = Timers()
    with pytest.raises(ValueError, match="x"), timers("stage"):
        spend(0.01)
        raise ValueError("x")
    assert timers.take()["stage"] > 0.0
    assert len(timers.running) == 1


@pytest.mark.parametrize("codes", [[2, 2, 2, 2], [0, 2, 1, 2], [0, 0, 0], []])
def test_counts_say_how_often_each_source_and_reason_occurred(codes: list[int]) -> None:
    n, counts = len(codes), RealCounts()
    source = np.array(codes, dtype=np.uint8)
    answer = Reply(np.zeros((n, 1)), np.zeros((n, 1, 0)), source, source[::-1] + np.uint8(3), np.zeros(n))
    for _ in range(2):
        counts.answered(answer)
    assert counts.source.tolist() == [2 * codes.count(code) for code in range(len(Source))]
    assert counts.reason.tolist() == [2 * codes.count(code - 3) for code in range(len(Reason))]
