"""Batched projection of small tensors onto the admissible ones: symmetric, definite, between bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroscale_couple.kernels import arrays
from neuroscale_couple.kernels.definite import positive_definite
from neuroscale_couple.kernels.meter import metered
from neuroscale_couple.values import F64

SIDES = (2, 3, 6)
"""Sides of the tensors that are compiled."""
SLACK = 1e-9
LOWEST = 1e-6


@metered
def admissible(
    tensors: Any, lower: Any = None, upper: Any = None, *, first: int = 0, wanted: Any = None, slack: float = SLACK,
    lowest: float = LOWEST, backend: arrays.Backend = "auto", out: Any = None,
) -> Any:  # fmt: skip
    """Project small tensors in place; those that are admissible stay as they are to the bit.

    S = (T + T^T)/2; T' = S if L <= S <= U, else L + D^1/2 clip_[0,1](D^-1/2 (S - L) D^-1/2) D^1/2 with D = U - L;
    without bounds the eigenvalues of S are raised to `lowest` times the largest

    tensors: float32 or float64 [n, d, columns], in/out; columns first ... first + d - 1 are projected; d = 2, 3, 6
        (compiled), any other d by NumPy
    lower, upper: the same dtype, [n, d, d], symmetric; or None
    wanted: uint8 [n], 0 leaves a tensor as it is; None: all are projected
    slack: share of the trace of U by which a tensor may pass a bound before it is changed
    out: uint8 [n] to write the result into

    Returns: uint8 [n], 0 as it was, 1 made symmetric, 2 projected, 3 not finite and left as it is.
    Raises: TypeError, ValueError, each with got and expected.
    """
    arrays.check_kind(tensors, "tensors")
    shape = tuple(tensors.shape)
    d = shape[1] if len(shape) == 3 else 0
    if not d or first < 0 or first + d > shape[2]:
        raise ValueError(
            f"tensors: got shape {shape} with first column {first}, expected [tensors, d, columns] "
            "with first + d <= columns"
        )
    arrays.check_strides(tensors, "tensors")
    if (lower is None) != (upper is None):
        raise ValueError("lower, upper: got one of the two, expected both or neither")
    for array, name in ((lower, "lower"), (upper, "upper")):
        if array is not None:
            arrays.check_like(array, name, (shape[0], d, d), arrays.dtype_of(tensors), tensors)
    if wanted is not None:
        arrays.check_like(wanted, "wanted", (shape[0],), "uint8", tensors)
    chosen = arrays.choose(tensors, backend if d in SIDES or backend != "auto" else "numpy")
    changed = arrays.output(out, "out", (shape[0],), "uint8", tensors)
    if chosen == "numpy":
        arrays.refuse_overlap({"out": changed, "tensors": tensors}, {"lower": lower, "upper": upper, "wanted": wanted})
        block = arrays.host(tensors)[:, :, first : first + d]
        bounds = (arrays.host(lower), arrays.host(upper)) if lower is not None else None
        _numpy(block, bounds, arrays.host(wanted), arrays.host(changed), slack, lowest)
    else:
        arrays.call(
            "admissible", tensors, chosen == "reference",
            tensors, first, lower, upper, wanted, changed, slack, lowest,
        )  # fmt: skip
    return changed


def _numpy(block: Any, bounds: Any, wanted: Any, changed: Any, slack: float, lowest: float) -> None:
    changed[:] = 0
    rows = np.arange(len(block)) if wanted is None else np.flatnonzero(wanted)
    t = block[rows].astype(np.float64)
    finite = np.isfinite(t).all(axis=(1, 2))
    changed[rows[~finite]] = 3
    rows, t = rows[finite], t[finite]
    s = _symmetric(t)
    if bounds is None:
        inside = positive_definite(s)
        projected = raise_definite(s[~inside], lowest)
    else:
        lower, upper = (b[rows].astype(np.float64) for b in bounds)
        room = slack * np.trace(upper, axis1=1, axis2=2)[:, None, None] * np.eye(s.shape[1])
        inside = positive_definite(s - lower + room) & positive_definite(upper - s + room)
        projected = clip_between(s[~inside], lower[~inside], upper[~inside])
    lopsided = (s != t).any(axis=(1, 2))
    changed[rows[inside & lopsided]] = 1
    block[rows[inside & lopsided]] = s[inside & lopsided]
    changed[rows[~inside]] = 2
    block[rows[~inside]] = projected


def raise_definite(t: F64, lowest: float) -> F64:
    """Eigenvalues raised to `lowest` times the largest in size; t: float64 [m, d, d], symmetric."""
    value, vector = np.linalg.eigh(t)
    value = np.maximum(value, lowest * np.abs(value).max(axis=1, keepdims=True, initial=0.0))
    return _symmetric(np.einsum("nik,nk,njk->nij", vector, value, vector))


def clip_between(t: F64, lower: F64, upper: F64) -> F64:
    """The tensors moved between their bounds, see `admissible`; all float64 [m, d, d], t symmetric."""
    value, vector = np.linalg.eigh(_symmetric(upper - lower))
    value = np.maximum(value, 1e-14 * np.abs(np.trace(upper, axis1=1, axis2=2))[:, None])
    root = np.einsum("nik,nk,njk->nij", vector, np.sqrt(value), vector)
    inverse = np.einsum("nik,nk,njk->nij", vector, 1.0 / np.sqrt(value), vector)
    share, base = np.linalg.eigh(_symmetric(inverse @ (t - lower) @ inverse))
    turn = root @ base
    return np.asarray(lower + _symmetric(np.einsum("nik,nk,njk->nij", turn, np.clip(share, 0.0, 1.0), turn)))


def _symmetric(t: F64) -> F64:
    return np.asarray(0.5 * (t + t.transpose(0, 2, 1)))
