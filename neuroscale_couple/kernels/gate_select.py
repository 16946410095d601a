"""Scores to reasons, error estimates and the rows that were refused, in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroscale_couple.kernels import arrays
from neuroscale_couple.kernels.meter import metered

PARTS = 64
"""Pieces that the compaction is done in; the result does not depend on it."""
DEVICE_PART, DEVICE_ALONE, DEVICE_PARTS = 2048, 4096, 2112
"""Points of a piece on a GPU, points that one piece still holds, and most pieces: each adds up those before it."""


@metered
def gate_select(
    score: Any, threshold: float, curve: tuple[Any, Any], codes: tuple[int, int], reason: Any, error: Any,
    backend: arrays.Backend = "auto", out: Any = None,
) -> Any:  # fmt: skip
    """Refuse points by their score, estimate their errors, and list the rows that anybody has refused.

    error = curve at score (inf where the score is not finite); reason (where it was 0) = codes[0] where the score is
    not finite, codes[1] where not score <= threshold

    score: float32 or float64 [n]; curve: (knots, levels), each [c] of the dtype of `score`, knots rising, c >= 0
    codes: reasons for "not finite" and "uncertain", 1 to 255
    reason: uint8 [n], in/out; error: [n] of the dtype of `score`, out
    out: int64 [n], whose first m entries become the result
    Returns: int64 [m], rows with reason != 0, rising. On a CUDA device its length is read back: the only host
        round trip.
    Raises: TypeError, ValueError, each with got and expected.
    """
    arrays.check_kind(score, "score")
    arrays.check_strides(score, "score")
    n, dtype = len(score), arrays.dtype_of(score)
    knots, levels = curve
    for array, name in ((knots, "knots"), (levels, "levels")):
        arrays.check_like(array, name, (len(knots),), dtype, score)
    arrays.check_like(reason, "reason", (n,), "uint8", score)
    arrays.check_like(error, "error", (n,), dtype, score)
    chosen = arrays.choose(score, backend)
    refused = arrays.output(out, "out", (n,), "int64", score)
    if chosen == "numpy":
        written = {"reason": reason, "error": error, "out": refused}
        arrays.refuse_overlap(written, {"score": score, "knots": knots, "levels": levels})
        row = [arrays.host(a) for a in (score, knots, levels, reason, error)]
        found = _numpy(row, threshold, codes)
        refused[: len(found)] = arrays.place(found, score)
        return refused[: len(found)]
    pieces = device_parts(n) if arrays.is_tensor(score) and score.is_cuda else PARTS
    parts = arrays.empty((pieces + 1,), "int64", score)
    arrays.call(
        "gate_select", score, chosen == "reference",
        score, threshold, knots, levels, *codes, reason, error, refused, parts,
    )  # fmt: skip
    return refused[: int(parts[pieces])]


def device_parts(n: int) -> int:
    """Pieces for n points on a GPU: one launch for few, as many as fill it for more."""
    return 1 if n <= DEVICE_ALONE else min(-(-n // DEVICE_PART), DEVICE_PARTS)


@np.errstate(invalid="ignore")
def _numpy(row: list[Any], threshold: float, codes: tuple[int, int]) -> Any:
    score, knots, levels, reason, error = row
    finite = np.isfinite(score)
    error[:] = np.where(finite, np.interp(score, knots, levels), np.inf) if len(knots) else np.inf
    np.copyto(reason, np.uint8(codes[0]), where=~finite & (reason == 0))
    np.copyto(reason, np.uint8(codes[1]), where=~(score <= score.dtype.type(threshold)) & (reason == 0))
    return np.flatnonzero(reason)
