"""Summary and report of a small made-up run: every number is where the reader looks for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import pytest

from neuroscale_couple.config.load import Loaded, dump, load
from neuroscale_couple.evaluation.fields import PointFields, Series
from neuroscale_couple.evaluation.report import write_report
from neuroscale_couple.evaluation.summary import (
    RunRecord,
    incomparable,
    machine,
    macro_error,
    rows,
    summarise,
    versions,
)
from neuroscale_couple.ledger import Ledger
from neuroscale_couple.reasons import Reason
from neuroscale_couple.values import Audit, FieldSpec, Layout, Points, Reply

LAYOUT = Layout((FieldSpec("stress", ("xx", "yy", "xy"), "MPa"),))
N = 12


class Counts:
    """Ten per cent fallback."""

    def __init__(self) -> None:
        self.source = np.array([80, 10, 10])
        self.reason = np.zeros(len(Reason), dtype=np.int64)
        self.reason[[Reason.UNCERTAIN, Reason.HELD]] = 6, 4
        self.fine_solves, self.fine_iterations = 12, 50
        self.asked, self.seconds = np.array([90, 20, 12]), np.array([0.009, 0.02, 0.12])


def write_run(folder: Path, label: str, wall: float, factor: float) -> None:
    """Two windows with two audits each, and a macro solution scaled by `factor`."""
    points = Points(np.arange(N), np.random.default_rng(1).random((N, 2)), np.ones(N))
    ledger = Ledger(folder, None, 0.02, LAYOUT.columns, PointFields(folder / "fields", None, points, LAYOUT))
    source = (np.arange(N) % 3).astype(np.uint8)
    reply = Reply(np.ones((N, 3)), np.zeros((N, 3, 3)), source, source, np.full(N, 0.01))
    for window in range(2):
        error = np.array([0.005, 0.03])
        ids, zero = np.array([1, 2]), np.zeros(2)
        where = np.array([0, 1], dtype=np.uint8)
        ledger.add_audits(window, ids, where, zero + 0.01, error, np.full((2, 3), 1.01), np.ones((2, 3)))
        ledger.add(
            window=window, time=0.5 * (window + 1), iterations=3, points=N, counts=Counts(), reply=reply,
            audit=Audit(ids, where, zero, zero, error), model_version=0,
            seconds={"fine": 0.25 * wall, "total": 0.5 * wall, "kernels": 0.02 * wall},
        )  # fmt: skip
    series = Series(folder / "macro", "plate")
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=float)
    moved = corners * [0.01, -0.002, 0]
    stress = [np.array([[50.0, 1.0, 2.0]])]
    mesh = meshio.Mesh(corners, [("quad", [[0, 1, 2, 3]])], {"displacement": moved}, {"stress": stress})
    series.write(1, 1.0, mesh)
    u, force = np.arange(1.0, 9.0).reshape(2, 4), np.array([[3.0, 4.0], [6.0, 8.0]])
    arrays = {"displacement": factor * u, "reaction_force": factor * force, "newton_iterations": np.array([3, 2])}
    np.savez(folder / "macro.npz", **arrays, reaction_force_unit="MN/m")
    RunRecord(label, "abc", "def", 1, 2, wall, finished=True).save(folder)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", "run", 2.0, 1.001)
    write_run(tmp_path / "fine_only", "fine_only", 30.0, 1.0)
    return tmp_path


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "case").mkdir()
    path = tmp_path / "case" / "neuroscale.yaml"
    path.write_text("neuroscale: {problem: {name: composite}}")
    return load(path)


def summary_of(results: Path, reference: bool = True) -> dict[str, Any]:
    gate = {"tolerance": 0.02, "confidence": 0.95}
    return summarise(results / "run", gate, results / "fine_only" if reference else None)


def test_summary_holds_what_was_measured(results: Path) -> None:
    summary = json.loads(json.dumps(summary_of(results)))
    assert (summary["points"], summary["windows"], summary["iterations"]) == (N, 2, 6)
    assert summary["answered"] == {"surrogate_coarse": 160, "surrogate_fine": 20, "fine": 20, "audit": 4}
    assert (summary["fine_solves"], summary["tolerance"]) == (24, 0.02)
    audit = summary["audit"]
    assert (audit["n"], audit["max"], audit["share_above_tolerance"]) == (4, 0.03, 0.5)
    assert audit["p50"] == pytest.approx(0.0175)
    assert summary["macro_error"] == pytest.approx({"displacement_l2": 1e-3, "reaction_force": 1e-3})
    wanted = {"total", "fine", "surrogate", "transport", "correction", "learning"}
    assert wanted <= set(summary["wall_s"])
    assert (summary["wall_s"]["total"], summary["wall_s"]["fine"]) == (2.0, 1.0)
    assert (summary["kernels"]["seconds"], summary["kernels"]["share"]) == pytest.approx((0.08, 0.04))
    assert (summary["fine_only_wall_s"], summary["speedup"]) == (30.0, 15.0)
    assert summary["newton_iterations"] == {"run": [3, 2], "fine_only": [3, 2]}


def test_summary_without_a_fine_only_run_claims_nothing(results: Path) -> None:
    summary = summary_of(results, reference=False)
    assert summary["macro_error"] is summary["speedup"] is summary["fine_only_wall_s"] is None


def test_macro_error_of_runs_of_different_length_is_not_a_number(results: Path) -> None:
    np.savez(results / "run" / "macro.npz", displacement=np.ones((1, 4)))
    assert np.isnan((macro_error(results / "run", results / "fine_only") or {})["displacement_l2"])
    (results / "run" / "macro.npz").unlink()
    assert macro_error(results / "run", results / "fine_only") is None


def test_macro_error_is_that_of_the_worst_window(results: Path) -> None:
    with np.load(results / "fine_only" / "macro.npz") as truth:
        u = truth["displacement"].copy()
    u[0] *= 1.2
    np.savez(results / "run" / "macro.npz", displacement=u)
    assert (macro_error(results / "run", results / "fine_only") or {}) == pytest.approx({"displacement_l2": 0.2})


def test_rows_say_what_is_allowed(results: Path) -> None:
    shown = dict(rows(summary_of(results)))
    assert shown["answered by the fine solver (fallback)"] == "10.00 %"
    assert shown["audits above the tolerance (5 % may be)"] == "2 of 4"
    assert shown["speed-up"] == "15.0"
    again = dict(rows(summarise(results / "run", {"tolerance": 0.02, "confidence": 0.95}, results / "fine_only", True)))
    assert again["wall time fine-only"] == "30.00 s (of an earlier run)"


@pytest.mark.parametrize(
    ("head", "solve", "saved", "said"),
    [
        (0.02, 10.0, [0.16, 0.16], "it saved 0.16 s of solves at least"),
        (0.2, 10.0, [-0.2, -0.2], "solves would have cost 0.20 s less at least: gate.fine_head: false leaves it out"),
        (0.08, 5.0, [-0.06, 0.04], "no clear gain: solves would have cost between 0.06 s less and 0.04 s more"),
    ],
)
def test_prices_say_whether_the_fine_head_paid(
    results: Path, head: float, solve: float, saved: list[float], said: str
) -> None:
    """Two windows: 40 points asked on the fine head, 20 accepted; a solve of this run took 10 ms."""
    for label, change in (("run", f",{head},0.12,"), ("fine_only", f",0.02,{0.012 * solve},")):
        path = results / label / "ledger.csv"
        path.write_text(path.read_text().replace(",0.02,0.12,", change))
    summary = summary_of(results)
    assert summary["price"]["surrogate_fine"] == {"asked": 40, "ms": pytest.approx(1e3 * head / 20)}
    assert (summary["price"]["fine"]["ms"], summary["price"]["fine_only_ms"]) == pytest.approx((10.0, solve))
    assert summary["price"]["fine_head_saved_s"] == pytest.approx(saved)
    shown = dict(rows(summary))
    assert shown["one answer, coarse head / fine head / fine solver"] == f"0.1 / {1e3 * head / 20:.3g} / 10 ms"
    assert shown["the fine head"] == "50 % of its answers were accepted; " + said


def test_a_fine_head_that_was_not_asked_is_not_judged(results: Path) -> None:
    path = results / "run" / "ledger.csv"
    path.write_text(path.read_text().replace(",90,20,12,", ",90,0,12,"))
    summary = summary_of(results, reference=False)
    assert summary["price"]["fine_head_saved_s"] is summary["price"]["fine_only_ms"] is None
    assert summary["price"]["surrogate_fine"] == {"asked": 0, "ms": None}
    assert "the fine head" not in dict(rows(summary))


def test_report_holds_pictures_numbers_and_configuration(results: Path, loaded: Loaded) -> None:
    path = write_report(results, results / "run", results / "fine_only", summary_of(results), loaded)
    html = path.read_text()
    pictures = {"macro_field", "fallback_map", "shares", "audit_errors", "parity", "response", "timing"}
    assert {p.stem for p in (results / "pictures").glob("*.png")} == {*pictures, "overview"}
    assert html.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)  # needs nothing beside it
    assert "The surrogate answered 180 of 200 questions, 15.0 times as fast as the fine solver alone" in html
    assert "Of 4 audited answers 50.0 % exceeded the tolerance of 2 % (5 % are allowed)" in html
    assert "differs by 0.100 % (displacement l2), 0.100 % (reaction force)" in html
    assert "confidence: 0.95" in html


def test_report_of_a_run_without_audits_macro_and_reference(results: Path, loaded: Loaded) -> None:
    run = results / "run"
    (run / "audits.csv").unlink()
    (run / "macro.npz").unlink()
    (run / "macro" / "plate.pvd").unlink()
    path = write_report(results, run, None, summary_of(results, reference=False), loaded)
    assert {p.stem for p in (results / "pictures").glob("*.png")} == {"fallback_map", "shares", "timing"}
    assert "as fast as" not in path.read_text()


def test_report_of_a_run_that_refused_nothing(results: Path, loaded: Loaded) -> None:
    path = results / "run" / "ledger.csv"
    header, *lines = path.read_text().splitlines()
    names = header.split(",")
    cells = [line.split(",") for line in lines]
    for row in cells:
        row[:] = ["0" if name.startswith("refused") else cell for name, cell in zip(names, row, strict=True)]
    path.write_text("\n".join([header, *(",".join(row) for row in cells)]) + "\n")
    write_report(results, results / "run", None, summary_of(results, reference=False), loaded)
    assert (results / "pictures" / "shares.png").exists()


CLOSED = {"gate.open": False}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"digest": "of other loads"}, "is of another configuration; make it again to compare"),
        ({"script": "of another mesh"}, "is of another macro script; make it again to compare"),
    ],
)
def test_a_fine_only_run_of_something_else_is_not_compared(
    tmp_path: Path, loaded: Loaded, change: dict[str, str], said: str | None
) -> None:
    run, reference = tmp_path / "run", tmp_path / "fine_only"
    for folder in (run, reference):
        folder.mkdir()
    assert "there is no finished fine-only run" in (incomparable(run, reference, CLOSED) or "")
    (run / "neuroscale.resolved.yaml").write_text(dump(loaded.config))
    RunRecord("run", loaded.digest, "plate", 1, 2).save(run)
    closed = load(loaded.path, CLOSED).digest
    assert closed != loaded.digest
    RunRecord("fine_only", **{"digest": closed, "script": "plate", **change}, ranks=1, threads=2).save(reference)
    why = incomparable(run, reference, CLOSED)
    assert why is None if said is None else said in (why or "")


def test_record_is_read_back_or_not_at_all(tmp_path: Path) -> None:
    record = RunRecord("run", "a", "b", 2, 1, 3.0, finished=True)
    record.save(tmp_path)
    assert RunRecord.load(tmp_path) == record
    assert record.same_run(RunRecord("other", "a", "b", 2, 1))
    assert not record.same_run(RunRecord("run", "a", "b", 1, 1))
    (tmp_path / "run.json").write_text("{")
    assert RunRecord.load(tmp_path) is None


def test_machine_and_versions_are_named() -> None:
    assert machine()["cores"] >= 1
    assert machine()["cpu"]
    assert "numpy" in versions()
