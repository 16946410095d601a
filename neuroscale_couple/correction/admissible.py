r"""Restores symmetry, definiteness and the Voigt/Reuss bounds of surrogate tangents.

With bounds L <= T <= U (quadratic forms) and D = U - L, the tangent becomes

    T' = L + D^1/2 clip_[0,1](D^-1/2 (sym T - L) D^-1/2) D^1/2,

where clip acts on eigenvalues. T' keeps both bounds, leaves an admissible tangent as it is and, applied twice,
changes nothing. Without bounds the eigenvalues are raised to a small share of the largest one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroscale_couple.correction.base import Correction
from neuroscale_couple.kernels.definite import positive_definite
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, U8, Batch, Points

SLACK = 1e-9
"""Share of U - L by which a tangent may pass a bound before it is changed (round-off)."""
CHUNK = 8192
"""Rows corrected at a time: their temporaries stay in the processor's cache."""
LOWEST = 1e-6
"""Lowest eigenvalue as a share of the largest, where there are no bounds."""


class Admissible(Correction):
    """Makes surrogate tangents symmetric positive definite and keeps them between their bounds."""

    def __init__(self, problem: MicroProblem) -> None:
        self._problem: Any = problem
        n_out = problem.outputs.size
        driving = getattr(problem, "driving", slice(0, n_out))
        self._driving = slice(*driving.indices(problem.inputs.size))
        self._square = getattr(problem, "has_tangent", True) and self._driving.stop - self._driving.start == n_out
        self._bounded = hasattr(problem, "tangent_bounds")
        self._phase: Any = None

    def attach(self, points: Points) -> None:
        """Keep the inclusion share of each point; the bounds depend on the micro structure through it alone."""
        phase = points.parameters.get("phase")
        self._phase = None
        if self._bounded and phase is not None:
            self._phase = phase.mean(axis=(1, 2), dtype=np.float64, keepdims=True)

    def apply(self, batch: Batch, outputs: F64, tangent: F64, error: F64, source: U8) -> None:
        """Correct the tangents of surrogate answers, in place."""
        if not self._square or not len(source):
            return
        free = source != Source.FINE
        if not free.any():
            return
        block = tangent[:, :, self._driving]
        for start in range(0, len(source), CHUNK):
            part = slice(start, start + CHUNK)
            rows = np.flatnonzero(free[part])
            everyone = len(rows) == len(free[part])
            _symmetrise(block[part], True if everyone else free[part])
            if self._bounded and self._phase is not None:
                self._bound(batch.inputs[part], block[part], self._phase[part], slice(None) if everyone else rows)
            else:
                _raise_definite(block[part], slice(None) if everyone else rows)

    def _bound(self, inputs: F64, block: F64, phase: F64, rows: Any) -> None:
        t = block[rows]
        lower, upper = self._problem.tangent_bounds(inputs[rows], phase[rows])
        slack = SLACK * np.trace(upper, axis1=1, axis2=2)[:, None, None] * np.eye(t.shape[1])
        inside = positive_definite(t - (lower - slack)) & positive_definite((upper + slack) - t)
        if inside.all():
            return
        bad = np.flatnonzero(~inside)
        block[np.arange(len(block))[rows][bad]] = clip_between(t[bad], lower[bad], upper[bad])


def _symmetrise(block: F64, where: Any) -> None:
    """Mean with the transpose, in place; exact where a matrix is symmetric already."""
    d = block.shape[1]
    for i in range(d):
        for j in range(i + 1, d):
            one, other = block[:, i, j], block[:, j, i]
            if not np.array_equal(one, other):
                mean = 0.5 * (one + other)
                np.copyto(one, mean, where=where)
                np.copyto(other, mean, where=where)


def _raise_definite(block: F64, rows: Any) -> None:
    definite = positive_definite(block[rows])
    if definite.all():
        return
    bad = np.arange(len(block))[rows][~definite]
    value, vector = np.linalg.eigh(block[bad])
    value = np.maximum(value, LOWEST * np.abs(value).max(axis=1, keepdims=True))
    block[bad] = _symmetric(np.einsum("nik,nk,njk->nij", vector, value, vector))


def clip_between(t: F64, lower: F64, upper: F64) -> F64:
    """The tangents moved between their bounds, see the module's text; all float64 [m, d, d], t symmetric."""
    value, vector = np.linalg.eigh(_symmetric(upper - lower))
    value = np.maximum(value, 1e-14 * np.abs(np.trace(upper, axis1=1, axis2=2))[:, None])
    root = np.einsum("nik,nk,njk->nij", vector, np.sqrt(value), vector)
    inverse = np.einsum("nik,nk,njk->nij", vector, 1.0 / np.sqrt(value), vector)
    share, base = np.linalg.eigh(_symmetric(inverse @ (t - lower) @ inverse))
    turn = root @ base
    return np.asarray(lower + _symmetric(np.einsum("nik,nk,njk->nij", turn, np.clip(share, 0.0, 1.0), turn)))


def _symmetric(t: F64) -> F64:
    return np.asarray(0.5 * (t + t.transpose(0, 2, 1)))
