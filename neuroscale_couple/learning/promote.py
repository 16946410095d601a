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

from neuroscale_couple.calibration import accepted_up_to, clean_pairs
from neuroscale_couple.config import schema
from neuroscale_couple.learning.store import Samples
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, Bool, Points, relative_error

GAIN = 0.02
"""Least gain of a candidate that is promoted: in the combined error, sqrt(p50 p95), or in the accepted share."""
NOISE = 0.05
"""Relative rise of an error quantile that counts as equal: held-out answers are a sample."""
SMALL = 0.1
"""Errors below this share of the tolerance count as equal."""
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

    def combined(self, small: float) -> float:
        """sqrt(p50 p95), where errors below `small` count as small."""
        return math.sqrt(max(self.p50, small) * max(self.p95, small))


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
        score = np.where(_in_range(surrogate, held.inputs), prediction.score, np.inf)
        found[rung.name.lower()] = _metrics(surrogate, rung.name.lower(), score, error, gate)
    return found


def _in_range(surrogate: Surrogate, inputs: F64) -> Bool:
    """Inputs within the training ranges: the gate asks the surrogate nothing else."""
    low, high = np.asarray(surrogate.card.input_range, dtype=np.float64).reshape(-1, 2).T
    return np.asarray(((inputs >= low) & (inputs <= high)).all(axis=1))


def _metrics(surrogate: Surrogate, rung: str, score: F64, error: F64, gate: schema.Gate) -> Metrics:
    known = surrogate.card.calibration.get(rung)
    threshold = None
    if known is not None:
        pairs = clean_pairs(np.asarray(known.score), np.asarray(known.error))
        threshold = accepted_up_to(pairs[:, 0], pairs[:, 1], gate.tolerance, gate.confidence)
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
            return False, f"{rung}: {metrics.above:.1%} of the held-out answers it would accept exceed the tolerance"
    if not any(m.accepted > 0.0 for m in candidate.values()):
        return False, f"no answer of the candidate would be accepted at a tolerance of {gate.tolerance:g}"
    if current is None:
        share = max(m.accepted for m in candidate.values())
        return True, f"first surrogate: {share:.0%} of the held-out answers would be accepted"
    return _compare(candidate, current, gate)


def _breaks_promise(metrics: Metrics, gate: schema.Gate) -> bool:
    from scipy.stats import binom

    accepted = round(metrics.accepted * metrics.n)
    bad = round(metrics.above * accepted)
    return bad > 0 and bool(binom.sf(bad - 1, accepted, 1.0 - gate.confidence) < DOUBT)


def _compare(candidate: Mapping[str, Metrics], current: Mapping[str, Metrics], gate: schema.Gate) -> tuple[bool, str]:
    """No rung may be worse in anything, one must be better; errors far below the tolerance count as equal."""
    small = SMALL * gate.tolerance
    best, said = 0.0, ""
    for rung in [rung for rung in current if rung in candidate]:
        new, old = candidate[rung], current[rung]
        for name in ("p50", "p95"):
            after, before = getattr(new, name), getattr(old, name)
            if not after <= max(before * (1.0 + NOISE), small):
                return False, f"{rung}: {name} would rise from {before:.3g} to {after:.3g}"
        if new.accepted < old.accepted - LOSS:
            return False, f"{rung}: the accepted share would fall from {old.accepted:.0%} to {new.accepted:.0%}"
        gain = 1.0 - new.combined(small) / old.combined(small) if math.isfinite(old.combined(small)) else 1.0
        if max(gain, new.accepted - old.accepted) > best:
            best = max(gain, new.accepted - old.accepted)
            said = (
                f"{rung}: the combined error falls by {gain:.1%} on held-out fine answers, "
                f"the accepted share goes from {old.accepted:.0%} to {new.accepted:.0%}"
            )
    if best < GAIN:
        return False, f"neither error nor accepted share improve by {GAIN:.0%} on any rung"
    return True, said


def write_history(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one decision to `models/history.jsonl`; metrics may be `Metrics`. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(entry, default=lambda value: asdict(value) if isinstance(value, Metrics) else str(value))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
