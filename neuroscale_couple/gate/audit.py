"""Stage `audit`: measures the true error of accepted answers and raises the alarm when it is too large too often."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.config import schema
from neuroscale_couple.gate.base import GateStage
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, I64, U8, Audit, Points

RECENT = 300
"""Audits that the monitor looks back on."""
ALARM = 0.01
"""Chance of an alarm, at one test, if the accepted answers keep the confidence exactly."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Monitor(GateStage):
    r"""Selects audits and tests them: with k of the last n audits above the tolerance, alarm if

        P(Binomial(n, 1 - confidence) >= k) < 0.01.

    A point is audited in a window if a hash of (seed, window, global id) falls below the configured share, so
    the choice depends neither on the rank layout nor on what happened before: a resumed run audits the same points.
    Where a micro problem remembers (`MicroProblem.remembers`), the hash leaves the window out: the same points are
    audited every time, because a point that has not been solved for long must be brought up to date first.
    """

    def __init__(self, settings: schema.Gate, problem: MicroProblem) -> None:
        self._settings = settings
        self._same_points = bool(getattr(problem, "remembers", False))
        self._recent: deque[tuple[float, ...]] = deque(maxlen=RECENT)  # source, score, error, 1 where taken

    def attach(self, points: Points, card: Card | None) -> None:
        """A new surrogate starts with a clean record."""
        self._recent.clear()

    def select(self, window: int, ids: I64, source: U8) -> I64:
        """Local rows (int64) of the accepted points to be audited at the end of a window."""
        share = self._settings.audit
        if share <= 0.0 or (window + 1) % self._settings.audit_every:
            return np.zeros(0, dtype=np.int64)
        drawn = source != Source.FINE
        if share < 1.0:
            limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
            drawn &= draw(self._settings.seed, 0 if self._same_points else window, ids) < limit
        return np.flatnonzero(drawn)

    def learn(self, audit: Audit) -> None:
        """Add the audits of a window (of all ranks) to the record."""
        new = np.zeros(len(audit.rows))
        self._recent.extend(zip(*(a.tolist() for a in (audit.source, audit.score, audit.error, new)), strict=True))

    @property
    def record(self) -> F64:
        """The recent audits: float64 [n, 3], columns source, score, true relative error."""
        return self._all[:, :3]

    @property
    def _all(self) -> F64:
        return np.asarray(self._recent, dtype=np.float64).reshape(-1, 4)

    def take(self) -> F64:
        """Those of the recent audits that no earlier call has given: each is evidence once. As `record`."""
        everything = self._all
        fresh = everything[everything[:, 3] == 0.0, :3]
        everything[:, 3] = 1.0
        self._recent = _as_deque(everything)
        return fresh

    def keep(self, accepted: Callable[[U8, F64], Any]) -> None:
        """Forget the audits of answers that would not be accepted any more."""
        record = self._all
        kept = record[np.asarray(accepted(record[:, 0].astype(np.uint8), record[:, 1]), dtype=bool)]
        self._recent = _as_deque(kept)

    @property
    def alarm(self) -> bool:
        """Whether the recent audits show more errors above the tolerance than the confidence allows."""
        from scipy.stats import binom

        n, bad = len(self._recent), self.bad
        return bad > 0 and bool(binom.sf(bad - 1, n, 1.0 - self._settings.confidence) < ALARM)

    @property
    def bad(self) -> int:
        """Recent audits above the tolerance; an error that is not a number counts."""
        return int(np.count_nonzero(~(self.record[:, 2] <= self._settings.tolerance)))

    def get_state(self) -> Mapping[str, Any]:
        """The recent audits."""
        return {"recent": self._all}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the recent audits."""
        record = np.asarray(state.get("recent", np.zeros((0, 4))), dtype=np.float64).reshape(-1, 4)
        self._recent = _as_deque(record)


def _as_deque(record: F64) -> deque[tuple[float, ...]]:
    return deque(zip(*record.T.tolist(), strict=True), maxlen=RECENT)


def draw(seed: int, window: int, ids: I64) -> Any:
    """Uniform uint64 [n] numbers that depend on (seed, window, id) alone.

    Source: Steele, Lea & Flood 2014 (SplitMix64), used as a counter-based hash.
    """
    key = _mix(_mix(_unsigned([seed])) ^ _unsigned([window]))
    return _mix(_mix(_unsigned(ids)) ^ key)


def _unsigned(values: npt.ArrayLike) -> Any:
    return np.ascontiguousarray(values, dtype=np.int64).view(np.uint64)


def _mix(z: Any) -> Any:
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
