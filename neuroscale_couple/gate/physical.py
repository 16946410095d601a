"""Stage `physical`: could this answer be the answer of any such material? Asked after the surrogate."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.gate.base import GateStage, refuse
from neuroscale_couple.kernels.definite import positive_definite
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, I64, U8, Points, Prediction

CHUNK = 8192
"""Rows checked at a time: their temporaries stay in the processor's cache."""


class Physical(GateStage):
    r"""Refuses answers that are not finite, break the energy bounds or whose tangent is not positive definite.

    Energy: lower(x) - slack <= x . y <= upper(x) + slack, with the micro problem's bounds (Voigt above, Reuss
    below; Voigt and Reuss bound the effective energy of every micro structure with the same shares).
    slack = tolerance |x| max(|y|, floor) / (1 - tolerance): by Cauchy-Schwarz no answer that keeps the tolerance
    is refused for its energy. A micro problem without bounds is checked for the other two only.
    """

    def __init__(self, settings: schema.Gate, problem: MicroProblem) -> None:
        self._problem = problem
        self._slack = settings.tolerance / max(1.0 - settings.tolerance, 0.1)
        self._floor = float(problem.output_floor())
        self._bounded = hasattr(problem, "bounds") and hasattr(problem, "effective_energy")
        n_out = problem.outputs.size
        driving = getattr(problem, "driving", slice(0, n_out))
        self._driving = slice(*driving.indices(problem.inputs.size))
        self._square = getattr(problem, "has_tangent", True) and self._driving.stop - self._driving.start == n_out
        self._phase: Any = None

    def attach(self, points: Points, card: Card | None) -> None:
        """Keep the inclusion share of each point; the bounds depend on the micro structure through it alone."""
        phase = points.parameters.get("phase")
        self._phase = None
        if self._bounded and phase is not None:
            self._phase = phase.mean(axis=(1, 2), dtype=np.float64, keepdims=True)

    @np.errstate(invalid="ignore", over="ignore")
    def accept(self, rung: Source, inputs: F64, prediction: Prediction, error: F64, reason: U8) -> None:
        """Refuse impossible answers."""
        for start in range(0, len(reason), CHUNK):
            part = slice(start, start + CHUNK)
            outputs, tangent = prediction.outputs[part], prediction.tangent[part]
            self._check(inputs[part], prediction.rows[part], outputs, tangent, reason[part])

    def _check(self, inputs: F64, rows: I64, outputs: F64, tangent: F64, reason: U8) -> None:
        if not np.isfinite(outputs.sum() + tangent.sum()):
            finite = np.isfinite(outputs).all(axis=1) & np.isfinite(tangent).all(axis=(1, 2))
            refuse(reason, np.asarray(~finite), Reason.NOT_FINITE)
        if self._bounded and self._phase is not None:
            self._check_energy(inputs, rows, outputs, reason)
        if self._square:
            definite = positive_definite(tangent[:, :, self._driving])
            if not definite.all():
                refuse(reason, ~definite, Reason.NOT_POSITIVE_DEFINITE)

    def _check_energy(self, inputs: F64, rows: I64, outputs: F64, reason: U8) -> None:
        problem: Any = self._problem
        lower, upper = problem.bounds(inputs, self._phase[rows])
        energy = problem.effective_energy(inputs, outputs)
        driving = inputs[:, self._driving]
        size = np.maximum(np.sqrt(np.einsum("ni,ni->n", outputs, outputs)), self._floor)
        slack = self._slack * size * np.sqrt(np.einsum("ni,ni->n", driving, driving))
        inside = (energy >= lower - slack) & (energy <= upper + slack)
        if not inside.all():
            refuse(reason, ~inside, Reason.OUT_OF_BOUNDS)
