"""What held-out pairs (score, error) of a surrogate allow: a certified threshold and a calibrated error estimate.

Used by the gate for the running surrogate and by the learner for its candidates; `gate/uncertainty.py` says what is
guaranteed and what is not. MAPIE takes seconds to import and is needed for calibrating alone: it is imported there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from neuroscale_couple.values import F64, Bool

DELTA = 0.05
"""Chance, over the draw of the calibration set, that a threshold does not keep its promise."""
GRID = 128
"""Thresholds tried; the answers that they accept grow geometrically."""
STARTS = 4
"""Fixed sequences of thresholds, equally spaced in the grid; each may be wrong with probability DELTA / STARTS."""
BINS = 20
"""Bins of the score for the error estimate, at most."""
BIN_SIZE = 60
"""Pairs in a bin, at least (if there are so many)."""
TINY = 1e-12


def clean_pairs(score: F64, error: F64) -> F64:
    """Pairs (score, error) as float64 [n, 2]; an error that is not finite is infinite, a bad score is left out."""
    pairs = np.column_stack([score, np.where(np.isfinite(error), error, np.inf)]).astype(np.float64)
    return np.asarray(pairs[np.isfinite(pairs[:, 0])])


def smallest_certifiable(confidence: float, delta: float = DELTA / STARTS) -> int:
    """Number of answers, all within the tolerance, below which nothing can be certified: ln(delta)/ln(confidence)."""
    return int(np.ceil(np.log(delta) / np.log(confidence)))


def certified_threshold(score: F64, error: F64, tolerance: float, confidence: float) -> float | None:
    """Largest score whose acceptance is certified (see `gate/uncertainty.py`), or None.

    score, error: float64 [n], held-out pairs; equal for any order of the pairs
    """
    from mapie.risk_control.fwer_control import FWERFixedSequenceTesting, control_fwer
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    least = smallest_certifiable(confidence)
    if len(score) < least:
        return None
    sizes, grid, bad = _grid(score, error > tolerance, least)
    p_values = compute_hoeffding_bentkus_p_value(bad / sizes, sizes, 1.0 - confidence, binary=True)[:, 0]
    starts = min(STARTS, len(grid))
    certified = control_fwer(p_values, DELTA, fwer_method=FWERFixedSequenceTesting(n_starts=starts))
    return float(grid[certified[-1]]) if len(certified) else None


def _grid(score: F64, bad: Bool, least: int) -> tuple[F64, F64, F64]:
    """Thresholds from the scores alone (never from the errors), each with its accepted and bad answers."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    at = np.unique(np.round(np.geomspace(least, len(score), GRID)).astype(np.int64))
    grid = np.unique(ordered[at - 1])
    sizes = np.searchsorted(ordered, grid, side="right")
    total_bad = np.concatenate([[0], np.cumsum(bad[order])])
    return sizes.astype(np.float64), grid, total_bad[sizes].astype(np.float64)


def error_curve(score: F64, error: F64, confidence: float) -> tuple[F64, F64]:
    """Knots (score, estimate), both float64 [k], of the calibrated error estimate; see `gate/uncertainty.py`."""
    order = np.argsort(score, kind="stable")
    s, e = np.maximum(score[order], TINY), error[order]
    bins = max(1, min(BINS, len(s) // BIN_SIZE))
    cuts = s[np.linspace(0, len(s), bins + 1).astype(np.int64)[1:-1]]
    edges = np.unique([0, *np.searchsorted(s, cuts), len(s)])  # equal scores share a bin
    knots, values, top, start = [0.0], [0.0], 0.0, 0.0
    for first, last in pairwise(edges):
        ratio = _upper_quantile(e[first:last] / s[first:last], confidence)
        end = float(s[last - 1])
        if end <= start:
            continue
        low, high = max(top, ratio * start), max(top, ratio * end)
        knots += [np.nextafter(start, np.inf)]
        values += [low]
        if ratio > 0.0 and start < top / ratio < end:  # where the running maximum is left
            knots += [top / ratio]
            values += [top]
        knots += [end]
        values += [high]
        top, start = high, end
    knots += [max(start, TINY) * 1e6]
    values += [max(top, TINY) * 1e6]
    return np.asarray(knots), np.asarray(values)


def accepted_up_to(score: F64, error: F64, tolerance: float, confidence: float) -> float | None:
    """Largest score that the gate accepts: certified, and with an estimate that keeps the tolerance; None: nothing.

    score, error: float64 [n], held-out pairs
    """
    certified = certified_threshold(score, error, tolerance, confidence)
    if certified is None:
        return None
    return min(certified, largest_score(*error_curve(score, error, confidence), tolerance))


def largest_score(score: F64, estimate: F64, tolerance: float) -> float:
    """Largest score whose estimate keeps the tolerance. score, estimate: float64 [k], knots of `error_curve`."""
    above = np.flatnonzero(estimate > tolerance)
    if not len(above):
        return float(score[-1])
    after, before = int(above[0]), int(above[0]) - 1
    if before < 0:
        return -np.inf
    share = (tolerance - estimate[before]) / (estimate[after] - estimate[before])
    return float(score[before] + share * (score[after] - score[before])) * (1.0 - 1e-12)


def _upper_quantile(values: F64, confidence: float) -> float:
    """Conformal quantile: the ceil((n + 1) confidence)-th smallest value; the largest if n is too small."""
    n = len(values)
    rank = min(int(np.ceil((n + 1) * confidence)), n)
    return float(np.partition(values, rank - 1)[rank - 1])
