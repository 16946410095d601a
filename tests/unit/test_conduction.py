"""Conduction against exact answers: laminate, checkerboard, Keller, Hashin-Shtrikman, and its own tangent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple.config.schema import Fine, Problem
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.physics import make_problem
from neuroscale_couple.values import F64, FineAnswer, Points

SCHEMES = ["rotated", "fourier"]


def solve(phase: Any, inputs: Any, scheme: str = "rotated", tolerance: float = 1e-11, **own: Any) -> FineAnswer:
    """Fine answers of conduction on square images [n, y, x] for inputs [n, 3]."""
    phase, inputs = np.asarray(phase, dtype=np.uint8), np.asarray(inputs, dtype=np.float64)
    problem = make_problem(Problem(name="conduction", grid=phase.shape[-1], scheme=scheme, **own))
    solver = make_fine_solver(Fine(tolerance=tolerance, device="cpu"), problem)
    n = len(inputs)
    solver.attach(Points(np.arange(n), np.zeros((n, 2)), np.ones(n), {"phase": phase}))
    return solver.solve(np.arange(n), inputs)


def phases(k_m: float, k_i: float, slope_m: float = 0.0, slope_i: float = 0.0) -> dict[str, Any]:
    return {"matrix": {"k": k_m, "slope": slope_m}, "inclusion": {"k": k_i, "slope": slope_i}}


def conductivity(phase: Any, scheme: str, k_m: float, k_i: float) -> F64:
    """Effective tensor [2, 2] of one image by two load cases."""
    answer = solve(np.stack([phase, phase]), [[1.0, 0.0, 300.0], [0.0, 1.0, 300.0]], scheme, **phases(k_m, k_i))
    assert answer.converged.all()
    np.testing.assert_allclose(answer.tangent[0, :, :2], answer.outputs.T, rtol=1e-4, atol=1e-8)
    return np.asarray(answer.outputs.T)


def layers(grid: int) -> Any:
    """Layers across x, inclusion share 3/n, widths 1 and 2."""
    phase = np.zeros((grid, grid), dtype=np.uint8)
    phase[:, 1] = phase[:, 3:5] = 1
    return phase


@pytest.mark.parametrize(("scheme", "grid"), [("rotated", 8), ("rotated", 9), ("fourier", 9)])
def test_laminate_has_the_harmonic_mean_across_and_the_arithmetic_mean_along(scheme: str, grid: int) -> None:
    """Exact for `rotated` on every grid and for `fourier` on odd grids (even ones drop the Nyquist mode)."""
    share = 3 / grid
    k = conductivity(layers(grid), scheme, 1.0, 20.0)
    across, along = 1.0 / (share / 20.0 + 1.0 - share), share * 20.0 + 1.0 - share
    np.testing.assert_allclose(k, np.diag([across, along]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_checkerboard_tends_to_the_geometric_mean(scheme: str) -> None:
    exact, errors = math.sqrt(1.0 * 10.0), []
    for grid in (8, 16, 32, 64):
        half = grid // 2
        board = np.kron([[1, 0], [0, 1]], np.ones((half, half), dtype=np.uint8))
        k = conductivity(board, scheme, 1.0, 10.0)
        np.testing.assert_allclose(k[0, 0], k[1, 1], rtol=1e-8)
        errors.append(abs(k[0, 0] / exact - 1.0))
    assert errors == sorted(errors, reverse=True), errors
    assert errors[-1] < 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
def test_keller_relation_is_exact_on_odd_grids(scheme: str) -> None:
    phase = (np.random.default_rng(3).random((15, 15)) < 0.4).astype(np.uint8)
    first, second = conductivity(phase, scheme, 2.0, 30.0), conductivity(phase, scheme, 30.0, 2.0)
    np.testing.assert_allclose(np.linalg.det(first), first[0, 0] * first[1, 1] - first[0, 1] ** 2, rtol=1e-6)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(first @ turn @ second @ turn.T, 60.0 * np.eye(2), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_square_inclusion_keeps_the_hashin_shtrikman_bounds(scheme: str) -> None:
    k1, k2 = 1.0, 10.0
    for width in (3, 9, 15):
        phase = np.zeros((21, 21), dtype=np.uint8)
        phase[:width, :width] = 1
        f2 = width**2 / 21**2
        lower = k1 + f2 / (1.0 / (k2 - k1) + (1.0 - f2) / (2.0 * k1))
        upper = k2 + (1.0 - f2) / (1.0 / (k1 - k2) + f2 / (2.0 * k2))
        k = conductivity(phase, scheme, k1, k2)
        np.testing.assert_allclose(k, k[0, 0] * np.eye(2), rtol=1e-8, atol=1e-8)
        assert lower < k[0, 0] < upper


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_smooth_inclusion_converges_under_refinement(scheme: str) -> None:
    """A disc of share 0.25, contrast 10, against the series of the square array."""
    errors = []
    for grid in (15, 45, 135):
        x = (np.arange(grid) + 0.5) / grid - 0.5
        disc = x[:, None] ** 2 + x[None, :] ** 2 < 0.25 / math.pi
        exact = _square_array(float(disc.mean()), 10.0)  # of the share that the pixels give
        errors.append(abs(conductivity(disc, scheme, 1.0, 10.0)[0, 0] / exact - 1.0))
    assert errors[2] < errors[1] < errors[0], errors
    assert errors[2] < 0.005


def _square_array(f: float, contrast: float) -> float:
    """Effective conductivity of a square array of discs in a matrix of k = 1.

    Source: Perrins, McKenzie & McPhedran 1979, eq. (14), terms up to f^8.
    """
    t = (contrast + 1.0) / (contrast - 1.0)
    return 1.0 + 2.0 * f / (t - f - 0.305827 * f**4 * t / (t * t - 1.402958 * f**8) - 0.013362 * f**8 / t)


def test_tangent_agrees_with_finite_differences_by_gradient_and_temperature() -> None:
    phase = (np.random.default_rng(0).random((3, 12, 12)) < 0.3).astype(np.uint8)
    inputs = np.array([[1.0, 0.3, 340.0], [-0.4, 2.0, 250.0], [0.0, 0.7, 300.0]])
    own = phases(1.0, 15.0, 2e-3, -1e-3)
    tangent = solve(phase, inputs, **own).tangent
    for column, h in ((0, 1e-4), (1, 1e-4), (2, 1e-2)):
        up, down = inputs.copy(), inputs.copy()
        up[:, column] += h
        down[:, column] -= h
        slope = (solve(phase, up, **own).outputs - solve(phase, down, **own).outputs) / (2.0 * h)
        error = np.linalg.norm(tangent[:, :, column] - slope, axis=1) / np.linalg.norm(slope, axis=1)
        assert error.max() < 2e-5, (column, error)


def test_one_phase_gives_the_law_exactly_with_the_sign_of_the_gradient() -> None:
    images = np.stack([np.zeros((8, 8)), np.ones((8, 8))])
    inputs = [[2.0, -1.0, 310.0], [2.0, -1.0, 310.0]]
    answer = solve(images, inputs, **phases(3.0, 7.0, 0.01, -0.02))
    k = np.array([3.0 * 1.1, 7.0 * 0.8])
    np.testing.assert_allclose(answer.outputs, k[:, None] * np.array([2.0, -1.0]), rtol=1e-13)
    np.testing.assert_allclose(answer.tangent[:, :, 2], np.array([[0.06, -0.03], [-0.28, 0.14]]), rtol=1e-12)
    assert (answer.iterations == 0).all()


def test_a_temperature_at_which_a_phase_would_not_conduct_is_reported() -> None:
    phase = np.stack([np.eye(8), np.zeros((8, 8))])
    answer = solve(phase, [[1.0, 0.0, 1400.0]] * 2, **phases(1.0, 5.0, 0.0, -1e-3))
    assert list(answer.converged) == [False, True]


def test_the_flux_derivative_by_temperature_is_that_of_autograd() -> None:
    problem: Any = make_problem(Problem(name="conduction", **phases(1.0, 15.0, 2e-3, -1e-3)))
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=generator)
    phase = torch.rand(2, 4, 4, dtype=torch.float64, generator=generator)
    temperature = torch.full((2, 1), 320.0, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(lambda c: problem.law.flux(e, phase, c).sum(dim=0), temperature)
    got = problem.law.flux_by_condition(e, phase, temperature)[:, :, 0]
    torch.testing.assert_close(got, exact[..., 0].permute(3, 0, 1, 2), rtol=1e-12, atol=1e-14)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"problem\.matrix\.k: Input should be greater than 0, got -1"):
        make_problem(Problem(name="conduction", matrix={"k": -1}))
    with pytest.raises(ConfigError, match=r"problem\.inclusions: unknown key; did you mean 'inclusion'\?"):
        make_problem(Problem(name="conduction", inclusions={"k": 1}))
    with pytest.raises(ConfigError, match=r"problem\.name: 'conductor' is unknown; use one of \['composite', 'conduct"):
        make_problem(Problem(name="conductor"))
