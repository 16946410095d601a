"""The plane-strain composite: its law, exact laminates, Hill-Mandel, tangent and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.optimize import brentq

from neuroscale_couple.config.schema import Fine, Microstructure, Problem
from neuroscale_couple.errors import ConfigError, MicrostructureError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.fine.fft_cell import FftCell
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.composite import Composite
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import F64, U8, Points

SCHEMES = ["rotated", "fourier"]
NONE = torch.zeros(0)


class EveryCall(torch.nn.Module):
    """All methods of a law in one forward, as a module that contains a law would call them."""

    def __init__(self, law: torch.nn.Module) -> None:
        super().__init__()
        self.law = law

    def forward(self, e: torch.Tensor, phase: torch.Tensor, condition: torch.Tensor) -> list[torch.Tensor]:
        return [
            self.law.energy(e, phase, condition),
            self.law.flux(e, phase, condition),
            self.law.moduli(e, phase, condition),
            self.law.flux_by_condition(e, phase, condition),
        ]


def cells(phase: Any, scheme: str = "rotated", tolerance: float = 1e-11, **own: Any) -> tuple[Composite, FftCell]:
    """The problem and an attached solver for square images [n, y, x]."""
    problem = make_problem(Problem(name="composite", grid=phase.shape[-1], scheme=scheme, **own))
    solver = make_fine_solver(Fine(tolerance=tolerance, device="cpu"), problem)
    assert isinstance(problem, Composite) and isinstance(solver, FftCell)
    n = len(phase)
    solver.attach(Points(np.arange(n), np.zeros((n, 2)), np.ones(n), {"phase": phase}))
    return problem, solver


def images(tmp_path: Any, n: int, grid: int = 16, kind: Any = "blobs", share: tuple[float, float] = (0.1, 0.6)) -> U8:
    return generate(Microstructure(kind=kind, volume_fraction=share), np.arange(n), grid, tmp_path)


def strains(n: int, size: float, seed: int = 0) -> F64:
    return np.asarray(np.random.default_rng(seed).standard_normal((n, 3)) * size)


def random_field(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e = 0.02 * torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    return e, torch.rand(2, 4, 5, dtype=torch.float64, generator=generator)


def test_flux_and_moduli_are_derivatives_of_the_energy() -> None:
    law: Any = make_problem(Problem(name="composite")).law  # type: ignore[attr-defined]
    e, phase = random_field()
    e.requires_grad_(True)
    flux = law.flux(e, phase, NONE)
    (gradient,) = torch.autograd.grad(law.energy(e, phase, NONE).sum(), e, create_graph=True)
    torch.testing.assert_close(flux, gradient, rtol=1e-12, atol=1e-12)
    moduli = law.moduli(e, phase, NONE)
    for i in range(3):
        (row,) = torch.autograd.grad(flux[:, i].sum(), e, retain_graph=True)
        torch.testing.assert_close(moduli[:, i], row, rtol=1e-11, atol=1e-8)
    assert float(torch.linalg.eigvalsh(moduli.detach().permute(0, 3, 4, 1, 2)).min()) > 0.0


@pytest.mark.parametrize("name", ["composite", "conduction"])
def test_a_scripted_law_gives_the_same(name: str) -> None:
    law: Any = make_problem(Problem(name=name)).law  # type: ignore[attr-defined]
    e, phase = random_field()
    condition = torch.full((2, 1), 310.0, dtype=torch.float64)
    e = e if name == "composite" else e[:, :2]
    module = EveryCall(law)
    for got, expected in zip(torch.jit.script(module)(e, phase, condition), module(e, phase, condition), strict=True):
        assert torch.equal(got, expected)


def test_one_phase_gives_the_law_exactly() -> None:
    phase = np.stack([np.zeros((8, 8), dtype=np.uint8), np.ones((8, 8), dtype=np.uint8)])
    problem, solver = cells(phase)
    strain = np.array([[0.012, -0.003, 0.02]] * 2)
    answer = solver.solve(np.arange(2), strain)
    uniform = (torch.from_numpy(strain) @ problem.to_grid.T)[:, :, None, None]
    share = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None]
    np.testing.assert_allclose(answer.outputs, problem.outputs_of(uniform, share, torch.from_numpy(strain)), rtol=1e-13)
    moduli = problem.law.moduli(uniform, share, NONE)[..., 0, 0]
    exact = problem.to_grid.T @ moduli @ problem.to_grid
    np.testing.assert_allclose(answer.tangent, exact, rtol=1e-12, atol=1e-9)
    nu, young = 0.2, 50000.0  # plane strain, inclusion
    stiff = young / ((1 + nu) * (1 - 2 * nu)) * np.array([[1 - nu, nu, 0], [nu, 1 - nu, 0], [0, 0, 0.5 - nu]])
    np.testing.assert_allclose(answer.tangent[1], stiff, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("scheme", "grid"), [("rotated", 8), ("rotated", 9), ("fourier", 9)])
def test_linear_laminate_is_exact(scheme: str, grid: int) -> None:
    """Exact for `rotated` on every grid and for `fourier` on odd grids (even ones drop the Nyquist mode)."""
    phase = np.zeros((1, grid, grid), dtype=np.uint8)
    phase[:, :, 1] = phase[:, :, 3:5] = 1
    problem, solver = cells(phase, scheme, matrix={"exponent": 1.0})
    tangent = solver.solve(np.arange(1), np.array([[0.01, 0.0, 0.01]])).tangent[0]
    law, f = problem.law, 3 / grid
    wave = (law.kappa_i + 4 / 3 * law.mu_i, law.kappa_m + 4 / 3 * law.mu_m)
    np.testing.assert_allclose(tangent[0, 0], 1.0 / (f / wave[0] + (1 - f) / wave[1]), rtol=1e-6)
    np.testing.assert_allclose(tangent[2, 2], 1.0 / (f / law.mu_i + (1 - f) / law.mu_m), rtol=1e-6)


@pytest.mark.parametrize(("scheme", "grid"), [("rotated", 8), ("fourier", 9)])
def test_nonlinear_laminate_in_shear_carries_the_stress_that_both_layers_share(scheme: str, grid: int) -> None:
    phase = np.zeros((1, grid, grid), dtype=np.uint8)
    phase[:, :, 1] = phase[:, :, 3:5] = 1
    problem, solver = cells(phase, scheme)
    law, f, gamma = problem.law, 3 / grid, 0.05

    def matrix_stress(g: float) -> float:
        return law.mu_m * g * float((1.0 + g * g / (3.0 * law.e0**2)) ** (law.p - 1.0))

    def gap(g: float) -> float:
        return matrix_stress(g) - law.mu_i * (gamma - (1 - f) * g) / f

    exact = matrix_stress(brentq(gap, 0.0, gamma / (1 - f), xtol=1e-15))
    answer = solver.solve(np.arange(1), np.array([[0.0, 0.0, gamma]]))
    np.testing.assert_allclose(answer.outputs[0], [0.0, 0.0, exact], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hill_mandel_holds_to_round_off(scheme: str, tmp_path: Any) -> None:
    phase = images(tmp_path, 4)
    problem, solver = cells(phase, scheme, tolerance=1e-12)
    strain = torch.from_numpy(strains(4, 0.02))
    mean = strain @ problem.to_grid.T
    solved = solver.core.solve(torch.from_numpy(phase).double(), mean, torch.zeros(4, 0), None)
    assert solved.converged.all()
    work = (solved.flux * solved.field).sum(dim=1).mean(dim=(-2, -1))
    outer = (solved.flux.mean(dim=(-2, -1)) * solved.field.mean(dim=(-2, -1))).sum(dim=1)
    torch.testing.assert_close(work, outer, rtol=1e-12, atol=0)
    torch.testing.assert_close(solved.field.mean(dim=(-2, -1)), mean, rtol=0, atol=1e-16)
    residual = problem.residual(solved.field, torch.from_numpy(phase).double(), strain, 0)
    assert float(residual.abs().max()) < 1e-12


def test_tangent_is_symmetric_and_agrees_with_finite_differences(tmp_path: Any) -> None:
    phase = images(tmp_path, 6)
    _, solver = cells(phase)
    rows, strain, h = np.arange(6), strains(6, 0.02), 1e-6
    tangent = solver.solve(rows, strain).tangent
    assert np.array_equal(tangent, tangent.transpose(0, 2, 1))
    slope = np.empty_like(tangent)
    for j in range(3):
        step = h * np.eye(3)[j]
        up, down = solver.solve(rows, strain + step).outputs, solver.solve(rows, strain - step).outputs
        slope[:, :, j] = (up - down) / (2.0 * h)
    error = np.linalg.norm(tangent - slope, axis=(1, 2)) / np.linalg.norm(slope, axis=(1, 2))
    assert error.max() < 1e-5, error


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [1e-5, 0.02, 1.0])
def test_energy_and_tangent_keep_their_bounds_for_all_shares(size: float, exponent: float, tmp_path: Any) -> None:
    phase = images(tmp_path, 16, 12, "voronoi", (0.0, 1.0))
    problem, solver = cells(phase, tolerance=1e-7, matrix={"exponent": exponent})
    strain = strains(16, size)
    answer = solver.solve(np.arange(16), strain)
    assert answer.converged.all()
    lower, upper = problem.bounds(strain, phase)
    energy = problem.effective_energy(strain, answer.outputs)
    slack = 1e-6 * energy
    assert (lower <= energy + slack).all()
    assert (energy <= upper + slack).all()
    low, high = problem.tangent_bounds(strain, phase)
    small = 1e-6 * np.trace(high, axis1=1, axis2=2)
    assert (np.linalg.eigvalsh(answer.tangent - low)[:, 0] > -small).all()
    assert (np.linalg.eigvalsh(high - answer.tangent)[:, 0] > -small).all()


def test_lower_energy_bound_is_the_minimum_over_both_phase_strains() -> None:
    """The bound is attained by a laminate in shear, whose layers are uniformly strained."""
    phase = np.zeros((1, 8, 8), dtype=np.uint8)
    phase[:, :, :3] = 1
    problem, solver = cells(phase)
    strain = np.array([[0.0, 0.0, 0.05]])
    steps = np.linspace(0.0, 1.0, 41)[1:]
    work = [problem.effective_energy(s * strain, solver.solve(np.arange(1), s * strain).outputs)[0] / s for s in steps]
    energy = float(trapezoid(np.concatenate([[0.0], work]), np.concatenate([[0.0], steps])))
    lower, _ = problem.bounds(strain, phase)
    np.testing.assert_allclose(lower / (2.0 * problem.law.p), energy, rtol=1e-3)


def test_wrong_settings_and_parameters_are_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"problem\.matrix\.nuu: unknown key; did you mean 'nu'\?"):
        make_problem(Problem(name="composite", matrix={"nuu": 0.3}))
    with pytest.raises(ConfigError, match=r"problem\.inclusion\.nu: Input should be less than 0\.5, got 0\.5"):
        make_problem(Problem(name="composite", inclusion={"nu": 0.5}))
    with pytest.raises(ConfigError, match=r"problem\.matrix\.E: Input should be a valid number.*got '5 GPa'"):
        make_problem(Problem(name="composite", matrix={"E": "5 GPa"}))
    with pytest.raises(
        ConfigError, match=r"problem\.name: cannot load 'nowhere\.at_all:Cell' .*is it on the Python path"
    ):
        make_problem(Problem(name="nowhere.at_all:Cell"))
    problem = make_problem(Problem(name="composite", grid=16))
    with pytest.raises(MicrostructureError, match=r"no parameter 'phase' \[point, y, x\]; they have \['porosity'\]"):
        problem.check_parameters({"porosity": np.zeros(3)})
    phase = images(tmp_path, 3).astype(np.float64)
    with pytest.raises(MicrostructureError, match=r"shape \(3, 8, 8\), expected \[point, 16, 16\]"):
        problem.check_parameters({"phase": phase[:, ::2, ::2]})
    phase[2, 5, 7] = 0.5
    with pytest.raises(
        MicrostructureError, match=r"micro structure 2 is not two-phase: it holds 3 values \(0, 0\.5, 1\)"
    ):
        problem.check_parameters({"phase": phase})
    phase[1, 4, 3] = np.nan
    with pytest.raises(MicrostructureError, match=r"micro structure 1: pixel \[4, 3\] is not finite \(nan\)"):
        problem.check_parameters({"phase": phase})
