"""A rank that fails or dies ends the whole job: non-zero, in time, with the first cause printed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.mpi.launch import Job, launch

DEADLINE = 45.0


def deploy(deployment: str, macro: dict[str, Any], service_fault: dict[str, Any], out: Path) -> Job:
    """Run `spmd <ranks>` or `mpmd <macro ranks>+<service ranks>` with faults."""
    kind, _, ranks = deployment.partition(" ")
    if kind == "spmd":
        asked = {"transport": "embedded", "mpi": True, "out": str(out), "service_fault": service_fault, **macro}
        return launch((int(ranks), "macro.py", asked), timeout=DEADLINE)
    macros, _, services = ranks.partition("+")
    return launch(
        (int(macros), "macro.py", {"transport": "mpi", "out": str(out), **macro}),
        (int(services), "service.py", {"out": str(out), "fault": service_fault}),
        timeout=DEADLINE,
    )


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("deployment", ["spmd 3", "mpmd 2+1", "mpmd 1+2"])
def test_an_error_in_one_service_ends_all_with_its_cause(deployment: str, window: int, tmp_path: Path) -> None:
    rank = int(deployment[-1]) - 1
    fault = {"kind": "raise", "rank": rank, "window": window, "iteration": 1}
    job = deploy(deployment, {}, fault, tmp_path).expect_failure()
    assert job.output.count("does not converge") == 1, job.output
    assert not list(tmp_path.glob("macro*.npz"))


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 1+2"])
def test_a_rank_stuck_in_a_collective_is_not_left_waiting(deployment: str, tmp_path: Path) -> None:
    job = deploy(deployment, {}, {"kind": "collective", "rank": 0, "window": 0}, tmp_path).expect_failure()
    assert job.output.count("does not converge") == 1, job.output


@pytest.mark.parametrize("kind", ["exit", "kill"])
@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1"])
def test_a_service_that_dies_ends_the_job(deployment: str, kind: str, tmp_path: Path) -> None:
    deploy(deployment, {}, {"kind": kind, "rank": 0, "window": 1}, tmp_path).expect_failure()
    assert not list(tmp_path.glob("macro*.npz"))


@pytest.mark.parametrize("kind", ["bug", "exit", "kill", "leave"])
@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1"])
def test_a_macro_rank_that_fails_dies_or_leaves_ends_the_job(deployment: str, kind: str, tmp_path: Path) -> None:
    job = deploy(deployment, {"macro_fault": {"kind": kind, "rank": 1}}, {}, tmp_path).expect_failure()
    if kind == "bug":
        assert job.output.count("ZeroDivisionError: the macro solver diverged") == 1, job.output
        assert "rank 1 of " in job.output
    if kind == "leave":
        assert "left before closure.close(); all ranks end" in job.output


def test_the_service_closes_its_books_when_the_macro_solver_fails(tmp_path: Path) -> None:
    deploy("mpmd 2+1", {"macro_fault": {"kind": "bug", "rank": 1}}, {}, tmp_path).expect_failure()
    assert (tmp_path / "closed0").exists()


def test_results_that_cannot_be_written_end_a_plain_script_on_all_ranks(tmp_path: Path) -> None:
    """Rank 0 alone makes the folder: the other ranks must not wait for it in the next collective."""
    (tmp_path / "file").touch()
    config = tmp_path / "neuroscale.yaml"
    config.write_text(f"neuroscale: {{problem: {{name: composite}}, output: {{folder: {tmp_path / 'file' / 'runs'}}}}}")
    job = launch((2, "plain.py", {"config": str(config)}), timeout=DEADLINE).expect_failure()
    assert job.output.count("cannot be made (Not a directory); choose another folder") == 1, job.output
    assert "output.folder" in job.output


@pytest.mark.parametrize("at", ["commit", "get_state"])
def test_a_fine_solver_that_fails_when_a_window_is_committed_ends_all_ranks(at: str, tmp_path: Path) -> None:
    """The other ranks must not go on into the collectives of the ledger, the learner and the checkpoint."""
    config = tmp_path / "neuroscale.yaml"
    config.write_text(
        "neuroscale: {problem: {name: composite, grid: 8}, gate: {open: false}, learning: {mode: 'off'}, "
        "fine: {solver: 'tests.mpi.programs.failing:Failing', device: cpu}, "
        f"output: {{folder: {tmp_path / 'runs'}}}}}"
    )
    job = launch((2, "failing.py", {"config": str(config), "at": at}), timeout=DEADLINE).expect_failure()
    assert job.output.count(f"the disk of the user's solver is full in {at}") == 1, job.output
