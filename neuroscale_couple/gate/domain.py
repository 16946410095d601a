"""Stage `domain`: is the question known ground? Asked before the surrogate."""

from __future__ import annotations

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.gate.base import GateStage, refuse
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Reason
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, U8, Bool, Points

SLACK = 1e-6
"""Share of a range by which an input may pass it (round-off of the macro solver)."""


class Domain(GateStage):
    r"""Refuses inputs outside the training ranges or too far from the training cloud, and foreign micro structures.

    The distance is Mahalanobis', d^2 = (x - mean)^T cov^-1 (x - mean), and must not pass `inputs_max_distance`.
    Keys of `card.domain`, all optional: `inputs_mean` [n_in], `inputs_cov_inv` [n_in, n_in],
    `inputs_max_distance`, `phase_mean_range` (lowest, highest inclusion share). `card.input_range` is always used.
    A row of zeros (the first read of a coupling) is known ground.
    """

    def __init__(self, settings: schema.Gate, problem: MicroProblem) -> None:
        self._low: F64 = np.zeros(0)
        self._high: F64 = np.zeros(0)
        self._mean: F64 = np.zeros(0)
        self._whiten: F64 | None = None
        self._limit = np.inf
        self._foreign: Bool | None = None

    def attach(self, points: Points, card: Card | None) -> None:
        """Take ranges from the card and mark the points whose micro structure lies outside them."""
        self._foreign = self._whiten = None
        self._low = self._high = np.zeros(0)
        if card is None:
            return
        bounds = np.asarray(card.input_range, dtype=np.float64).reshape(-1, 2)
        slack = SLACK * (bounds[:, 1] - bounds[:, 0])
        self._low, self._high = bounds[:, 0] - slack, bounds[:, 1] + slack
        domain = card.domain
        if {"inputs_mean", "inputs_cov_inv", "inputs_max_distance"} <= domain.keys():
            self._mean = np.asarray(domain["inputs_mean"], dtype=np.float64)
            self._whiten = np.linalg.cholesky(np.asarray(domain["inputs_cov_inv"], dtype=np.float64))
            self._limit = float(domain["inputs_max_distance"]) * (1.0 + SLACK)
        share = domain.get("phase_mean_range")
        if share is not None and "phase" in points.parameters and len(points):
            self._foreign = _outside_share(points.parameters["phase"], float(share[0]), float(share[1]))

    @np.errstate(invalid="ignore", over="ignore")
    def admit(self, inputs: F64, reason: U8) -> None:
        """Refuse what was not trained on."""
        if not len(inputs) or not len(self._low):
            return
        if not self._all_in_range(inputs):
            inside = ((inputs >= self._low) & (inputs <= self._high)).all(axis=1)
            refuse(reason, np.asarray(~inside & inputs.any(axis=1)), Reason.OUT_OF_DOMAIN)
        if self._whiten is not None:
            distance = (inputs - self._mean) @ self._whiten
            far = np.einsum("ni,ni->n", distance, distance)
            if not far.max() <= self._limit**2:
                refuse(reason, ~(far <= self._limit**2) & inputs.any(axis=1), Reason.OUT_OF_DOMAIN)
        if self._foreign is not None:
            refuse(reason, self._foreign, Reason.OUT_OF_DOMAIN)

    def _all_in_range(self, inputs: F64) -> bool:
        """Cheap test of the whole batch; NaN gives False."""
        return all(
            float(inputs[:, j].min()) >= self._low[j] and float(inputs[:, j].max()) <= self._high[j]
            for j in range(inputs.shape[1])
        )


def _outside_share(phase: U8, low: float, high: float) -> Bool | None:
    """Points whose inclusion share lies outside [low, high] by more than a pixel; None if there are none."""
    n = len(phase)
    pixels = phase[0].size
    share = phase.reshape(n, pixels).sum(axis=1, dtype=np.float64) / pixels
    slack = 1.0 / pixels
    outside = (share < low - slack) | (share > high + slack)
    return np.asarray(outside) if outside.any() else None
