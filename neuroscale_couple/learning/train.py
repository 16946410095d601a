"""The learner of a run: stores every fine answer and, between windows, trains a better surrogate."""

from __future__ import annotations

import logging
import re
import shutil
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import parallel
from neuroscale_couple.config import schema
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.learning.promote import Metrics, decide, evaluate, write_history
from neuroscale_couple.learning.select import held_out, select
from neuroscale_couple.learning.store import Samples, SampleStore, set_aside
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, FineAnswer, Points

CAP = 20000
"""Samples that one training uses at most."""
CAP_HELD = 4000
"""Held-out samples that a decision uses at most."""
GROWTH = 0.25
"""A training needs so many new samples, as a share of those that were there at the last one."""
REJECTED, PROMOTED = 0, 1
FILES = (".pt", ".safetensors")
"""An artifact and the weights beside it."""

log = logging.getLogger("neuroscale_couple.learning")


class OnlineLearner(Learner):
    """Stores fine answers of all ranks; rank 0 trains, validates and decides, all ranks load what it promotes.

    A share of the points, chosen by a hash of their ids, is never trained on: candidates are validated there.
    Nothing that goes wrong here ends the run: it goes on with the current surrogate, and says why once.
    """

    def __init__(
        self,
        settings: schema.Learning,
        training: schema.Training,
        problem: MicroProblem,
        folder: Path,
        comm: Any,
        gate: schema.Gate,
    ) -> None:
        self._settings, self._training, self._problem, self._gate = settings, training, problem, gate
        self._comm = comm
        self._rank, self._size = parallel.rank(comm), parallel.size(comm)
        self._models = folder / "models"
        self._store = SampleStore(folder / "samples", self._rank)
        self._resumed = self._opened = False
        self._new = 0  # samples of this rank since the last training
        self._seen = 0  # samples of all ranks at the last training
        self._trainings = 0
        self._points: Points | None = None
        self.message: str | None = None
        """Why learning stopped or a training failed; None: nothing to say."""
        self._stopped = False

    def attach(self, points: Points) -> None:
        """Take the points of this rank."""
        self._points = points
        self._store.attach(points)

    # -- storing

    def observe(self, window: int, inputs: F64, answer: FineAnswer) -> None:
        """Keep converged fine answers; they are written when the window is committed, or when they are many."""
        if self._stopped:
            return
        try:
            self._new += self._store.append(window, inputs, answer)
        except OSError as error:
            self._stop(error)

    def _open(self) -> None:
        """Before the first write: go on with a resumed run's shards, or set an earlier run's aside. Collective: yes."""
        self._opened = True
        failure: OSError | None = None
        try:
            if self._rank == 0 and not self._resumed and (old := set_aside(self._store.folder)):
                log.info("samples of an earlier run are kept in %s", old)
        except OSError as error:
            failure = error
        parallel.barrier(self._comm)
        if failure is not None:
            self._stop(failure)
        self._store.begin()

    def _flush(self, window: int) -> None:
        if not self._opened:
            self._open()
        if self._stopped:
            return
        try:
            self._store.flush(window)
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        """Learning stops on this rank, hence on all; the run goes on."""
        self._stopped = True
        self._store.discard()
        self._say(
            f"rank {self._rank}: fine answers cannot be stored in {self._store.folder} ({error}); "
            "learning stops, the run goes on"
        )

    def _say(self, text: str) -> None:
        self.message = text
        log.warning("learning: %s", text)

    # -- training

    def propose(self, window: int, current: Surrogate | None) -> Surrogate | None:
        """Train if there is enough to learn from, and return the promoted surrogate. Collective: yes."""
        self._flush(window)
        if self._settings.mode != "online" or self._trainings >= self._settings.max_trainings:
            return None
        stopped, new = parallel.sum_over(self._comm, np.array([int(self._stopped), self._new], dtype=np.int64))
        first = self._trainings == 0 and current is None
        least = self._settings.first_samples if first else self._settings.min_samples
        if stopped or new < max(least, GROWTH * self._seen):
            return None
        self._trainings += 1
        self._seen += int(new)
        self._new = 0
        outcome = np.zeros(2, dtype=np.int64)  # decision, version
        if self._rank == 0:
            outcome[:] = self._train_safely(window, current)
        self._broadcast(outcome)
        return self._load(int(outcome[1]), current) if outcome[0] == PROMOTED else None

    def _broadcast(self, outcome: Any) -> None:
        """From rank 0 to all; the others sleep until it is there."""
        if self._size > 1:
            parallel.idle_wait(self._comm.Ibcast(outcome, root=0))

    def _train_safely(self, window: int, current: Surrogate | None) -> tuple[int, int]:
        """Decision and version; a failure is said and counts as rejected."""
        start = time.perf_counter()
        entry: dict[str, Any] = {"window": window, "training": self._trainings}
        decision, version = REJECTED, 0
        try:
            decision, version = self._train(current, entry)
        except Exception as error:  # whatever happens in a training must not end the run
            entry |= {"decision": "failed", "reason": f"{type(error).__name__}: {error}"}
            entry["traceback"] = traceback.format_exc()
            self._say(
                f"window {window}: training failed ({entry['reason']}); the run goes on with the current surrogate"
            )
        entry["seconds"] = round(time.perf_counter() - start, 3)
        try:
            write_history(self._models / "history.jsonl", entry)
        except OSError as error:
            self._say(f"window {window}: the decision could not be written to {self._models} ({error})")
        return decision, version

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
        if not promoted:
            for file in _files(path):
                file.rename(file.with_stem(f"v{version:03d}_rejected"))
        return (PROMOTED if promoted else REJECTED), version

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
        fit(self._problem, data, self._training, out, seconds=budget.seconds, max_steps=budget.steps, start=start)

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

    # -- artifacts

    def _keep_first(self, current: Surrogate | None) -> Path | None:
        """The artifact that training starts from; the first one is kept as v000."""
        path = getattr(current, "path", None)
        if path is None:
            return None
        if not self._path(0).exists():
            for file in _files(Path(path)):
                shutil.copyfile(file, self._path(0).with_suffix(file.suffix))
        return Path(path)

    def _path(self, version: int) -> Path:
        return self._models / f"v{version:03d}.pt"

    def _next_version(self) -> int:
        found = [int(m[1]) for p in self._models.glob("v*.pt") if (m := re.match(r"v(\d+)", p.name))]
        return max([0, *found]) + 1

    def _read(self, path: Path, version: int) -> Surrogate:
        from neuroscale_couple.surrogate import load

        surrogate = load(path, self._problem)
        surrogate.version = version
        return surrogate

    def _load(self, version: int, current: Surrogate | None) -> Surrogate | None:
        """The promoted surrogate on every rank, or None on every rank. Collective: yes."""
        surrogate, failure = None, 0
        try:
            surrogate = self._read(self._path(version), version)
            if self._points is not None:
                surrogate.attach(self._points)
        except Exception as error:  # agreed below: all ranks take it or none
            failure = 1
            self._say(f"rank {self._rank}: {self._path(version)} was promoted but cannot be used here ({error})")
        return None if parallel.sum_over(self._comm, np.array([failure])).any() else surrogate

    # -- checkpoint

    def get_state(self) -> Mapping[str, Any]:
        """Counters; the samples and artifacts are on disk already."""
        counts = {"new": self._new, "seen": self._seen, "trainings": self._trainings}
        return {name: np.int64(count) for name, count in counts.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on after a resumed window: the shards of the interrupted run are kept."""
        self._resumed = True
        self._new, self._seen, self._trainings = (
            int(np.asarray(state.get(name, 0))) for name in ("new", "seen", "trainings")
        )


def _files(path: Path) -> list[Path]:
    """An artifact and what lies beside it."""
    return [file for suffix in FILES if (file := path.with_suffix(suffix)).exists()]
