"""The Green operator: an orthogonal projection in the metric of its reference medium, on any grid."""

from __future__ import annotations

import io
import math

import pytest
import torch

from neuroscale_couple.physics.periodic import GreenOperator

GRIDS = [(8, 8), (7, 7), (6, 10), (9, 4)]
MEDIA = [(2, (3.0,)), (3, (2.0, 1.5))]
SCHEMES = ["rotated", "fourier"]


def reference(components: int, medium: tuple[float, ...], field: torch.Tensor) -> torch.Tensor:
    """C0 field, written out."""
    if components == 2:
        return medium[0] * field
    lam, mu = medium
    c0 = 2.0 * mu * torch.eye(3, dtype=field.dtype)
    c0[:2, :2] += lam
    return torch.einsum("ij,njyx->niyx", c0, field)


def noise(components: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(2, components, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("components", "medium"), MEDIA)
def test_gamma_c0_is_an_orthogonal_projection_in_the_metric_of_c0(
    components: int, medium: tuple[float, ...], grid: tuple[int, int], scheme: str
) -> None:
    green = GreenOperator(components, medium, scheme)
    a, b = noise(components, grid), noise(components, grid, 1)
    once = green(reference(components, medium, a))
    torch.testing.assert_close(green(reference(components, medium, once)), once, rtol=0, atol=1e-13)
    left = torch.sum(green(a) * b)
    torch.testing.assert_close(left, torch.sum(a * green(b)), rtol=1e-12, atol=1e-12)
    assert torch.sum(a * green(a)) > 0.0
    assert float(once.mean(dim=(-2, -1)).abs().max()) < 1e-15


@pytest.mark.parametrize("grid", [(8, 8), (9, 9)])
def test_fourier_keeps_the_gradient_of_a_smooth_field_and_drops_a_uniform_flux(grid: tuple[int, int]) -> None:
    ny, nx = grid
    y = 2.0 * math.pi * torch.arange(ny, dtype=torch.float64)[:, None] / ny
    x = 2.0 * math.pi * torch.arange(nx, dtype=torch.float64)[None, :] / nx
    gradient = torch.stack([torch.cos(x) * torch.cos(2 * y), -2.0 * torch.sin(x) * torch.sin(2 * y)])[None]
    green = GreenOperator(2, (4.0,), "fourier")
    torch.testing.assert_close(green(4.0 * gradient), gradient, rtol=0, atol=1e-14)
    rotated_quarter = torch.stack([-gradient[:, 1], gradient[:, 0]], dim=1)  # divergence-free
    assert float(green(rotated_quarter + 5.0).abs().max()) < 1e-14


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("components", "medium"), MEDIA)
def test_shifting_the_flux_shifts_the_gradient(components: int, medium: tuple[float, ...], scheme: str) -> None:
    green = GreenOperator(components, medium, scheme)
    tau = noise(components, (8, 6))
    shifted = green(torch.roll(tau, (3, 2), dims=(-2, -1)))
    torch.testing.assert_close(shifted, torch.roll(green(tau), (3, 2), dims=(-2, -1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("components", "medium"), MEDIA)
def test_a_saved_script_gives_the_same_on_other_grids_and_in_float32(
    components: int, medium: tuple[float, ...], scheme: str
) -> None:
    green = GreenOperator(components, medium, scheme)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(green), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for grid in GRIDS:
        tau = noise(components, grid)
        assert torch.equal(loaded(tau), green(tau))
        single = loaded(tau.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), green(tau), rtol=0, atol=1e-5)


def test_wrong_scheme_and_medium_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown scheme 'spectral'; one of \('rotated', 'fourier'\)"):
        GreenOperator(2, (1.0,), "spectral")
    with pytest.raises(ValueError, match=r"components 2 does not go with reference \(1.0, 2.0\)"):
        GreenOperator(2, (1.0, 2.0))
