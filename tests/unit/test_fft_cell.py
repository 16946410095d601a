"""fft_cell beyond the contract: warm starts, guesses, memory, threads, failures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple.config.schema import Fine, Microstructure, Problem
from neuroscale_couple.devices import choose_device
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.fine.fft_cell import FftCell
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import F64, FineAnswer, Points

N, GRID = 12, 16
ROWS = np.arange(N)
IDS = 100 + ROWS


def make(tmp_path: Any, **settings: Any) -> FftCell:
    problem = make_problem(Problem(name="composite", grid=GRID))
    solver = make_fine_solver(Fine(device="cpu", **settings), problem)
    assert isinstance(solver, FftCell)
    phase = generate(Microstructure(), IDS, GRID, tmp_path)
    solver.attach(Points(IDS, np.zeros((N, 2)), np.ones(N), {"phase": phase}))
    return solver


def strain(seed: int = 0, size: float = 0.02) -> F64:
    return np.asarray(np.random.default_rng(seed).standard_normal((N, 3)) * size)


def agree(a: FineAnswer, b: FineAnswer, outputs: float = 1e-6, tangent: float = 3e-5) -> None:
    assert a.converged.all() and b.converged.all()
    error = np.linalg.norm(a.outputs - b.outputs, axis=1) / np.linalg.norm(b.outputs, axis=1)
    assert error.max() < outputs, error.max()
    error = np.linalg.norm(a.tangent - b.tangent, axis=(1, 2)) / np.linalg.norm(b.tangent, axis=(1, 2))
    assert error.max() < tangent, error.max()


def test_a_warm_start_reaches_the_same_answer_with_fewer_iterations(tmp_path: Any) -> None:
    warm, cold = make(tmp_path), make(tmp_path, warm_start_mb=0.0)
    spent = {"warm": 0, "cold": 0}
    for step in range(1, 5):
        x = strain() * step / 4 + 0.0005 * strain(step)
        a, b = warm.solve(ROWS, x), cold.solve(ROWS, x)
        agree(a, b)
        spent["warm"] += int(a.iterations.sum())
        spent["cold"] += int(b.iterations.sum())
        warm.commit()
    assert spent["warm"] < 0.8 * spent["cold"], spent


def test_memory_for_starting_fields_is_capped_slopes_first(tmp_path: Any) -> None:
    field = 2 * 4 * 3 * GRID * GRID * N / 2**20
    reference = make(tmp_path, warm_start_mb=0.0)
    for cap, slopes in ((4.01 * field, True), (3.99 * field, False)):
        solver = make(tmp_path, warm_start_mb=cap)
        assert solver._warm.keeps_fields and solver._warm.keeps_slopes is slopes
        solver.solve(ROWS, strain())
        agree(solver.solve(ROWS, 1.1 * strain()), reference.solve(ROWS, 1.1 * strain()))
    assert not make(tmp_path, warm_start_mb=0.99 * field)._warm.keeps_fields


def test_a_batch_larger_than_the_memory_is_split(tmp_path: Any) -> None:
    whole, split = make(tmp_path), make(tmp_path, memory_mb=1.5)
    assert split.chunk < N <= whole.chunk
    agree(split.solve(ROWS, strain()), whole.solve(ROWS, strain()), 1e-9, 1e-9)


def test_a_guess_changes_the_way_but_not_the_answer(tmp_path: Any) -> None:
    solver, reference = make(tmp_path), make(tmp_path).solve(ROWS, strain())
    problem = solver.problem
    assert isinstance(problem, CellProblem)
    noise = np.random.default_rng(1).standard_normal((N, 3, GRID, GRID))
    agree(solver.solve(ROWS, strain(), 0.05 * noise), reference)  # neither compatible nor of the right mean
    phase = solver._phase.to(torch.float64)
    mean = torch.from_numpy(strain()) @ problem.to_grid.T
    exact = solver.core.solve(phase, mean, torch.zeros(N, 0), None).field.numpy()
    exact[3] = np.nan
    fresh = make(tmp_path).solve(ROWS, strain(), exact + 0.3)
    agree(fresh, reference)
    others = ROWS != 3
    cold = reference.iterations
    assert fresh.iterations[3] == cold[3]
    assert fresh.iterations[others].mean() < 0.6 * cold[others].mean()


def test_a_guess_in_float32_is_taken(tmp_path: Any) -> None:
    guess = np.zeros((N, 3, GRID, GRID), dtype=np.float32)
    agree(make(tmp_path).solve(ROWS, strain(), guess), make(tmp_path).solve(ROWS, strain()), 1e-9, 1e-9)


def test_rollback_restores_the_start_to_the_bit(tmp_path: Any) -> None:
    solver = make(tmp_path)
    solver.solve(ROWS, strain())
    solver.commit()
    first = [solver.solve(ROWS, k * strain()) for k in (1.5, 1.6)]
    solver.rollback()
    second = [solver.solve(ROWS, k * strain()) for k in (1.5, 1.6)]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.outputs, b.outputs) and np.array_equal(a.tangent, b.tangent)


def test_a_failed_solve_never_becomes_a_start(tmp_path: Any) -> None:
    solver = make(tmp_path)
    solver.solve(ROWS, np.full((N, 3), np.nan))
    solver.solve(ROWS, np.full((N, 3), 1e200))
    agree(solver.solve(ROWS, strain()), make(tmp_path).solve(ROWS, strain()), 1e-12, 1e-12)


def test_diagnosis_tells_point_load_and_residual_history(tmp_path: Any) -> None:
    solver = make(tmp_path, max_newton=2, max_cg=1)
    answer = solver.solve(ROWS, strain())
    assert not answer.converged.any()
    x = strain()[4]
    text = solver.diagnosis(4)
    assert text.startswith(f"point 104: strain.xx={x[0]:g}, strain.yy={x[1]:g}, strain.xy={x[2]:g}; relative residual")
    assert text.count("e-") >= 3 and "(tolerance 1e-06, at most 2 Newton and 1 CG iterations)" in text
    solver.solve(ROWS[:1], np.full((1, 3), np.nan))
    assert "after each Newton iteration: none (not finite)" in solver.diagnosis(0)


def test_other_rows_keep_their_diagnosis(tmp_path: Any) -> None:
    solver = make(tmp_path)
    solver.solve(ROWS, strain())
    before = solver.diagnosis(7)
    solver.solve(ROWS[:3], 2.0 * strain()[:3])
    assert solver.diagnosis(7) == before


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_give_the_same_answer_and_keep_their_number(two_threads: None, tmp_path: Any) -> None:
    threaded = make(tmp_path, memory_mb=1.5)
    a = threaded.solve(ROWS, strain())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    agree(a, make(tmp_path, memory_mb=1.5).solve(ROWS, strain()), 1e-12, 1e-9)


def test_an_error_in_a_thread_reaches_the_caller(two_threads: None, tmp_path: Any) -> None:
    solver = make(tmp_path, memory_mb=1.5)
    with pytest.raises(IndexError):
        solver._workers.run(lambda part: [][part.start], [slice(0, 1), slice(1, 2)])


def test_a_ranks_gpu_is_that_of_its_place_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(choose_device("auto")) == "cuda:0"
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert str(choose_device("cuda")) == "cuda:1"
    assert str(choose_device("cpu")) == "cpu"


def test_wrong_devices_and_solvers_are_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"fine\.device: 'gpu' is unknown; use auto, cpu or cuda"):
        make_fine_solver(Fine(device="gpu"), make_problem(Problem(name="composite")))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"fine\.device: cuda was asked for, but torch sees no GPU"):
            make_fine_solver(Fine(device="cuda"), make_problem(Problem(name="composite")))
    with pytest.raises(
        ConfigError, match=r"fine\.solver: 'fft' is unknown; use one of \['fft_cell', 'micro_manager'\]"
    ):
        make_fine_solver(Fine(solver="fft"), make_problem(Problem(name="composite")))
    with pytest.raises(ConfigError, match=r"fft_cell solves periodic cells; 'mine' is not one"):
        FftCell(Fine(), type("Other", (), {"name": "mine"})())


@pytest.mark.needs("cuda")
def test_a_gpu_gives_the_same(tmp_path: Any) -> None:
    problem = make_problem(Problem(name="composite", grid=GRID))
    solver = make_fine_solver(Fine(device="cuda"), problem)
    phase = generate(Microstructure(), IDS, GRID, tmp_path)
    solver.attach(Points(IDS, np.zeros((N, 2)), np.ones(N), {"phase": phase}))
    agree(solver.solve(ROWS, strain()), make(tmp_path).solve(ROWS, strain()), 1e-9, 1e-6)
