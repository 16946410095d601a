"""Coarse-graining pyramid: volume mean, variance and sum of structured fields on all coarser levels."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from neuroscale_couple.kernels import arrays
from neuroscale_couple.kernels.backend import compiled, has_compiled, has_cuda

if TYPE_CHECKING:
    import torch

    Array = TypeVar("Array", npt.NDArray[Any], torch.Tensor)

Backend = Literal["auto", "compiled", "reference", "numpy", "torch"]
BACKENDS = ("auto", "compiled", "reference", "numpy", "torch")
MAX_LEVELS = 30
MAX_FACTOR = 256


class Moments(NamedTuple):
    """Per level: mean, variance of the fine values in a cell, and their sum; None where it was not asked for."""

    mean: tuple[Any, ...]
    variance: tuple[Any, ...] | None
    total: tuple[Any, ...] | None


def coarsen_pyramid(
    field: Array, levels: int | Sequence[int], backend: Backend = "auto", out: Sequence[Array] | None = None
) -> tuple[Array, ...]:
    """Volume means of a field on coarser and coarser grids, in one pass.

    c_0 = field, c_s[i] = k_s^-d sum of the k_s^d cells of c_(s-1) in cell i

    field: float32 or float64 [points, components, y, x] or [points, components, z, y, x], contiguous; NumPy or torch
    levels: number of coarser grids with half the cells per side each, or the factors k_1, k_2 ... (2 to 256) of all
        levels; every side must be a positive multiple of their product
    backend: `auto` takes the compiled kernel where there is one, through a torch operator for tensors that require
        grad. `compiled`, `reference` (plain loops in C++) and `numpy` agree bit for bit, `torch` to round-off.
    out: arrays of all levels to write into, with the shapes of the result; not for tensors that require grad

    Returns: level s at [s - 1], of the kind, dtype and unit of `field`.
    Raises: TypeError (kind or dtype), ValueError (shape, strides, levels, backend), each with got and expected.
    """
    if out is not None and _directly(field, levels, backend, out):
        return tuple(out)
    factors, tensor = _check(field, levels, backend)
    chosen = _choose(field, tensor) if backend == "auto" else backend
    means: tuple[Array, ...]
    given = None if out is None else Moments(tuple(out), None, None)
    if chosen == "operator":
        _refuse_out(given)
        from neuroscale_couple.kernels.torch_ops import pyramid as operator

        means = tuple(operator(field, factors))
    elif chosen == "torch":
        _refuse_out(given if getattr(field, "requires_grad", False) else None)
        means = _into(given, Moments(_torch(field, factors), None, None), field).mean
    elif chosen == "numpy":
        means = _into(given, _numpy(field, factors, False, False), field).mean
    else:
        means = _compiled(field, factors, False, False, given, reference=chosen == "reference").mean
    return means


def coarsen_moments(
    field: Any, levels: int | Sequence[int], *, variance: bool = True, total: bool = True, backend: Backend = "auto",
    volumes: Any = None, out: Moments | None = None,
) -> Moments:  # fmt: skip
    """As `coarsen_pyramid`, with the variance within each cell and the conserved sum where they are asked for.

    v_s[i] = k_s^-d sum ( v_(s-1) + (c_(s-1) - c_s[i])^2 ), q_s[i] = sum q_(s-1); v_0 = 0, q_0 = field
    with volumes V: q_0 = V field, V_s[i] = sum V_(s-1), c_s = q_s / V_s,
    v_s[i] = 1/V_s[i] sum V_(s-1) ( v_(s-1) + (c_(s-1) - c_s[i])^2 )

    field, levels, backend: as for `coarsen_pyramid`, without `torch` and without autograd
    volumes: of the finest cells where they are not all equal, [(z,) y, x] of the dtype and kind of `field`, positive;
        the same for all points and components. The sum is then the integral of the field
    out: arrays to write into, for all that is asked for
    Raises: TypeError, ValueError.
    """
    factors, tensor = _check(field, levels, backend)
    chosen = _choose(field, tensor) if backend == "auto" else backend
    sizes = None if volumes is None else _volumes(field, volumes, factors, backend)
    if chosen in ("torch", "operator"):
        if tensor and (field.requires_grad or field.device.type != "cpu"):
            raise ValueError("backend: the moments need the compiled kernel and a tensor that requires no grad")
        sizes = None if sizes is None else [size.numpy() for size in sizes]
        moments = _numpy(field.numpy(), factors, variance, total, sizes)
        torch = sys.modules["torch"]
        parts = [None if part is None else tuple(torch.from_numpy(p) for p in part) for part in moments]
        return _into(out, Moments(*parts), field)  # type: ignore[arg-type]
    if chosen == "numpy":
        return _into(out, _numpy(field, factors, variance, total, sizes), field)
    return _compiled(field, factors, variance, total, out, sizes, reference=chosen == "reference")


def _volumes(field: Any, volumes: Any, factors: list[int], backend: Backend) -> list[Any]:
    """The cells' volumes on all levels, the finest first. Raises: TypeError, ValueError."""
    shape = tuple(field.shape[2:])
    arrays.check_like(volumes, "volumes", shape, arrays.dtype_of(field), field)
    if not bool(((volumes > 0.0) & (volumes < math.inf)).all()):
        raise ValueError(f"volumes: got {float(volumes.min())} to {float(volumes.max())}, expected positive numbers")
    sums = coarsen_moments(volumes.reshape(1, 1, *shape), factors, variance=False, backend=backend).total
    assert sums is not None
    return [volumes, *(level.reshape(level.shape[2:]) for level in sums)]


