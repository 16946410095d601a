"""Heads: the potential's closed forms against autograd, its convexity, and compatible fields."""

from __future__ import annotations

import torch
from torch import Tensor

from neuroscale_couple.operator.heads import CoarseHead, potential


def parameters(n: int, m: int, k: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    factor = torch.randn(n, m, k, c, c, dtype=torch.float64)
    power = 0.5 + 0.5 * torch.rand(n, m, k, dtype=torch.float64)
    return factor @ factor.transpose(-2, -1), torch.rand(n, m, k, dtype=torch.float64) + 0.1, power


def test_flux_and_tangent_are_the_derivatives_of_the_energy() -> None:
    form, amplitude, power = parameters(3, 2, 4, 3)
    x = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    energy, flux, tangent = potential(form, amplitude, power, x)
    for member in range(2):
        (gradient,) = torch.autograd.grad(energy[:, :, member].sum(), x, create_graph=True)
        torch.testing.assert_close(flux[:, :, member], gradient)
        for i in range(3):
            (row,) = torch.autograd.grad(gradient[:, :, i].sum(), x, retain_graph=True)
            torch.testing.assert_close(tangent[:, :, member, i], row)


def test_potential_is_zero_at_zero_and_convex() -> None:
    form, amplitude, power = parameters(4, 1, 3, 3)
    power[:, :, 0] = 0.5
    x = 10.0 * torch.randn(4, 50, 3, dtype=torch.float64)
    _, _, tangent = potential(form, amplitude, power, x)
    assert float(torch.linalg.eigvalsh(tangent).min()) > 0.0
    energy, flux, _ = potential(form, amplitude, power, torch.zeros(4, 1, 3, dtype=torch.float64))
    assert float(energy.abs().max()) == 0.0
    assert float(flux.abs().max()) == 0.0


def head(conditions: int) -> tuple[CoarseHead, Tensor, Tensor]:
    torch.manual_seed(2)
    made = CoarseHead((2, 3, 2, conditions), 4, 5, 8).double()
    with torch.no_grad():
        made.third.weight *= 10.0
    forms = torch.randn(6, 4, 2, 2, dtype=torch.float64)
    made.requires_grad_(False)
    base, code = made(torch.randn(2, 6, 5, dtype=torch.float64), forms @ forms.transpose(-2, -1))
    return made, base, code


def test_parameters_are_admissible_whatever_the_network_says() -> None:
    made, base, code = head(1)
    factors, amplitude, power = made.parameters_at(base, code, torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None])
    assert float(amplitude.min()) > 0.0
    assert float(power.min()) >= 0.5
    assert float(power.max()) <= 1.0
    assert float(torch.triu(factors, 1).abs().max()) == 0.0


def test_condition_slope_is_the_derivative_of_the_flux() -> None:
    made, base, code = head(1)
    x = torch.randn(6, 2, dtype=torch.float64)

    def flux(condition: Tensor) -> Tensor:
        factors, amplitude, power = made.parameters_at(base, code, condition)
        return potential(factors @ factors.transpose(-2, -1), amplitude, power, x[:, None])[1][:, 0]

    condition = torch.rand(6, 1, dtype=torch.float64)
    step = 1e-6
    slope = (flux(condition + step) - flux(condition - step)) / (2.0 * step)
    torch.testing.assert_close(made.condition_slope(base, code, condition, x, 0), slope, rtol=1e-6, atol=1e-8)


def test_the_physical_guess_dominates_an_untrained_head() -> None:
    """Before training L_k is close to R_k, the Cholesky factor of a mixture of the encoder's forms."""
    torch.manual_seed(3)
    made = CoarseHead((2, 3, 3, 0), 4, 5, 8).requires_grad_(False)
    forms = torch.eye(3).expand(7, 4, 3, 3)
    base, code = made(torch.randn(2, 7, 5), forms)
    factors, _, _ = made.parameters_at(base, code, torch.zeros(7, 0))
    assert float((factors - base).norm() / base.norm()) < 0.2
