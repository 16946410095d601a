"""Loads that a run may meet later: what it asks now, grown along its own directions up to where it may go.

A macro solver that is loaded more and more leaves, window after window, what was learnt so far. Most micro problems are
driven along nearly the same direction all the time, so that

    load = f u (x + spread |x| noise),   u uniform in (0, 1)

with the present loads x reaches what is to come; f is the factor at which the first of the points leaves the configured
range (with a margin), and `ahead` at most. Answers there, some of them of points that are never trained on, are
what lets a calibrated gate open beyond the present loads.
"""

from __future__ import annotations

import numpy as np

from neuroscale_couple.learning.base import Questions
from neuroscale_couple.values import F64, I64, Bool

SPREAD = 0.15
"""Directions change: noise of the loads, relative to their size."""
MARGIN = 1.2
"""Loads do not grow alike: how far beyond the border of the range the factor may lead; such loads are clipped."""


def growth(inputs: F64, driving: slice, box: F64 | None, ahead: float) -> float:
    """Factor f between the present loads and the largest that are expected.

    inputs: float64 [n, n_in]; driving: columns that are loads; box: float64 [n_in, 2], configured range or None
    """
    loads = inputs[:, driving]
    if box is None or not loads.any():
        return ahead
    limit = np.where(loads < 0.0, box[driving, 0], box[driving, 1])
    share = np.divide(loads, limit, out=np.zeros_like(loads), where=limit != 0.0).max()
    return float(np.clip(MARGIN / share, 1.0, ahead)) if share > 0.0 else ahead


def expected(inputs: F64, driving: slice, box: F64 | None, factor: float, rng: np.random.Generator) -> F64:
    """One expected load for each row of inputs, float64 [m, n_in]; conditions stay as they are.

    factor: see `growth`
    """
    loads = inputs[:, driving]
    size = np.linalg.norm(loads, axis=1, keepdims=True)
    result = inputs.copy()
    noisy = loads + SPREAD * size * rng.standard_normal(loads.shape)
    result[:, driving] = factor * rng.random((len(loads), 1)) * noisy
    return result if box is None else np.clip(result, box[:, 0], box[:, 1])


def choose(held: Bool, count: int, rng: np.random.Generator) -> list[I64]:
    """Rows to ask, in batches of distinct rows; half of them held out, as far as there are any.

    held: bool [n], points never trained on; count: rows in all
    """
    groups = [rows for rows in (np.flatnonzero(held), np.flatnonzero(~held)) if len(rows)]
    left = [count // len(groups) + (i < count % len(groups)) for i in range(len(groups))] if groups else []
    batches = []
    while any(left):
        taken = [min(rest, len(rows)) for rest, rows in zip(left, groups, strict=True)]
        chosen = [rng.permutation(rows)[:m] for rows, m in zip(groups, taken, strict=True)]
        batches.append(np.sort(np.concatenate(chosen)))
        left = [rest - m for rest, m in zip(left, taken, strict=True)]
    return batches


def questions(
    inputs: F64, held: Bool, count: int, driving: slice, box: F64 | None, factor: float, rng: np.random.Generator
) -> Questions:
    """Probes: batches of rows and expected loads, see `choose` and `expected`.

    inputs: float64 [n, n_in] and held: bool [n], of all points of this rank; count: probes
    """
    return [(rows, expected(inputs[rows], driving, box, factor, rng)) for rows in choose(held, count, rng)]
