"""Case 01, reduced: the gated run against the fine-only run, on one rank and two, permuted, killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.cli import main
from neuroscale_couple.ledger import read_table
from tests.killing import killed_after
from tests.mpi import launch
from tests.tiny_case import copy_case, options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "neuroscale_couple.cli", "run"]

PROMISES = """
size = {points = 32, windows = 3}
[gated]
displacement_l2 = 0.3
reaction_force = 0.3
share_above_tolerance = 0.2
more_newton_iterations_per_step = 1
speedup = 1e9
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cut a batch into parts, on which the last bits of an answer depend, and with them an iteration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def compared(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `run --compare` of the tiny case."""
    folder = tmp_path_factory.mktemp("compared")
    config = copy_case(folder / "plate")
    config.with_name("expected.toml").write_text(PROMISES)
    assert main(["run", str(config), "--compare", "--out", str(folder), *options()]) == 0
    return folder / "plate"


def macro(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "macro.npz") as stored:
        return {name: stored[name] for name in stored.files if stored[name].dtype.kind != "U"}


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    names = ("displacement", "reaction_force")
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for name in names)


def test_summary_is_that_of_the_issue(compared: Path) -> None:
    summary = json.loads((compared / "summary.json").read_text())
    assert (summary["points"], summary["windows"]) == (32, 3)
    answered = summary["answered"]
    assert answered["surrogate_coarse"] + answered["surrogate_fine"] > answered["fine"]
    asked = sum(answered[name] for name in ("surrogate_coarse", "surrogate_fine", "fine"))
    assert asked == 32 * summary["iterations"]
    assert summary["audit"]["n"] == answered["audit"] > 0
    assert summary["audit"]["share_above_tolerance"] <= 1 - summary["confidence"]
    assert max(summary["macro_error"].values()) < summary["tolerance"]
    assert summary["wall_s"]["total"] > summary["wall_s"]["fine"] > 0
    assert summary["speedup"] == pytest.approx(summary["fine_only_wall_s"] / summary["wall_s"]["total"])
    newton = summary["newton_iterations"]
    assert all(ours <= alone + 1 for ours, alone in zip(newton["run"], newton["fine_only"], strict=True))


def test_promises_of_the_case_are_in_the_summary(compared: Path) -> None:
    held = json.loads((compared / "summary.json").read_text())["expected"]
    assert held["met"] is True
    assert [line["met"] for line in held["lines"] if not line["timing"]] == [True] * 4
    assert [line["what"] for line in held["lines"] if not line["met"]] == ["speed-up"]


def test_results_are_all_there(compared: Path) -> None:
    for name in ("run/neuroscale.resolved.yaml", "run/ledger.csv", "run/audits.csv", "report.html"):
        assert (compared / name).is_file(), name
    for series in ("run/fields/points", "run/macro/plate", "fine_only/macro/plate"):
        assert len(list(compared.glob(f"{series}_*.vtu"))) == 3
        assert (compared / f"{series}.pvd").is_file()
    assert len(list((compared / "pictures").glob("*.png"))) == 8
    assert sum(read_table(compared / "fine_only" / "ledger.csv")["refused_gate_closed"]) > 0


def test_closed_gate_equals_fine_only_to_the_bit(compared: Path, tmp_path: Path) -> None:
    """With the model loaded or not: a closed gate is the fine solver."""
    config = copy_case(tmp_path / "plate")
    assert main(["run", str(config), "--out", str(tmp_path), *options(gate__open=False)]) == 0
    ours, alone = macro(tmp_path / "plate" / "run"), macro(compared / "fine_only")
    assert all(np.array_equal(ours[name], alone[name]) for name in alone)


@pytest.mark.parametrize("ranks", [2])
def test_ranks_agree_with_serial(compared: Path, tmp_path: Path, ranks: int) -> None:
    config = copy_case(tmp_path / "plate")
    command = [launch.mpirun(), "-n", str(ranks), *RUN, str(config), *options()]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env=launch.environment() | environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, serial = macro(tmp_path / "plate" / "run"), macro(compared / "run")
    assert worst(ours, serial) < 1e-5
    assert np.array_equal(ours["newton_iterations"], serial["newton_iterations"])
    both = [read_table(folder / "ledger.csv") for folder in (tmp_path / "plate" / "run", compared / "run")]
    assert both[0]["points"] == both[1]["points"]


def test_cold_run_learns_nothing_wrong_and_reuses_fine_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    arguments = [
        "--out",
        str(tmp_path),
        *options(learning__mode="online", learning__steps=20, learning__min_samples=10, learning__first_samples=10),
    ]
    assert main(["run", str(config), "--cold", "--compare", *arguments]) == 0
    assert main(["run", str(config), "--cold", "--compare", "--reuse", *arguments]) == 0
    assert "fine-only: taking the finished run in " in capsys.readouterr().out
    summary = json.loads((tmp_path / "plate" / "cold" / "summary.json").read_text())
    assert summary["fine_only_reused"] is True
    assert summary["answered"]["fine"] >= 32
    assert max(summary["macro_error"].values()) < summary["tolerance"]


def test_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate")
    more: dict[str, Any] = {"settings__steps": 12, "output__folder": str(tmp_path / "a")}
    ledger = tmp_path / "a" / "plate" / "run" / "ledger.csv"
    killed_after([*RUN, str(config), "--out", str(tmp_path / "a"), *options(**more)], ledger, 4, environment())
    assert main(["run", str(config), "--resume", "--out", str(tmp_path / "a"), *options(**more)]) == 0
    assert main(["run", str(config), "--out", str(tmp_path / "b"), *options(**more)]) == 0
    resumed, whole = macro(tmp_path / "a/plate/run"), macro(tmp_path / "b/plate/run")
    assert worst(resumed, whole) < 1e-5
    ledgers = [read_table(tmp_path / name / "plate/run/ledger.csv") for name in "ab"]
    assert ledgers[0]["window"] == ledgers[1]["window"] == list(range(12))
    audits = [read_table(tmp_path / name / "plate/run/audits.csv") for name in "ab"]
    assert audits[0]["point"] == audits[1]["point"]
    summary = json.loads((tmp_path / "a/plate/summary.json").read_text())
    assert summary["resumed"] is True
    assert summary["wall_s"]["total"] == pytest.approx(sum(ledgers[0]["seconds_total"]))
