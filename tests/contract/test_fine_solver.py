"""Every fine solver keeps the contract of `fine.base`; add your own solver (and its problem) to SOLVERS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config.schema import Fine, Microstructure, Problem
from neuroscale_couple.errors import MicrostructureError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import F64, FineAnswer, Points

GRID, N = 12, 10
TOLERANCE = 1e-9
SOLVERS: dict[str, tuple[dict[str, Any], dict[str, Any], list[float], list[float]]] = {
    # name: fine section, problem section, mean and spread of each input
    "fft_cell, composite": ({}, {"name": "composite"}, [0.0] * 3, [0.01] * 3),
    "fft_cell, conduction": ({}, {"name": "conduction"}, [0.0, 0.0, 300.0], [1.0, 1.0, 20.0]),
    "fft_cell by path, fourier": (
        {"solver": "neuroscale_couple.fine.fft_cell:FftCell"},
        {"name": "composite", "scheme": "fourier"},
        [0.0] * 3,
        [0.01] * 3,
    ),
    "micro_manager, opaque": (
        {"solver": "micro_manager"},
        {"name": "opaque", "inputs": {"a": {}, "v": {"components": ["x", "y"]}}, "outputs": {"b": {}, "w": {}}},
        [0.0] * 3,
        [1.0] * 3,
    ),
}
CELLS = [name for name in SOLVERS if name != "micro_manager, opaque"]
MICRO = """
class MicroSimulation:
    def __init__(self, sim_id):
        self.solves, self.factor = 0, 1.0 + sim_id
    def solve(self, data, dt):
        self.solves += 1
        return {"b": self.factor * data["a"], "w": data["v"] @ data["v"] * self.factor, "more": self.solves}
    def get_state(self):
        return self.solves
    def set_state(self, solves):
        self.solves = solves
