"""The gate of a run: the configured stages in order; closed as a whole by the config, without a model, or by audits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.config.named import make
from neuroscale_couple.gate.audit import Monitor
from neuroscale_couple.gate.base import GateStage
from neuroscale_couple.gate.uncertainty import Uncertainty
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, I64, U8, Audit, Points, Prediction

STAGES = {
    "domain": "neuroscale_couple.gate.domain:Domain",
    "uncertainty": "neuroscale_couple.gate.uncertainty:Uncertainty",
    "physical": "neuroscale_couple.gate.physical:Physical",
    "audit": "neuroscale_couple.gate.audit:Monitor",
}
KEPT = 20
"""Audits below a lowered threshold that are needed to trust it."""

log = logging.getLogger("neuroscale_couple.gate")


class Gate(GateStage):
    """Runs its stages in order; every rank decides alike because `learn` sees all ranks' audits."""

    def __init__(self, settings: schema.Gate, problem: MicroProblem, comm: Any = None) -> None:
        self.settings = settings
        self.stages: dict[str, GateStage] = {
            name: make("gate.stages", name, STAGES, GateStage, settings, problem) for name in settings.stages
        }
        self._comm = comm
        self._has_model = False
        self._closed_by_audits = False
        self._message: str | None = None

    @property
    def closed(self) -> bool:
        """Whether every point is refused."""
        return not self.settings.open or not self._has_model or self._closed_by_audits

    @property
    def message(self) -> str | None:
        """What the user should know: why the gate closed itself or why a rung accepts nothing."""
        said = [self._message, *(stage.message for stage in self.stages.values())]
        return "; ".join(text for text in said if text) or None

    def attach(self, points: Points, card: Card | None) -> None:
        """Take points and card, at the start and after a promotion, which opens a gate that audits had closed."""
        self._has_model = card is not None
        self._closed_by_audits = False
        self._message = None
        for stage in self.stages.values() if self.settings.open else ():
            stage.attach(points, card)

    def limit(self, iteration: int, reason: U8) -> None:
        """Refuse all points from `gate.iterations` of a window on. reason: uint8 [n], in/out"""
        if self.settings.iterations is not None and iteration >= self.settings.iterations and not self.closed:
            np.copyto(reason, np.uint8(Reason.SLOW), where=reason == 0)

    def admit(self, inputs: F64, reason: U8) -> None:
        """Refuse inputs; all of them when closed."""
        if self.closed:
            why = Reason.NO_MODEL if self.settings.open and not self._has_model else Reason.GATE_CLOSED
            np.copyto(reason, np.uint8(why), where=reason == 0)
            return
        for stage in self.stages.values():
            stage.admit(inputs, reason)

    def accept(self, rung: Source, inputs: F64, prediction: Prediction, error: F64, reason: U8) -> None:
        """Refuse answers. error: float64 [m], out; without a stage that estimates it, the tolerance."""
        error[:] = self.settings.tolerance
        for stage in self.stages.values():
            stage.accept(rung, inputs, prediction, error, reason)

    def largest_score(self, rung: Source) -> float:
        """Largest score that is accepted on a rung: -inf if none is, inf without the stage `uncertainty`."""
        stage = next((s for s in self.stages.values() if isinstance(s, Uncertainty)), None)
        return np.inf if stage is None else stage.thresholds.get(rung, -np.inf)

    def asks(self, rung: Source) -> bool:
        """Whether a rung is worth asking: the configuration wants it, and some of its answers may be accepted."""
        wanted = self.settings.fine_head or rung is not Source.SURROGATE_FINE
        return wanted and self.largest_score(rung) > -np.inf

    def select_audits(self, window: int, ids: I64, source: U8) -> I64:
        """Local rows (int64) to audit at the end of a window; none without the `audit` stage."""
        monitor = self._monitor
        if monitor is None or self.closed:
            return np.zeros(0, dtype=np.int64)
        return monitor.select(window, ids, source)

    def learn(self, audit: Audit) -> None:
        """Take this rank's audits of a converged window. Collective: yes."""
        if not self.settings.open or self._monitor is None:
            return
        audit = gather(audit, self._comm)
        if not len(audit.rows):
            return
        for stage in self.stages.values():
            stage.learn(audit)
        monitor = self._monitor
        if monitor.alarm and not self._closed_by_audits:
            self._react(monitor)

    def _react(self, monitor: Monitor) -> None:
        """Too many bad audits: calibrate again with them; lower a threshold; else close."""
        bad, n = monitor.bad, len(monitor.record)
        found = f"{bad} of the last {n} audits exceed the tolerance of {self.settings.tolerance:g}"
        stage = next((s for s in self.stages.values() if isinstance(s, Uncertainty)), None)
        if stage is not None:
            record = monitor.take()  # each audit is evidence once
            stage.add_pairs(record[:, 0].astype(np.uint8), record[:, 1], record[:, 2])
            monitor.keep(stage.would_accept)
            if monitor.alarm:
                self._lower(monitor, stage)
            if not monitor.alarm and stage.thresholds:
                return self._say(f"gate: {found}; calibrated again with them, fewer answers are accepted from now on")
        self._closed_by_audits = True
        self._say(f"gate: {found}, more than a confidence of {self.settings.confidence:.0%} allows; the gate is closed "
                  "until a better surrogate is promoted")  # fmt: skip

    def _lower(self, monitor: Monitor, stage: Uncertainty) -> None:
        """Lower each rung's threshold to the largest score below which its audits keep the confidence."""
        record = monitor.record
        for rung in list(stage.thresholds):
            mine = record[record[:, 0] == rung]
            mine = mine[np.argsort(mine[:, 1], kind="stable")]
            share = np.cumsum(~(mine[:, 2] <= self.settings.tolerance)) / np.arange(1, len(mine) + 1)
            good = np.flatnonzero((share <= 1.0 - self.settings.confidence) & (np.arange(1, len(mine) + 1) >= KEPT))
            if len(mine) and not (len(good) and good[-1] == len(mine) - 1):
                stage.lower(rung, float(mine[good[-1], 1]) if len(good) else -np.inf)
        monitor.keep(stage.would_accept)

    def _say(self, text: str) -> None:
        self._message = text
        if self._comm is None or self._comm.rank == 0:
            log.warning("%s", text)

    @property
    def _monitor(self) -> Monitor | None:
        return next((s for s in self.stages.values() if isinstance(s, Monitor)), None)

    def get_state(self) -> Mapping[str, Any]:
        """State of all stages, keys `stage/key`."""
        state: dict[str, Any] = {"closed": np.int64(self._closed_by_audits)}
        for name, stage in self.stages.items():
            state |= {f"{name}/{key}": value for key, value in stage.get_state().items()}
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave, after `attach`."""
        self._closed_by_audits = bool(np.asarray(state.get("closed", 0)))
        for name, stage in self.stages.items():
            stage.set_state({k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}/")})


def gather(audit: Audit, comm: Any) -> Audit:
    """All ranks' audits in an order that does not depend on the rank layout. Collective: yes."""
    if comm is not None and comm.size > 1:
        parts: list[Audit] = comm.allgather(audit)
        audit = Audit(*(np.concatenate([getattr(p, f) for p in parts]) for f in Audit.__dataclass_fields__))
    order = np.lexsort((audit.score, audit.error, audit.source))
    return Audit(audit.rows[order], audit.source[order], audit.score[order], audit.estimate[order], audit.error[order])
