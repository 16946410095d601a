"""The torch operators: registered lazily, right under autograd, opcheck and torch.compile."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple import kernels
from neuroscale_couple.kernels import CellMap, torch_ops

CELLS = CellMap(np.array([0, 2, 2, 5]), np.array([4, 0, 1, 2, 6]), np.linspace(1.0, 2.0, 7))


def random(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(len(shape)).normal(size=shape)).requires_grad_(grad)


def conserve_arguments() -> tuple[torch.Tensor, ...]:
    volumes = torch.linspace(1.0, 2.0, 6, dtype=torch.float64)
    variance = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    return random(6, 2), torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True), volumes, variance


@pytest.mark.parametrize("factors", [[2], [2, 2], [3, 2]])
@pytest.mark.parametrize("volume", [False, True])
def test_gradient_of_the_pyramid(factors: list[int], volume: bool) -> None:
    side = int(np.prod(factors))
    field = random(1, 2, *([side] if volume else []), side, 2 * side)
    assert torch.autograd.gradcheck(lambda f: tuple(kernels.coarsen_pyramid(f, factors)), (field,))
    chain = kernels.coarsen_pyramid(field, factors, "torch")
    for got, expected in zip(kernels.coarsen_pyramid(field, factors), chain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-15)


def test_the_pyramid_spreads_as_its_adjoint() -> None:
    """<C^T y, x> = <y, C x>."""
    x, y = random(2, 3, 6, 12, grad=False), random(2, 3, 2, 4, grad=False)
    (coarse,) = kernels.coarsen_pyramid(x, [3])
    assert (torch_ops.spread(y, 3) * x).sum().item() == pytest.approx((y * coarse).sum().item(), rel=1e-13)


@pytest.mark.parametrize("mean", [True, False])
def test_gradients_of_cells(mean: bool) -> None:
    fine, coarse = random(7, 2), random(3, 2)
    assert torch.autograd.gradcheck(lambda f: kernels.coarsen_cells(f, CELLS, mean=mean), (fine,))
    assert torch.autograd.gradgradcheck(lambda f: kernels.coarsen_cells(f, CELLS, mean=mean), (fine,))
    assert torch.autograd.gradcheck(lambda c: kernels.refine_cells(c, CELLS, mean=mean), (coarse,))


def test_gradient_of_conserve() -> None:
    values, totals, volumes, variance = conserve_arguments()
    assert torch.autograd.gradcheck(lambda y, b: torch_ops.conserve(y, b, volumes, variance), (values, totals))
    free = torch.linspace(0.5, 2.0, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: torch_ops.conserve(values, totals, volumes, v), (free,))
    changed = torch_ops.conserve(values, totals, volumes, variance)
    torch.testing.assert_close(volumes @ changed, totals)
    exact = torch.zeros(6, dtype=torch.float64)
    torch_ops.conserve(values, totals, volumes, exact).sum().backward()
    assert values.grad is not None and (values.grad == 1.0).all()


OPERATORS: dict[str, tuple[Any, ...]] = {
    "coarsen_pyramid": (random(2, 1, 4, 4), [2, 2]),
    "coarsen_cells": (random(7, 2), *CELLS.on(random(1, 1, grad=False))),
    "refine_cells": (random(3, 2), *CELLS.on(random(1, 1, grad=False)), 7),
    "conserve": conserve_arguments(),
}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_opcheck(name: str) -> None:
    """Schema, fake tensors, autograd registration and AOT dispatch, as torch itself checks them."""
    torch.library.opcheck(getattr(torch.ops.neuroscale, name).default, OPERATORS[name])


def test_whole_functions_compile_without_a_break() -> None:
    """One graph, with the gradient through it; the eager backend needs no compiler on this machine."""

    def loss(field: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        levels = kernels.coarsen_pyramid(field, 2)
        return (levels[1] ** 2).sum() + (kernels.coarsen_cells(fine, CELLS) ** 3).sum()

    field, fine = random(2, 1, 8, 8), random(7, 2)
    expected = torch.autograd.grad(loss(field, fine), (field, fine))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(field, fine), (field, fine))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_torch_is_not_imported_for_arrays() -> None:
    program = """
import sys
import numpy as np
import neuroscale_couple
from neuroscale_couple import kernels
kernels.coarsen_pyramid(np.ones((1, 1, 4, 4)), 2)
kernels.coarsen_cells(np.ones((2, 1)), kernels.CellMap(np.array([0, 2]), np.array([0, 1]), np.ones(2)))
assert "torch" not in sys.modules
import torch
kernels.coarsen_pyramid(torch.ones(1, 1, 4, 4), 2)
assert "neuroscale_couple.kernels.torch_ops" not in sys.modules
kernels.coarsen_pyramid(torch.ones(1, 1, 4, 4, requires_grad=True), 2)
assert "neuroscale_couple.kernels.torch_ops" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
