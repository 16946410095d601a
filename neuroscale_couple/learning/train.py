"""The learner of the operator: between windows, trains on part of the points and validates on the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import parallel
from neuroscale_couple.config import schema
from neuroscale_couple.learning.ahead import expected, growth, questions
from neuroscale_couple.learning.base import Questions
from neuroscale_couple.learning.promote import Metrics, decide, evaluate
from neuroscale_couple.learning.promoting import PROMOTED, PromotingLearner
from neuroscale_couple.learning.select import held_out, select
from neuroscale_couple.learning.store import Samples
from neuroscale_couple.physics.base import CellProblem, MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, U8

CAP = 20000
"""Samples that one training uses at most."""
CAP_HELD = 4000
"""Held-out samples that a decision uses at most."""
GROWTH = 0.25
"""A training needs so many new samples, as a share of those that were there at the last one."""

POOL = 20000
"""Expected loads that a training may draw from."""


class OnlineLearner(PromotingLearner):
    """Trains the operator on fine answers.

    A share of the points, chosen by a hash of their ids, is never trained on: candidates are validated there.
    """

    def __init__(
        self,
        settings: schema.Learning,
        training: schema.Training,
        problem: MicroProblem,
        folder: Path,
        comm: Any,
        gate: schema.Gate,
        device: str,
    ) -> None:
        super().__init__(settings, problem, folder, comm, gate, device)
        self._training = training
        self._expected: F64 | None = None  # loads that the run may meet, for the training that is due

    @property
    def _most_trainings(self) -> float:
        return self._settings.max_trainings

    def _due(self, new: int, current: Surrogate | None) -> bool:
        first = self._trainings == 0 and current is None
        least = self._settings.first_samples if first else self._settings.min_samples
        return new >= max(least, GROWTH * self._seen)

    def ask(self, window: int, current: Surrogate | None, inputs: F64, source: U8) -> Questions:
        """Loads ahead of the run, before a training; see `learning.ahead`. Collective: yes."""
        self._dear += int(np.count_nonzero(source == Source.SURROGATE_FINE))
        self._expected = None
        problem, settings = self._problem, self._settings
        if not settings.probes or not isinstance(problem, CellProblem) or not self._ready(window, current):
            return ()
        from neuroscale_couple.training.dataset import load_ranges

        assert self._points is not None
        box = load_ranges(problem, self._training) if self._training.load_range else None
        points = len(inputs)
        total = int(parallel.sum_over(self._comm, np.array([points], dtype=np.int64))[0])
        largest = -growth(inputs, problem.driving, box, settings.ahead)
        ahead = -float(parallel.max_over(self._comm, np.array([largest]))[0])  # the least of all ranks
        rng = np.random.default_rng([self._training.seed, window, self._rank])
        rows = rng.integers(points, size=POOL) if points else np.zeros(0, dtype=np.int64)
        self._expected = expected(inputs[rows], problem.driving, box, ahead, rng)
        count = round(settings.probes * points / max(total, 1))
        held = held_out(self._points.ids, settings.hold_out)
        return questions(inputs, held, count, problem.driving, box, ahead, rng)

    def _train(self, current: Surrogate | None, entry: dict[str, Any]) -> tuple[int, int]:
        training, held = self._samples()
        self._models.mkdir(parents=True, exist_ok=True)
        start = self._keep_first(current)
        entry |= {"samples": len(training), "held_out": len(held), "start": start}
        version = self._next_version()
        path = self._path(version)
        self._fit(training, path, start)
        floor = float(self._problem.output_floor())
        candidate = evaluate(self._read(path, version), held, floor, self._gate)
        before = self._evaluate_current(current, held, floor)
        promoted, reason = decide(candidate, before, self._gate)
        entry |= {"version": version, "before": before, "after": candidate, "reason": reason}
        entry["decision"] = "promoted" if promoted else "rejected"
        return (PROMOTED, version) if promoted else self._rejected(version)

    def _samples(self) -> tuple[Samples, Samples]:
        """Samples to train on and held-out ones. Raises: ValueError if there are too few of either."""
        samples = self._store.read()
        if samples is None:
            raise ValueError(f"no whole shard of samples in {self._store.folder}")
        held = held_out(samples.ids, self._settings.hold_out)
        parts = []
        for rows, cap in ((np.flatnonzero(~held), CAP), (np.flatnonzero(held), CAP_HELD)):
            chosen = rows[select(samples.structure[rows], samples.inputs[rows], cap)]
            parts.append(samples.take(chosen))
        if not len(parts[0]) or not len(parts[1]):
            raise ValueError(
                f"{len(parts[0])} samples to train on and {len(parts[1])} held-out ones are too few; "
                "change learning.hold_out"
            )
        return parts[0], parts[1]

    def _fit(self, samples: Samples, out: Path, start: Path | None) -> None:
        from neuroscale_couple.training.dataset import Dataset
        from neuroscale_couple.training.fitting import fit

        data = Dataset(
            phase=samples.parameters["phase"],
            structure=samples.structure,
            inputs=samples.inputs,
            outputs=samples.outputs,
            tangent=samples.tangent,
        )
        budget = self._settings
        fit(
            self._problem,
            data,
            self._training,
            out,
            seconds=budget.seconds,
            max_steps=budget.steps,
            start=start,
            expected=self._expected,
        )

    def _evaluate_current(self, current: Surrogate | None, held: Samples, floor: float) -> dict[str, Metrics] | None:
        """The running surrogate on the held-out samples; its encoded points stay as they are."""
        if current is None:
            return None
        path = getattr(current, "path", None)
        if path is not None:
            return evaluate(self._read(Path(path), current.version), held, floor, self._gate)
        try:
            return evaluate(current, held, floor, self._gate)
        finally:
            assert self._points is not None
            current.attach(self._points)
