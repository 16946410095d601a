"""Is a candidate better than the running surrogate? Decided on fine answers that neither was trained on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.calibration import certified_threshold, clean_pairs
from neuroscale_couple.config import schema
from neuroscale_couple.learning.store import Samples
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, Points, relative_error

GAIN = 0.02
"""Least relative gain in the combined error, sqrt(p50 p95), of a candidate that is promoted."""
LOSS = 0.01
"""Share of accepted answers that a candidate may lose."""
DOUBT = 0.01
"""A candidate is refused if what it would accept breaks the tolerance too often, at this level of a binomial test."""


@dataclass(frozen=True)
class Metrics:
    """One rung on held-out fine answers: relative errors, and the share that the gate would accept.

    above: share of the accepted answers above the tolerance
    """

    n: int
    p50: float
    p95: float
    accepted: float
    above: float

    @property
    def combined(self) -> float:
        """sqrt(p50 p95)."""
        return math.sqrt(self.p50 * self.p95)


def evaluate(surrogate: Surrogate, held: Samples, floor: float, gate: schema.Gate) -> dict[str, Metrics]:
    """Metrics of each rung on held-out samples; attaches the surrogate to their points.

    floor: of the relative error (`MicroProblem.output_floor`)
    """
    count = len(held.point_ids)
    surrogate.attach(Points(held.point_ids, np.zeros((count, 2)), np.ones(count), held.parameters))
    found = {}
    for rung in surrogate.rungs:
        prediction = surrogate.predict(rung, held.structure, held.inputs)
        error = relative_error(prediction.outputs, held.outputs, floor)
        found[rung.name.lower()] = _metrics(surrogate, rung.name.lower(), prediction.score, error, gate)
    return found


def _metrics(surrogate: Surrogate, rung: str, score: F64, error: F64, gate: schema.Gate) -> Metrics:
    known = surrogate.card.calibration.get(rung)
    threshold = None
    if known is not None:
        pairs = clean_pairs(np.asarray(known.score), np.asarray(known.error))
        threshold = certified_threshold(pairs[:, 0], pairs[:, 1], gate.tolerance, gate.confidence)
    error = np.where(np.isfinite(error), error, np.inf)
    accepted = score <= (-np.inf if threshold is None else threshold)
    above = float(np.mean(error[accepted] > gate.tolerance)) if accepted.any() else 0.0
    p50, p95 = (float(np.quantile(error, q, method="higher")) for q in (0.5, 0.95))
    return Metrics(len(error), p50, p95, float(np.mean(accepted)), above)


def decide(
    candidate: Mapping[str, Metrics], current: Mapping[str, Metrics] | None, gate: schema.Gate
) -> tuple[bool, str]:
    """Whether to promote, and the reason as a sentence."""
    for rung, metrics in candidate.items():
        if _breaks_promise(metrics, gate):
            return False, f"{rung}: {metrics.above:.1%} of the held-out answers it would accept pass the tolerance"
    if not any(m.accepted > 0.0 for m in candidate.values()):
        return False, f"no answer of the candidate would be accepted at a tolerance of {gate.tolerance:g}"
    if current is None:
        share = max(m.accepted for m in candidate.values())
        return True, f"first surrogate: {share:.0%} of the held-out answers would be accepted"
    return _compare(candidate, current)


def _breaks_promise(metrics: Metrics, gate: schema.Gate) -> bool:
    from scipy.stats import binom

    accepted = round(metrics.accepted * metrics.n)
    bad = round(metrics.above * accepted)
    return bad > 0 and bool(binom.sf(bad - 1, accepted, 1.0 - gate.confidence) < DOUBT)


def _compare(candidate: Mapping[str, Metrics], current: Mapping[str, Metrics]) -> tuple[bool, str]:
    gains = []
    for rung in [rung for rung in current if rung in candidate]:
        new, old = candidate[rung], current[rung]
        for name in ("p50", "p95"):
            if getattr(new, name) > getattr(old, name):
                return False, f"{rung}: {name} would rise from {getattr(old, name):.3g} to {getattr(new, name):.3g}"
        if new.accepted < old.accepted - LOSS:
            return False, f"{rung}: the accepted share would fall from {old.accepted:.0%} to {new.accepted:.0%}"
        gains.append(1.0 - new.combined / old.combined if 0.0 < old.combined < math.inf else float(old.combined > 0.0))
    best = max(gains, default=0.0)
    if not best >= GAIN:
        return False, f"the combined error falls by {best:.1%} only, {GAIN:.0%} are needed"
    return True, f"the combined error falls by {best:.1%} on held-out fine answers"


def write_history(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one decision to `models/history.jsonl`; metrics may be `Metrics`. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry, default=lambda value: asdict(value) if isinstance(value, Metrics) else str(value))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