def _directly(field: Any, levels: int | Sequence[int], backend: str, out: Sequence[Any]) -> bool:
    """The short way of small batches: what the extension refuses is checked again, in the words of all backends."""
    if not arrays.checked_by_extension(field, backend):
        return False
    try:
        factors = [2] * levels if isinstance(levels, int) else list(levels)
        arrays.call("coarsen_pyramid", field, False, field, factors, list(out), None, None, None)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _check(field: Any, levels: int | Sequence[int], backend: str) -> tuple[list[int], bool]:
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    arrays.check_kind(field, "field")
    shape = tuple(field.shape)
    if len(shape) not in (4, 5):
        raise ValueError(
            f"field: got shape {shape}, expected [points, components, y, x] or [points, components, z, y, x]"
        )
    if isinstance(levels, int) and not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels: got {levels}, expected 1 to {MAX_LEVELS}")
    factors = [2] * levels if isinstance(levels, int) else [int(k) for k in levels]
    if not 1 <= len(factors) <= MAX_LEVELS or any(not 2 <= k <= MAX_FACTOR for k in factors):
        raise ValueError(f"levels: got {factors}, expected 1 to {MAX_LEVELS} factors from 2 to {MAX_FACTOR}")
    whole = math.prod(factors)
    if any(side < 1 or side % whole for side in shape[2:]):
        raise ValueError(
            f"field: got shape {shape} with levels {levels}, expected sides that are positive multiples of {whole}"
        )
    arrays.check_strides(field, "field")
    return factors, arrays.is_tensor(field)


def _choose(field: Any, tensor: bool) -> str:
    if not tensor:
        return "compiled" if has_compiled() else "numpy"
    if sys.modules["torch"].compiler.is_compiling():
        return "operator"
    there = {"cpu": has_compiled, "cuda": has_cuda}.get(field.device.type)
    if there is None or not there():
        return "torch"
    return "operator" if field.requires_grad else "compiled"


def _refuse_out(out: Moments | None) -> None:
    if out is not None:
        raise ValueError("out: got arrays for a tensor that requires grad or is traced, expected none")


def _outputs(out: Moments | None, shapes: list[tuple[int, ...]], wanted: Sequence[bool], like: Any) -> Moments:
    """New arrays, or those of the caller once they are checked."""
    parts: list[tuple[Any, ...] | None] = []
    dtype = arrays.dtype_of(like)
    for name, mine in zip(Moments._fields, wanted, strict=True):
        given = None if out is None else getattr(out, name)
        if out is not None and (given is not None) != mine:
            raise ValueError(f"out.{name}: got {'none' if mine else 'arrays'}, expected {'arrays' if mine else 'none'}")
        if given is not None and len(given) != len(shapes):
            raise ValueError(f"out.{name}: got {len(given)} levels, expected {len(shapes)}")
        parts.append(
            tuple(
                arrays.output(None if given is None else given[s], f"out.{name}[{s}]", shape, dtype, like)
                for s, shape in enumerate(shapes)
            )
            if mine
            else None
        )
    return Moments(*parts)  # type: ignore[arg-type]


