"""Coarse-graining pyramid: the volume mean of structured fields on all coarser levels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from neuroscale_couple.kernels.backend import compiled, has_compiled, has_cuda

if TYPE_CHECKING:
    import torch

    Array = TypeVar("Array", npt.NDArray[Any], torch.Tensor)

Backend = Literal["auto", "compiled", "reference", "numpy", "torch"]
BACKENDS = ("auto", "compiled", "reference", "numpy", "torch")
MAX_LEVELS = 30


def coarsen_pyramid(field: Array, levels: int, backend: Backend = "auto") -> tuple[Array, ...]:
    """Volume means of a field on `levels` coarser grids, each with half the cells per side, in one pass.

    c_0 = field, c_s[i] = 2^-d sum of the 2^d cells of c_(s-1) in cell i, s = 1 ... levels

    field: float32 or float64 [points, components, y, x] or [points, components, z, y, x], contiguous; NumPy or torch
    levels: number of coarser grids; every side must be a positive multiple of 2^levels
    backend: `auto` takes the compiled kernel where there is one; tensors that require grad go through torch.
        `compiled`, `reference` (plain loops in C++) and `numpy` agree bit for bit, `torch` to round-off.

    Returns: level s at [s - 1], of the kind, dtype and unit of `field`, shape [points, components, (z,) y, x] / 2^s.
    Raises: TypeError (kind or dtype), ValueError (shape, strides, levels, backend), each with got and expected.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    torch = sys.modules.get("torch")
    tensor = torch is not None and isinstance(field, torch.Tensor)
    if not tensor and not isinstance(field, np.ndarray):
        raise TypeError(f"field: got {type(field).__name__}, expected a NumPy array or a torch tensor")
    _check_dtype(field)
    _check_shape(tuple(field.shape), levels)
    _check_strides(field)
    chosen = _choose(field, tensor) if backend == "auto" else backend
    coarse: tuple[Array, ...]
    if chosen == "torch":
        coarse = _torch(field, levels)
    elif chosen == "numpy":
        coarse = _numpy(field, levels)
    else:
        coarse = _compiled(field, levels, tensor, reference=chosen == "reference")
    return coarse


def _check_dtype(field: Any) -> None:
    if str(field.dtype).removeprefix("torch.") not in ("float32", "float64"):
        raise TypeError(f"field: got dtype {field.dtype}, expected float32 or float64 in native byte order")


def _check_shape(shape: tuple[int, ...], levels: int) -> None:
    if len(shape) not in (4, 5):
        raise ValueError(
            f"field: got shape {shape}, expected [points, components, y, x] or [points, components, z, y, x]"
        )
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels: got {levels}, expected 1 to {MAX_LEVELS}")
    if any(side < 1 or side % 2**levels for side in shape[2:]):
        raise ValueError(
            f"field: got shape {shape} with levels {levels}, expected sides that are positive multiples of {2**levels}"
        )


def _check_strides(field: Any) -> None:
    tensor = not isinstance(field, np.ndarray)
    if not (field.is_contiguous() if tensor else field.flags.c_contiguous):
        strides = tuple(field.stride()) if tensor else tuple(s // field.itemsize for s in field.strides)
        raise ValueError(
            f"field: got strides {strides} (elements) for shape {tuple(field.shape)}, "
            "expected a contiguous row-major array"
        )


def _choose(field: Any, tensor: bool) -> str:
    if not tensor:
        return "compiled" if has_compiled() else "numpy"
    if field.requires_grad:
        return "torch"
    there = {"cpu": has_compiled, "cuda": has_cuda}.get(field.device.type)
    return "compiled" if there is not None and there() else "torch"


def _compiled(field: Any, levels: int, tensor: bool, *, reference: bool) -> Any:
    extension = compiled()
    if extension is None:
        raise ValueError("backend: got 'compiled', but the extension is not built; expected 'numpy' or 'torch'")
    if tensor and field.requires_grad:
        raise ValueError("backend: got a tensor that requires grad, expected backend 'torch' or 'auto' for it")
    coarse = []
    for shape in _shapes(tuple(field.shape), levels):
        coarse.append(field.new_empty(shape) if tensor else np.empty(shape, field.dtype))
    if tensor and field.device.type == "cuda":
        torch = sys.modules["torch"]
        with torch.cuda.device(field.device):
            extension.coarsen_pyramid(field, coarse, reference, torch.cuda.current_stream().cuda_stream)
    else:
        extension.coarsen_pyramid(field, coarse, reference, 0)
    return tuple(coarse)


def _shapes(shape: tuple[int, ...], levels: int) -> list[tuple[int, ...]]:
    return [shape[:2] + tuple(side >> level for side in shape[2:]) for level in range(1, levels + 1)]


def _numpy(field: Any, levels: int) -> Any:
    """The NumPy reference, in the order of additions of csrc/kernels/reference/coarsen_pyramid.cpp."""
    if not isinstance(field, np.ndarray):
        raise TypeError(f"field: got {type(field).__name__} for backend 'numpy', expected a NumPy array")
    coarse = []
    for _ in range(levels):
        total = field[..., ::2] + field[..., 1::2]
        total = total[..., ::2, :] + total[..., 1::2, :]
        if field.ndim == 5:
            total = total[:, :, ::2] + total[:, :, 1::2]
        field = total * field.dtype.type(0.5 ** (field.ndim - 2))
        coarse.append(field)
    return tuple(coarse)


def _torch(field: Any, levels: int) -> Any:
    """The torch chain, differentiable; its adjoint spreads a cell's value evenly over the cells below."""
    if isinstance(field, np.ndarray):
        raise TypeError("field: got ndarray for backend 'torch', expected a torch tensor")
    from torch.nn import functional

    pool = functional.avg_pool2d if field.ndim == 4 else functional.avg_pool3d
    coarse = []
    for _ in range(levels):
        # An empty batch has nothing to average, and torch refuses it.
        field = pool(field, 2) if field.numel() else field.new_empty(_shapes(tuple(field.shape), 1)[0])
        coarse.append(field)
    return tuple(coarse)
