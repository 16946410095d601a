r"""Restores symmetry, definiteness and the Voigt/Reuss bounds of surrogate tangents.

With bounds L <= T <= U (quadratic forms) and D = U - L, the tangent becomes

    T' = L + D^1/2 clip_[0,1](D^-1/2 (sym T - L) D^-1/2) D^1/2,

where clip acts on eigenvalues. T' keeps both bounds, leaves an admissible tangent as it is and, applied twice,
changes nothing. Without bounds the eigenvalues are raised to a small share of the largest one. A tangent that is not
finite is left as it is: the loop refuses to send it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroscale_couple.correction.base import Correction
from neuroscale_couple.kernels import admissible
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, U8, Batch, Points

CHUNK = 8192
"""Rows corrected at a time: their temporaries stay in the processor's cache."""


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
        self._changed: U8 = np.zeros(CHUNK, dtype=np.uint8)

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
        for start in range(0, len(source), CHUNK):
            part = slice(start, start + CHUNK)
            if free[part].all():
                self._project(tangent[part], batch.inputs[part], part)
            elif free[part].any():
                rows = start + np.flatnonzero(free[part])
                changed = tangent[rows]
                self._project(changed, batch.inputs[rows], rows)
                tangent[rows] = changed

    def _project(self, tangent: F64, inputs: F64, rows: Any) -> None:
        lower = upper = None
        if self._bounded and self._phase is not None:
            bounds = self._problem.tangent_bounds(inputs, self._phase[rows])
            lower, upper = (np.ascontiguousarray(bound, dtype=np.float64) for bound in bounds)
        admissible(tangent, lower, upper, first=self._driving.start, out=self._changed[: len(tangent)])