def _into(out: Moments | None, made: Moments, field: Any) -> Moments:
    """What a backend without outputs of its own has made, in the caller's arrays if there are any."""
    if out is None:
        return made
    shapes = [tuple(level.shape) for level in made.mean]
    to = _outputs(out, shapes, [part is not None for part in made], field)
    named = {f"{n}[{s}]": a for n, part in zip(Moments._fields, to, strict=True) for s, a in enumerate(part or ())}
    arrays.refuse_overlap(named, {"field": field})
    for target, source in zip(to, made, strict=True):
        for t, s in zip(target or (), source or (), strict=True):
            t[...] = s
    return to


def _compiled(
    field: Any, factors: list[int], variance: bool, total: bool, out: Moments | None = None,
    volumes: list[Any] | None = None, *, reference: bool,
) -> Moments:  # fmt: skip
    if compiled() is None:
        raise ValueError("backend: got 'compiled', but the extension is not built; expected 'numpy' or 'torch'")
    if arrays.is_tensor(field) and field.requires_grad:
        raise ValueError("backend: got a tensor that requires grad, expected backend 'torch' or 'auto' for it")
    outputs = _outputs(out, shapes_of(tuple(field.shape), factors), (True, variance, total), field)
    lists = [None if part is None else list(part) for part in outputs]
    if volumes is not None and not total:
        lists[2] = [arrays.empty(tuple(m.shape), arrays.dtype_of(field), field) for m in outputs.mean]
    arrays.call("coarsen_pyramid", field, reference, field, factors, *lists, volumes)
    return outputs


def shapes_of(shape: tuple[int, ...], factors: Sequence[int]) -> list[tuple[int, ...]]:
    """Shapes of all coarser levels of a field [points, components, (z,) y, x]."""
    shapes = []
    for k in factors:
        shape = shape[:2] + tuple(side // k for side in shape[2:])
        shapes.append(shape)
    return shapes


def _numpy(field: Any, factors: list[int], variance: bool, total: bool, volumes: list[Any] | None = None) -> Moments:
    """The NumPy reference, in the order of additions of csrc/kernels/reference/coarsen_pyramid.cpp."""
    if not isinstance(field, np.ndarray):
        raise TypeError(f"field: got {type(field).__name__} for backend 'numpy', expected a NumPy array")
    means: list[Any] = []
    variances: list[Any] = []
    totals: list[Any] = []
    mean, sum_of_all = field, field if volumes is None else volumes[0] * field
    for s, k in enumerate(factors):
        size = field.dtype.type(k ** (field.ndim - 2)) if volumes is None else volumes[s + 1]
        if total or volumes is not None:
            sum_of_all = _block_sum(sum_of_all, k)
            totals.append(sum_of_all)
        coarse = (_block_sum(mean, k) if volumes is None else sum_of_all) / size
        if variance:
            about = coarse
            for axis in range(2, field.ndim):
                about = about.repeat(k, axis=axis)
            square = (mean - about) ** 2
            square = variances[-1] + square if variances else square
            variances.append(_block_sum(square if volumes is None else volumes[s] * square, k) / size)
        mean = coarse
        means.append(mean)
    return Moments(tuple(means), tuple(variances) if variance else None, tuple(totals) if total else None)


def _block_sum(field: Any, k: int) -> Any:
    """Down the rows of all planes first, then across the columns."""
    planes = range(k) if field.ndim == 5 else (None,)
    columns: Any = None
    for z in planes:
        plane = field if z is None else field[:, :, z::k]
        for y in range(k):
            row = plane[..., y::k, :]
            columns = row.copy() if columns is None else columns + row
    total = columns[..., ::k]
    for x in range(1, k):
        total = total + columns[..., x::k]
    return np.ascontiguousarray(total)


def _torch(field: Any, factors: list[int]) -> Any:
    """The torch chain, differentiable; its adjoint spreads a cell's value evenly over the cells below."""
    if isinstance(field, np.ndarray):
        raise TypeError("field: got ndarray for backend 'torch', expected a torch tensor")
    from torch.nn import functional

    pool = functional.avg_pool2d if field.ndim == 4 else functional.avg_pool3d
    coarse = []
    for k in factors:
        # An empty batch has nothing to average, and torch refuses it.
        field = pool(field, k) if field.numel() else field.new_empty(shapes_of(tuple(field.shape), [k])[0])
        coarse.append(field)
    return tuple(coarse)
