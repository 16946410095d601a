"""The learner of an opaque micro problem: fits again as soon as something new is known.

A fine answer is expensive and a fit is not: nothing is only held out. The running surrogate is judged on fine answers
that it has not used, leaders by what the other leaders say of them; so is a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import parallel
from neuroscale_couple.calibration import accepted_up_to, clean_pairs
from neuroscale_couple.config import schema
from neuroscale_couple.learning.promote import GAIN, NOISE, SMALL, Metrics
from neuroscale_couple.learning.promoting import PROMOTED, PromotingLearner
from neuroscale_couple.learning.select import select
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.surrogate.opaque import LEAST, OpaqueSurrogate
from neuroscale_couple.training.opaque import Block, fit
from neuroscale_couple.values import F64, I64, FineAnswer

FIRST_SAMPLES = 100
"""Fine answers before the first fit, where the configuration does not say."""
MIN_SAMPLES = 10
"""New fine answers before a fit, where the configuration does not say."""
GROWTH = 0.01
"""A fit needs so many new samples, as a share of those that were there at the last one."""
WINDOWS = 10
"""Last windows that a fit and its evidence come from where a micro problem remembers."""
REFRESH = 5
"""Windows after which a candidate that is as good is promoted for its newer evidence."""
CAP = 3000
"""Samples that one fit uses at most."""
SEEN = 300
"""Latest pairs (score, error) of points that did not lead, met in the run, that calibrate."""
MOSTLY = 0.5
"""Share of the points solved in a window above which the last fit did not pay."""
RARE = 4
"""Windows between two fits from which on it is said that learning pauses."""
KEPT = 4
"""Artifacts kept of a run, beside the first."""
RUNG = Source.SURROGATE_COARSE.name.lower()


class Pace:
    """When to fit again: as soon as there is something new while it pays, else ever more rarely.

    A fit does not pay where more than the share `MOSTLY` of the points is solved all the same; then the next one comes
    after 2, 4, 8 ... windows, so that fits grow with the logarithm of the windows alone. Nor does one whose candidate
    was rejected where no more points lead than must; then pauses grow up to `REFRESH` windows. One window in which it
    is otherwise ends a pause.
    gap: windows after the last fit in which there is none; wait: how many of them are left; vain: most were solved
    """

    def __init__(self) -> None:
        self.gap, self.wait, self.vain = 1, 0, False

    def window(self, solved: float, least: bool = False) -> None:
        """A window has ended in which this share of the points was solved; least: no more led than must."""
        self.wait = max(self.wait - 1, 0)
        if solved <= MOSTLY if self.vain else not least:
            self.gap, self.wait, self.vain = 1, 0, False

    def fitted(self, solved: float, least: bool = False, better: bool = True) -> None:
        """There was a fit in such a window, in which a surrogate was running; better: the candidate replaces it."""
        self.vain = solved > MOSTLY
        if self.vain:
            self.gap *= 2
        elif not least:
            self.gap = 1
        elif not better:
            self.gap = min(2 * self.gap, REFRESH)
        self.wait = self.gap if self.gap > 1 else 0


class OpaqueLearner(PromotingLearner):
    """Fits between windows; early windows teach most."""

    def __init__(
        self, settings: schema.Learning, problem: OpaqueProblem, folder: Path, comm: Any, gate: schema.Gate
    ) -> None:
        super().__init__(settings, problem, folder, comm, gate)
        self._opaque = problem
        self._total = 0  # samples of all ranks so far
        self._promoted = 0  # window of the last promotion
        self._pairs: F64 = np.zeros((0, 2))  # latest evidence of all ranks
        self._pace = Pace()
        self._answers: list[tuple[I64, F64, F64]] = []  # of this window and rank: rows, questions, outputs

    def observe(self, window: int, inputs: F64, answer: FineAnswer) -> None:
        """See `Learner.observe`."""
        good = np.flatnonzero(answer.converged)
        self._answers.append((answer.rows[good], inputs[good], answer.outputs[good]))
        super().observe(window, inputs, answer)

    def propose(self, window: int, current: Surrogate | None) -> Surrogate | None:
        """See `Learner.propose`: judges the running surrogate first. Collective: yes."""
        answers, self._answers = self._answers, []
        pairs = self._judge(current, answers)
        if self._size > 1:
            pairs = np.concatenate(self._comm.allgather(pairs))
        self._pairs = np.concatenate([self._pairs, pairs])[-SEEN:]
        (solved, least), trainings = self._solved(answers, current), self._trainings
        self._pace.window(solved, least)
        better = super().propose(window, current)
        if self._trainings > trainings and current is not None:
            self._pace.fitted(solved, least, better is not None)
            if self._pace.vain and self._pace.gap == RARE:
                self._say(
                    f"window {window}: {solved:.0%} of the points are solved although there is a surrogate, "
                    f"learning does not pay: it pauses for {RARE} windows, then for twice as many, "
                    "until more answers are accepted"
                )
        return better

    def _solved(self, answers: list[tuple[I64, F64, F64]], current: Surrogate | None) -> tuple[float, bool]:
        """Share of the points of all ranks that were solved, and whether no more led than must. Collective: yes."""
        rows = np.unique(np.concatenate([rows for rows, *_ in answers])) if answers else ()
        total = len(self._points) if self._points is not None else 0
        led = len(current.leaders) if isinstance(current, OpaqueSurrogate) and self._opaque.remembers else LEAST + 1
        counts = np.array([len(rows), total, int(led > LEAST)], dtype=np.int64)
        solved, points, more = parallel.sum_over(self._comm, counts)
        return float(solved / max(points, 1)), not more

    def _judge(self, current: Surrogate | None, answers: list[tuple[I64, F64, F64]]) -> F64:
        """Pairs (score, error) of the running surrogate on this window's fine answers, each point's last one."""
        if not isinstance(current, OpaqueSurrogate) or not answers:
            return np.zeros((0, 2))
        rows, question, outputs = (np.concatenate(arrays) for arrays in zip(*answers, strict=True))
        _, last = np.unique(rows[::-1], return_index=True)
        last = len(rows) - 1 - last
        if current.idle:
            return np.zeros((0, 2))
        pairs = current.evidence(rows[last], question[last], outputs[last])
        return clean_pairs(pairs[:, 0], pairs[:, 1])

    def _set(self, key: str, otherwise: float) -> float:
        """A number of the configuration, or ours where it does not say."""
        return float(getattr(self._settings, key)) if key in self._settings.model_fields_set else otherwise

    @property
    def _most_trainings(self) -> float:
        return self._set("max_trainings", np.inf)

    def _due(self, new: int, current: Surrogate | None) -> bool:
        if current is None and not self._trainings:
            return new >= self._set("first_samples", FIRST_SAMPLES)
        return self._pace.wait == 0 and new >= max(self._set("min_samples", MIN_SAMPLES), GROWTH * self._seen)

    def _train(self, current: Surrogate | None, entry: dict[str, Any]) -> tuple[int, int]:
        window = int(entry["window"])
        blocks = self._blocks(window)
        self._models.mkdir(parents=True, exist_ok=True)
        start = self._keep_first(current)
        version = self._next_version()
        path = self._path(version)
        lengths = current.card.domain.get("lengths") if current is not None else None
        fit(self._opaque, blocks, path, self._pairs, lengths, getattr(current, "sha256", None))
        candidate = self._read(path, version)
        before, after = (self._metrics(surrogate, blocks[-1]) for surrogate in (current, candidate))
        stale = window - self._promoted >= REFRESH or _widens(candidate, current) or getattr(current, "idle", False)
        promoted, reason = decide(after, before, SMALL * self._gate.tolerance, stale)
        entry |= {"samples": sum(len(b.question) for b in blocks), "start": start, "version": version}
        entry |= {"before": before, "after": after, "reason": reason}
        entry["decision"] = "promoted" if promoted else "rejected"
        if not promoted:
            return self._rejected(version)
        self._promoted = window
        self._forget_old(version)
        return PROMOTED, version

    def _blocks(self, window: int) -> list[Block]:
        """What to fit to: the last windows one by one, or everything as one. Raises: ValueError if there is nothing."""
        remembers = self._opaque.remembers
        samples = self._store.read(window - WINDOWS + 1 if remembers else 0)
        if samples is None:
            raise ValueError(f"no whole shard of samples in {self._store.folder}")
        if not remembers:
            if len(samples) > CAP:
                samples = samples.take(select(samples.structure, samples.inputs, CAP))
            return [Block(samples.inputs, samples.outputs)]
        parts = [np.flatnonzero(samples.window == w) for w in np.unique(samples.window)]
        latest = [rows[len(rows) - 1 - np.unique(samples.ids[rows][::-1], return_index=True)[1]] for rows in parts]
        return [Block(samples.inputs[rows], samples.outputs[rows]) for rows in latest]

    def _metrics(self, surrogate: Surrogate | None, block: Block) -> Metrics | None:
        """A surrogate on this block, each sample answered from the others that it keeps or that lead."""
        if surrogate is None:
            return None
        assert isinstance(surrogate, OpaqueSurrogate)
        pairs = surrogate.cross_validate(block.question, block.outputs)
        known = surrogate.card.calibration[RUNG]
        evidence = clean_pairs(np.asarray(known.score), np.asarray(known.error))
        limit = accepted_up_to(evidence[:, 0], evidence[:, 1], self._gate.tolerance, self._gate.confidence)
        accepted = pairs[:, 0] <= (-np.inf if limit is None else limit)
        above = float(np.mean(pairs[accepted, 1] > self._gate.tolerance)) if accepted.any() else 0.0
        p50, p95 = (float(np.quantile(pairs[:, 1], q, method="higher")) for q in (0.5, 0.95))
        return Metrics(len(pairs), p50, p95, float(np.mean(accepted)), above)

    def _forget_old(self, version: int) -> None:
        """Remove artifacts that no checkpoint can name any more."""
        for old in range(1, version - KEPT):
            for name in (f"v{old:03d}.pt", f"v{old:03d}_rejected.pt"):
                (self._models / name).unlink(missing_ok=True)

    def get_state(self) -> Mapping[str, Any]:
        """Counters, and the latest evidence."""
        counts = {"promoted": self._promoted, "gap": self._pace.gap, "wait": self._pace.wait, "vain": self._pace.vain}
        return {**super().get_state(), **{name: np.int64(n) for name, n in counts.items()}, "pairs": self._pairs}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `PromotingLearner.set_state`."""
        super().set_state(state)
        self._promoted, self._pace.wait = (int(np.asarray(state.get(name, 0))) for name in ("promoted", "wait"))
        self._pace.gap = int(np.asarray(state.get("gap", 1)))
        self._pace.vain = bool(np.asarray(state.get("vain", self._pace.gap > 1)))
        self._pairs = np.asarray(state.get("pairs", np.zeros((0, 2))), dtype=np.float64).reshape(-1, 2)


