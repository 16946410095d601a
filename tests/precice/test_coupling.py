"""Real couplings with a scripted macro solver: what it hears is what the embedded transport says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.reasons import Source
from tests.precice.coupling import AITKEN, IQN, STRESSES, Case, Ended, Setup, embedded

pytestmark = [pytest.mark.needs("precice"), pytest.mark.slow, pytest.mark.timeout(300)]

MESH = "Macro-Mesh"
SOLVER = 2e-6
"""Relative accuracy of two fine solves that start from different fields, and of the coupling (limit 1e-6)."""
TANGENT = [f"Tangent-{row}-{column}" for row in ("XX", "YY", "XY") for column in ("XX", "YY", "XY")]
DIAGNOSTICS = ("Neuroscale-Source", "Neuroscale-Error-Estimate", "Neuroscale-Model-Version")
SECTIONS = ("neuroscale read", "neuroscale evaluate", "neuroscale write", "neuroscale commit")


def close(got: Any, expected: Any, tolerance: float = SOLVER) -> None:
    """Equal to a part of the largest value."""
    assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-9)


def calls_of(ended: Ended, rank: int = 0) -> list[str]:
    return [call["call"] for call in ended.calls[rank]]


def evaluations(ended: Ended, rank: int = 0) -> list[dict[str, Any]]:
    return [call for call in ended.calls[rank] if call["call"] == "evaluate"]


def converged_as_embedded(case: Case, ended: Ended, mesh: str = MESH, tolerance: float = 20e-6) -> None:
    """In every window the macro solver ended with the embedded answer to what it had sent."""
    for sent, after in zip(ended.heard[f"{mesh}/sent"], ended.heard[f"{mesh}/after"], strict=True):
        close(after[:, :3], embedded(case, sent), tolerance)


# -- explicit ---------------------------------------------------------------------------------------------------


def test_serial_explicit_with_units_diagnostics_and_profile(tmp_path: Path) -> None:
    rules = [{"name": "Stress", "unit": "kPa"}]
    fields = [{"name": n} for n in ("Stress", *DIAGNOSTICS)]
    setup = Setup(
        scheme="serial-explicit", extra_write=DIAGNOSTICS, write_data=fields, compliance=1e-8,
        ours={"precice": {"data": rules}},
    )  # fmt: skip
    case = Case(tmp_path, setup)
    ended = case.run().good
    assert calls_of(ended) == ["evaluate", "commit"] * 3
    assert [round(call["t"], 9) for call in evaluations(ended)] == [0.1, 0.2, 0.3]
    for sent, after in zip(ended.heard[f"{MESH}/sent"], ended.heard[f"{MESH}/after"], strict=True):
        close(after[:, :3], 1e3 * embedded(case, sent))
        assert (after[:, 3:] == [Source.FINE, 0.0, -1.0]).all()
    profile = (tmp_path / "precice-profiling" / "NeuroScale-0-1.txt").read_text()
    assert all(section in profile for section in SECTIONS)


def test_parallel_explicit_starts_blank_and_steps_inside_the_window(tmp_path: Path) -> None:
    fields = [{"name": "Stress"}, {"name": "Tangent"}]
    setup = Setup(
        scheme="parallel-explicit", substeps=2, extra_write=tuple(TANGENT), write_data=fields,
        ours={"precice": {"substeps": 3}},
    )  # fmt: skip
    case = Case(tmp_path, setup)
    ended = case.run().good
    assert calls_of(ended) == ["evaluate", "next_step", "evaluate", "next_step", "evaluate", "commit"] * 3
    asked = evaluations(ended)
    assert [call["blank"] for call in asked] == [True] * 3 + [False] * 6
    assert [round(call["dt"], 9) for call in asked] == [round(0.1 / 3, 9)] * 9
    # the answer to nothing: no stress, and the tangent of the undeformed cells
    first = ended.heard[f"{MESH}/after"][0]
    assert (first[:, :3] == 0.0).all()
    nothing = np.zeros((6, 3))
    close(first[:, 3:].reshape(6, 3, 3), embedded(case, nothing, tangent=True), 5e-3)
    # then each answer is to what was sent in the window before
    close(ended.heard[f"{MESH}/after"][2][:, :3], embedded(case, ended.heard[f"{MESH}/sent"][1]))


def test_variable_window_size_set_by_the_macro_solver(tmp_path: Path) -> None:
    setup = Setup(scheme="serial-explicit", method="first-participant", steps=[0.05, 0.1, 0.02], windows=4)
    case = Case(tmp_path, setup)
    ended = case.run().good
    assert [round(call["dt"], 9) for call in evaluations(ended)] == [0.05, 0.1, 0.02, 0.05]
    assert [round(call["t"], 9) for call in evaluations(ended)] == [0.05, 0.15, 0.17, 0.22]
    converged_as_embedded(case, ended)


def test_window_size_set_by_us(tmp_path: Path) -> None:
    ours = {"precice": {"window_size": 0.07}}
    setup = Setup(scheme="serial-explicit", first="NeuroScale", method="first-participant", ours=ours)
    ended = Case(tmp_path, setup).run().good
    assert np.round(ended.heard["t"], 9).tolist() == [0.07, 0.14, 0.21]
    assert [call["blank"] for call in evaluations(ended)] == [True, False, False]


# -- implicit ---------------------------------------------------------------------------------------------------


def counted(ended: Ended, substeps: int = 1, rank: int = 0) -> None:
    """One commit a window, one repetition an iteration but the last, never a window started afresh."""
    calls, iterations = calls_of(ended, rank), ended.heard["iterations"]
    steps_of_macro = iterations.sum() // substeps
    assert calls.count("commit") == len(iterations)
    assert calls.count("repeat") == steps_of_macro - len(iterations)
    assert calls.count("evaluate") == steps_of_macro * substeps
    assert calls.count("next_step") == steps_of_macro * (substeps - 1)
    assert "rollback" not in calls
    assert max(iterations) > substeps


def test_serial_implicit_aitken_with_substeps(tmp_path: Path) -> None:
    setup = Setup(scheme="serial-implicit", acceleration=AITKEN, substeps=2, ours={"precice": {"substeps": 2}})
    case = Case(tmp_path, setup)
    ended = case.run().good
    counted(ended, substeps=2)
    converged_as_embedded(case, ended)
    times = {round(call["t"], 9) for call in evaluations(ended) if call["window"] == 1}
    assert times == {0.15, 0.2}


def test_serial_implicit_with_us_first(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="serial-implicit", first="NeuroScale", acceleration=AITKEN))
    ended = case.run().good
    counted(ended)
    converged_as_embedded(case, ended)


def test_parallel_implicit_iqn_on_two_meshes(tmp_path: Path) -> None:
    meshes = {"Left-Mesh": [[0.0, 0.0], [0.5, 0.0]], "Right-Mesh": [[1.0, 0.0], [1.0, 1.0], [1.5, 1.0]]}
    case = Case(tmp_path, Setup(meshes=meshes, windows=2))
    ended = case.run().good
    counted(ended)
    assert [call["blank"] for call in evaluations(ended)][:2] == [True, False]
    # the points of both meshes are those of one service, in the order of the configuration
    sent = np.concatenate([ended.heard[f"{mesh}/sent"][-1] for mesh in meshes])
    after = np.concatenate([ended.heard[f"{mesh}/after"][-1] for mesh in meshes])
    close(after, embedded(case, sent), 20e-6)


@pytest.mark.parametrize(("scheme", "acceleration"), [("parallel-implicit", IQN), ("serial-implicit", AITKEN)])
def test_two_ranks_with_regions_that_overlap(tmp_path: Path, scheme: str, acceleration: str) -> None:
    regions = [[[0.0, 0.5], [0.0, 1.0]], [[0.5, 1.0], [0.0, 1.0]]]  # x = 0.5 is in both: rank 0 owns it
    case = Case(
        tmp_path, Setup(scheme=scheme, acceleration=acceleration, windows=2, ours={"precice": {"regions": regions}})
    )
    ended = case.run(ranks=2).good
    answered = [evaluations(ended, rank)[0]["ids"] for rank in (0, 1)]
    assert sorted(answered[0] + answered[1]) == list(range(6))
    for rank in (0, 1):
        counted(ended, rank=rank)
    converged_as_embedded(case, ended)


def test_points_never_go_back_to_the_surrogate_while_a_window_iterates(tmp_path: Path) -> None:
    ours = {"model": "wavering", "gate": {"stages": ["uncertainty"]}}
    ended = Case(tmp_path, Setup(scheme="serial-implicit", acceleration=AITKEN, ours=ours)).run().good
    asked = evaluations(ended)
    moved = 0
    for window in range(3):
        sources = np.array([call["source"] for call in asked if call["window"] == window])
        assert (np.diff(sources.astype(int), axis=0) >= 0).all()
        assert (sources[0] == Source.SURROGATE_COARSE).any(), "a new window starts with the surrogate"
        moved += (sources[-1] > sources[0]).sum()
    assert moved > 0


# -- what goes wrong --------------------------------------------------------------------------------------------


def test_macro_solver_that_dies(tmp_path: Path) -> None:
    ended = Case(tmp_path, Setup(scheme="serial-explicit", told={"die_in": 1})).run(command_line=True)
    ended.failed("neuroscale-couple: error: window 0, iteration 0: 'NeuroScale' was waiting for 'Macro', but the other")


def test_macro_solver_that_dies_while_it_iterates(tmp_path: Path) -> None:
    told = {"die_in": 1}
    ended = Case(tmp_path, Setup(scheme="serial-implicit", acceleration=AITKEN, told=told)).run(command_line=True)
    ended.failed("neuroscale-couple: error: window ", "'NeuroScale'", "'Macro'", "output says why")


@pytest.mark.parametrize(
    ("scheme", "waiting"),
    [("serial-explicit", "waiting for 'Macro' to start, but"), ("parallel-explicit", "waiting for 'Macro', but")],
)
def test_macro_solver_that_is_killed_in_its_first_solve(tmp_path: Path, scheme: str, waiting: str) -> None:
    setup = Setup(scheme=scheme, told={"die_in": 0, "before": 5.0})  # longer than the watcher's patience
    ended = Case(tmp_path, setup).run()
    ended.failed(f"window 0, iteration 0: 'NeuroScale' was {waiting} the other program has gone", "its output says why")


def test_macro_solver_that_hangs(tmp_path: Path) -> None:
    setup = Setup(scheme="serial-explicit", told={"sleep_in": 1}, ours={"precice": {"timeout": 4}})
    ended = Case(tmp_path, setup).run()
    ended.failed("window 0, iteration 0: 'NeuroScale' was waiting for 'Macro' for 4 s (neuroscale.precice.timeout)")


def test_window_that_does_not_converge(tmp_path: Path) -> None:
    setup = Setup(scheme="serial-implicit", acceleration=AITKEN, max_iterations=3, windows=2)
    Case(tmp_path, setup).run().failed("window 0, iteration 2: the coupling used all 3 iterations")
    setup.ours = {"precice": {"unconverged": "continue"}}
    ended = Case(tmp_path, setup).run().good
    assert "window 0, iteration 2: the coupling used all 3 iterations" in ended.output
    assert calls_of(ended).count("commit") == 2


def test_points_outside_every_region(tmp_path: Path) -> None:
    ours = {"precice": {"regions": [[[0.0, 0.6], [0.0, 1.0]]]}}
    ended = Case(tmp_path, Setup(scheme="serial-explicit", ours=ours)).run()
    ended.failed("mesh 'Macro-Mesh': 2 of 6 points lie outside every access region, the first at (1, 0)")


def test_input_that_is_not_finite(tmp_path: Path) -> None:
    ended = Case(tmp_path, Setup(scheme="serial-explicit", load=(float("nan"), 0.0, 0.0))).run()
    ended.failed("the macro solver sent strain.xx = nan at point id 0")


def test_wrong_configuration_is_said_before_anything_waits(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup())
    case.replace('<m2n:sockets acceptor="Macro" connector="NeuroScale" exchange-directory="." />', "")
    case.setup.told = {"die_in": 0}
    ended = case.run(command_line=True)
    ended.failed("neuroscale-couple: error: ", "nothing joins 'Macro' and 'NeuroScale'", "<m2n:sockets")
    assert not list(tmp_path.glob("precice-profiling/NeuroScale*")), "no participant was made"


def test_command_line_writes_results(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="serial-explicit", windows=2))
    ended = case.run(command_line=True).good
    (ledger,) = (tmp_path / "runs").glob("*/run/ledger.csv")
    assert len(ledger.read_text().splitlines()) == 3
    assert ended.heard[f"{MESH}/after"].shape == (2, 6, len(STRESSES))