"""


class Setup:
    """One way to make a solver with its points and inputs."""

    def __init__(self, name: str, folder: Any) -> None:
        self.fine, problem, self.mean, self.spread = SOLVERS[name]
        self.problem = make_problem(Problem(grid=GRID, **problem))
        parameters: dict[str, Any] = {}
        if isinstance(self.problem, CellProblem):
            parameters["phase"] = generate(Microstructure(kind="blobs"), np.arange(N), GRID, folder)
        else:
            (folder / "micro.py").write_text(MICRO)
            self.fine = {**self.fine, "micro": {"file": "micro.py", "folder": str(folder), "workers": 1}}
        self.points = Points(np.arange(N), np.zeros((N, 2)), np.ones(N), parameters)
        self.made: list[FineSolver] = []

    def solver(self, points: Points | None = None, **settings: Any) -> FineSolver:
        options = {"tolerance": TOLERANCE, "device": "cpu", **self.fine, **settings}
        solver = make_fine_solver(Fine(**options), self.problem)
        self.made.append(solver)
        solver.attach(self.points if points is None else points)
        return solver

    def inputs(self, seed: int = 0) -> F64:
        noise = np.random.default_rng(seed).standard_normal((N, len(self.mean)))
        return np.asarray(self.mean + noise * self.spread)


@pytest.fixture(params=SOLVERS)
def setup(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Setup]:
    made = Setup(request.param, tmp_path)
    yield made
    for solver in made.made:
        solver.close()


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest, tmp_path: Any) -> Setup:
    """Solvers of cells alone: with a tangent, micro structures and Newton iterations."""
    return Setup(request.param, tmp_path)


def agree(a: FineAnswer, b: FineAnswer, rows: Any = slice(None)) -> None:
    size = np.linalg.norm(a.outputs, axis=1, keepdims=True)
    assert (np.abs(a.outputs - b.outputs[rows]) <= 1e-7 * size).all()
    size = np.linalg.norm(a.tangent, axis=(1, 2), keepdims=True)
    assert (np.abs(a.tangent - b.tangent[rows]) <= 2e-5 * size).all()


def test_the_answer_has_one_row_per_asked_point(setup: Setup) -> None:
    rows = np.array([7, 2, 5])
    answer = setup.solver().solve(rows, setup.inputs()[rows])
    assert np.array_equal(answer.rows, rows)
    n_out, n_in = setup.problem.outputs.size, setup.problem.tangent_columns
    assert answer.outputs.shape == (3, n_out) and answer.outputs.dtype == np.float64
    assert answer.tangent.shape == (3, n_out, n_in) and answer.tangent.dtype == np.float64
    assert answer.converged.dtype == np.bool_ and answer.converged.all()
    assert answer.iterations.dtype == np.int64 and (answer.residual <= TOLERANCE).all()


def test_no_rows_are_answered_by_no_rows(setup: Setup) -> None:
    answer = setup.solver().solve(np.arange(0), setup.inputs()[:0])
    assert answer.outputs.shape == (0, setup.problem.outputs.size) and len(answer.converged) == 0


def test_the_answer_does_not_depend_on_order_or_neighbours(setup: Setup) -> None:
    rows, inputs = np.arange(N), setup.inputs()
    whole = setup.solver().solve(rows, inputs)
    order = np.random.default_rng(2).permutation(N)
    agree(setup.solver().solve(rows[order], inputs[order]), whole, order)
    split = setup.solver()
    for part in (rows[:1], rows[1:4], rows[4:]):
        agree(split.solve(part, inputs[part]), whole, part)
    subset = setup.solver(setup.points.take(order[:4]))
    agree(subset.solve(np.arange(4), inputs[order[:4]]), whole, order[:4])


def test_the_answer_does_not_depend_on_what_was_solved_before(setup: Setup) -> None:
    rows, inputs = np.arange(N), setup.inputs()
    fresh = setup.solver().solve(rows, inputs)
    solver = setup.solver()
    solver.solve(rows, setup.inputs(1))
    solver.commit()
    solver.solve(rows[::2], setup.inputs(2)[::2])
    agree(solver.solve(rows, inputs), fresh)
    solver.rollback()
    agree(solver.solve(rows, inputs), fresh)
    agree(solver.solve(rows, inputs), fresh)


def test_the_tangent_is_the_derivative_of_the_outputs(cell: Setup) -> None:
    rows, inputs = np.arange(N), cell.inputs()
    solver = cell.solver()
    tangent = solver.solve(rows, inputs).tangent
    for column, spread in enumerate(cell.spread):
        step = 1e-3 * spread * np.eye(len(cell.spread))[column]
        slope = (solver.solve(rows, inputs + step).outputs - solver.solve(rows, inputs - step).outputs) / (
            2e-3 * spread
        )
        size = np.linalg.norm(slope, axis=1)
        assert (np.linalg.norm(tangent[:, :, column] - slope, axis=1) <= 1e-4 * size).all(), column


def test_a_nan_row_is_reported_and_leaves_the_others_alone(setup: Setup) -> None:
    rows, inputs = np.arange(N), setup.inputs()
    whole = setup.solver().solve(rows, inputs)
    inputs[3, 1] = np.nan
    answer = setup.solver().solve(rows, inputs)
    others = rows != 3
    assert np.array_equal(answer.converged, others)
    healthy = replace(answer, outputs=answer.outputs[others], tangent=answer.tangent[others])
    agree(healthy, whole, others)


def test_a_failure_is_reported_and_explained_not_raised(cell: Setup) -> None:
    solver = cell.solver(max_newton=1, max_cg=1)
    answer = solver.solve(np.arange(N), cell.inputs())
    assert not answer.converged.any()
    text = solver.diagnosis(4)
    assert "point 4" in text and cell.problem.inputs.columns[0] in text and "residual" in text


def test_no_load_gives_no_flux(cell: Setup) -> None:
    answer = cell.solver().solve(np.arange(N), np.tile(cell.mean, (N, 1)))
    assert answer.converged.all()
    assert np.abs(answer.outputs).max() < 1e-12
    driving = answer.tangent[:, :, : cell.problem.outputs.size]
    assert (np.linalg.eigvalsh(driving) > 0.0).all()


def test_the_state_survives_a_round_trip(setup: Setup) -> None:
    rows, inputs = np.arange(N), setup.inputs()
    solver = setup.solver()
    whole = solver.solve(rows, inputs)
    solver.commit()
    state = {name: array.copy() for name, array in solver.get_state().items()}
    other = setup.solver()
    other.set_state(state)
    agree(other.solve(rows, inputs), whole)


def test_points_that_cannot_be_used_are_refused(cell: Setup) -> None:
    phase = cell.points.parameters["phase"].astype(np.float64)
    phase[6, 1, 1] = 0.5
    with pytest.raises(MicrostructureError, match="micro structure 6 is not two-phase"):
        cell.solver(replace(cell.points, parameters={"phase": phase}))