def _widens(candidate: Surrogate, current: Surrogate | None) -> bool:
    """Whether an input varies that did not vary in anything the current surrogate was fitted to."""
    if current is None:
        return False
    spans = [np.ptp(np.asarray(surrogate.card.input_range), axis=1) for surrogate in (candidate, current)]
    return bool((spans[0] > 2.0 * spans[1]).any())


def decide(candidate: Metrics | None, current: Metrics | None, small: float, stale: bool) -> tuple[bool, str]:
    """Whether to promote, and the reason as a sentence; both metrics are of the same new fine answers.

    small: error below which errors count as equal; stale: whether the current one's evidence is old
    """
    assert candidate is not None
    if current is None:
        return True, f"first surrogate: {candidate.accepted:.0%} of the fine answers would be accepted"
    for name in ("p50", "p95"):
        after, before = getattr(candidate, name), getattr(current, name)
        if not after <= max(before * (1.0 + NOISE), small):
            return False, f"{name} on new fine answers would rise from {before:.3g} to {after:.3g}"
    if candidate.accepted == 0.0 < current.accepted:
        return False, "it would accept nothing, the current one does; audits watch that one"
    gain = 1.0 - candidate.combined(small) / current.combined(small)
    share = candidate.accepted - current.accepted
    if max(gain, share) < GAIN and not stale:
        return False, f"neither error nor accepted share improve by {GAIN:.0%} on new fine answers"
    return True, (
        f"the combined error falls by {gain:.1%} on {candidate.n} new fine answers, "
        f"the accepted share goes from {current.accepted:.0%} to {candidate.accepted:.0%}"
    )
