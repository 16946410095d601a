r"""Stage `uncertainty`: turns the surrogate's own score into a statement about its error.

Threshold (Learn-then-Test, through MAPIE). For each rung, answers with score <= lambda are accepted, with the
largest lambda of a grid for which the hypothesis "more than 1 - confidence of the accepted answers exceed the
tolerance" is rejected on held-out pairs (score, error). The family-wise error is `calibration.DELTA` = 5 %; the
thresholds are tested in fixed sequences of rising scores, with exact binomial p-values.
Guaranteed: with probability 95 % over the draw of the calibration set, at most 1 - confidence of the accepted
answers of a rung have a relative error above the tolerance.
Needed: the points of the run and the held-out pairs are exchangeable. Not guaranteed: anything about a single
answer or about a group of points, nor anything once the run drives the material elsewhere than the training did.
Pairs that share a micro structure are not independent, which makes the statement optimistic when there are few
structures. For all this there are audits.

Estimate (split conformal, in bins of the score). Within each bin the error of an answer is at most score times a
quantile of error/score with probability `confidence`; the estimate is made monotone in the score by its running
maximum, which can only raise it.
Source: Angelopoulos et al. 2022 (Learn then Test); Vovk et al. 2005 (Mondrian conformal prediction).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.calibration import accepted_up_to, clean_pairs, error_curve, smallest_certifiable
from neuroscale_couple.config import schema
from neuroscale_couple.gate.base import GateStage
from neuroscale_couple.kernels import gate_select
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, I64, U8, Bool, Points, Prediction

NO_CURVE = np.zeros(0), np.zeros(0)

log = logging.getLogger("neuroscale_couple.gate")


class Uncertainty(GateStage):
    """Refuses answers whose score passes the certified threshold; writes the calibrated error estimate."""

    def __init__(self, settings: schema.Gate, problem: MicroProblem) -> None:
        self._settings = settings
        self._pairs: dict[Source, F64] = {}  # float64 [n, 2]: score, error
        self._cap: dict[Source, float] = {}  # thresholds lowered by audits
        self.thresholds: dict[Source, float] = {}
        self._curves: dict[Source, tuple[F64, F64]] = {}
        self._message: str | None = None
        self._rows: I64 = np.zeros(0, dtype=np.int64)  # room of the kernel, kept from call to call

    @property
    def message(self) -> str | None:
        """Why a rung accepts nothing, if one does not."""
        return self._message

    def attach(self, points: Points, card: Card | None) -> None:
        """Calibrate on the held-out pairs of the card."""
        self._cap = {}
        self._pairs = {}
        if card is not None:
            for rung in (Source.SURROGATE_COARSE, Source.SURROGATE_FINE):
                if (known := card.calibration.get(rung.name.lower())) is not None:
                    self._pairs[rung] = clean_pairs(np.asarray(known.score), np.asarray(known.error))
        self._calibrate()

    def admit(self, inputs: F64, reason: U8) -> None:
        """Refuse everything at once if no rung can accept anything."""
        if not self.thresholds:
            np.copyto(reason, np.uint8(Reason.UNCERTAIN), where=reason == 0)

    def accept(self, rung: Source, inputs: F64, prediction: Prediction, error: F64, reason: U8) -> None:
        """Refuse uncertain answers. error: float64 [m], out, in relative terms."""
        score = prediction.score
        if not len(score):
            return
        curve = self._curves.get(rung, NO_CURVE)
        threshold = self.thresholds.get(rung, -np.inf)
        codes = int(Reason.NOT_FINITE), int(Reason.UNCERTAIN)
        if len(self._rows) < len(score):
            self._rows = np.empty(len(score), dtype=np.int64)
        gate_select(np.ascontiguousarray(score), threshold, curve, codes, reason, error, out=self._rows[: len(score)])

    def would_accept(self, source: U8, score: F64) -> Bool:
        """Whether answers with these rungs and scores would be accepted now; source: uint8 [n], score: float64 [n]."""
        limit = np.full(256, -np.inf)
        for rung, threshold in self.thresholds.items():
            limit[rung] = threshold
        return np.asarray(score <= limit[source])

    def add_pairs(self, source: U8, score: F64, error: F64) -> None:
        """Add audited pairs to the calibration sets of their rungs and calibrate again; no threshold rises by it.

        source: uint8 [n]; score, error: float64 [n]
        """
        for rung in self._pairs:
            self._cap[rung] = self.thresholds.get(rung, -np.inf)
            mine = source == rung
            self._pairs[rung] = np.concatenate([self._pairs[rung], clean_pairs(score[mine], error[mine])])
        self._calibrate()

    def lower(self, rung: Source, threshold: float) -> None:
        """Accept nothing above this score on a rung, whatever the calibration says; -inf: nothing at all."""
        self._cap[rung] = min(threshold, self._cap.get(rung, np.inf))
        self._calibrate()

    def _calibrate(self) -> None:
        settings = self._settings
        self.thresholds, self._curves = {}, {}
        refused = []
        for rung, pairs in self._pairs.items():
            score, error = pairs[:, 0], pairs[:, 1]
            threshold = accepted_up_to(score, error, settings.tolerance, settings.confidence)
            if threshold is not None:
                threshold = min(threshold, self._cap.get(rung, np.inf))
            if threshold is None or threshold == -np.inf:
                refused.append(_explain(rung, error, settings))
                continue
            self._curves[rung] = error_curve(score, error, settings.confidence)
            self.thresholds[rung] = threshold
        message = "; ".join(refused) or None
        if message is not None and message != self._message:
            log.warning("%s", message)
        self._message = message

    def get_state(self) -> Mapping[str, Any]:
        """Calibration pairs (with the audited ones) and lowered thresholds."""
        state: dict[str, Any] = {f"pairs_{int(rung)}": pairs for rung, pairs in self._pairs.items()}
        return state | {f"cap_{int(rung)}": np.float64(cap) for rung, cap in self._cap.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore calibration pairs and lowered thresholds."""
        if not state:
            return
        split = [(key.partition("_"), value) for key, value in state.items()]
        self._pairs = {Source(int(k[2])): np.asarray(v, np.float64).reshape(-1, 2) for k, v in split if k[0] == "pairs"}
        self._cap = {Source(int(k[2])): float(np.asarray(v)) for k, v in split if k[0] == "cap"}
        self._calibrate()


def _explain(rung: Source, error: F64, settings: schema.Gate) -> str:
    """A sentence that says why a rung accepts nothing."""
    head = f"gate: {rung.name.lower()} accepts nothing at a tolerance of {settings.tolerance:g}: "
    least = smallest_certifiable(settings.confidence)
    if len(error) < least:
        return head + (
            f"{len(error)} held-out answers are too few to certify {settings.confidence:.0%}, "
            f"at least {least} are needed"
        )
    share = float(np.mean(error > settings.tolerance))
    return head + (
        f"{share:.1%} of {len(error)} held-out answers exceed it and no threshold of the score sorts them out; "
        "train longer or raise gate.tolerance"
    )
