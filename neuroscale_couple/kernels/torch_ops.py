"""The kernels as torch operators, with autograd and under torch.compile: `torch.ops.neuroscale.*`.

Importing this module registers them; nothing in the package imports it before a tensor asks for it.
Collective: no.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neuroscale_couple.kernels.coarsen_cells import coarsen_by, refine_by
from neuroscale_couple.kernels.coarsen_pyramid import coarsen_pyramid, shapes_of
from neuroscale_couple.kernels.conserve import Balance, Plan
from neuroscale_couple.kernels.conserve import conserve as restore

# --- coarsen_pyramid ------------------------------------------------------------------------------------------


@torch.library.custom_op("neuroscale::coarsen_pyramid", mutates_args=())
def pyramid(field: Tensor, factors: Sequence[int]) -> list[Tensor]:
    """Volume means of a field [n, c, (z,) y, x] on all coarser levels, see `kernels.coarsen_pyramid`."""
    return list(coarsen_pyramid(field.detach(), list(factors)))


@pyramid.register_fake
def _(field: Tensor, factors: Sequence[int]) -> list[Tensor]:
    return [field.new_empty(shape) for shape in shapes_of(tuple(field.shape), factors)]


def _pyramid_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.factors = inputs[1]


def _pyramid_backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, None]:
    """From the coarsest level down: a cell's gradient, and an even share of the one above it."""
    gradient = None
    for level in reversed(range(len(ctx.factors))):
        whole = grads[level] if gradient is None else gradient + grads[level]
        gradient = spread(whole, ctx.factors[level])
    assert gradient is not None
    return gradient, None


def spread(coarse: Tensor, k: int) -> Tensor:
    """The transpose of one level: each cell's value / k^d on its k^d cells. coarse: [n, c, (z,) y, x]."""
    d = coarse.ndim - 2
    shape = tuple(coarse.shape)
    split = shape[:2] + tuple(n for side in shape[2:] for n in (side, 1))
    wide = shape[:2] + tuple(n for side in shape[2:] for n in (side, k))
    share: Tensor = (coarse / k**d).reshape(split).expand(wide)
    return share.reshape(shape[:2] + tuple(k * side for side in shape[2:]))


pyramid.register_autograd(_pyramid_backward, setup_context=_pyramid_context)

# --- coarsen_cells and its transpose --------------------------------------------------------------------------


@torch.library.custom_op("neuroscale::coarsen_cells", mutates_args=())
def coarsen_cells(fine: Tensor, offsets: Tensor, cells: Tensor, weights: Tensor | None, scale: Tensor | None) -> Tensor:
    """coarse[c, k] = scale[c] sum weights[e] fine[cells[e], k], see `kernels.coarsen_cells`; the map is as it is."""
    coarse: Tensor = coarsen_by(fine.detach(), offsets, cells, weights, scale)
    return coarse


@coarsen_cells.register_fake
def _(fine: Tensor, offsets: Tensor, cells: Tensor, weights: Tensor | None, scale: Tensor | None) -> Tensor:
    return fine.new_empty((offsets.shape[0] - 1, fine.shape[1]))


@torch.library.custom_op("neuroscale::refine_cells", mutates_args=())
def refine_cells(
    coarse: Tensor, offsets: Tensor, cells: Tensor, weights: Tensor | None, scale: Tensor | None, n: int
) -> Tensor:
    """fine[cells[e], k] = weights[e] scale[c] coarse[c, k], see `kernels.refine_cells`; the map is as it is."""
    fine: Tensor = refine_by(coarse.detach(), offsets, cells, weights, scale, n)
    return fine


@refine_cells.register_fake
def _(coarse: Tensor, offsets: Tensor, cells: Tensor, weights: Tensor | None, scale: Tensor | None, n: int) -> Tensor:
    return coarse.new_empty((n, coarse.shape[1]))


def _map_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.n = inputs[0].shape[0]
    ctx.map = inputs[1:5]


def _coarsen_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return refine_cells(grad.contiguous(), *ctx.map, ctx.n), None, None, None, None


def _refine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return coarsen_cells(grad.contiguous(), *ctx.map), None, None, None, None, None


coarsen_cells.register_autograd(_coarsen_backward, setup_context=_map_context)
refine_cells.register_autograd(_refine_backward, setup_context=_map_context)

# --- conserve -------------------------------------------------------------------------------------------------


@torch.library.custom_op("neuroscale::conserve", mutates_args=())
def conserve(values: Tensor, totals: Tensor, volumes: Tensor, variance: Tensor) -> Tensor:
    """The values whose sums are restored by the smallest change, see `kernels.conserve`.

    y' = y + V v (B - sum V y) / sum V^2 v, per column; differentiable in values, totals and variance

    values: float32 or float64 [n, k]; totals: the same dtype [k]; volumes, variance: the same dtype [n]
    """
    changed = values.detach().clone()
    columns = torch.arange(values.shape[1], device=values.device)
    balance = Balance(Plan.of(len(values)), changed, columns, volumes.detach(), variance.detach())
    restore(balance, totals.detach().cpu().double().numpy()[None])
    return changed


@conserve.register_fake
def _(values: Tensor, totals: Tensor, volumes: Tensor, variance: Tensor) -> Tensor:
    return torch.empty_like(values)


def _conserve_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _conserve_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, totals, volumes, variance = ctx.saved_tensors
    weight = volumes * variance
    stiffness = volumes @ weight
    # where all values are exact, nothing is changed
    inverse = torch.where(stiffness > 0.0, 1.0 / stiffness.clamp_min(torch.finfo(stiffness.dtype).tiny), 0.0)
    share = (weight @ grad) * inverse
    multiplier = (totals - volumes @ values) * inverse
    to_variance = volumes * ((grad - volumes[:, None] * share) @ multiplier)
    return grad - volumes[:, None] * share, share, None, to_variance


conserve.register_autograd(_conserve_backward, setup_context=_conserve_context)
