"""What all learners do around a training: store, decide when, write down, promote on all ranks."""

from __future__ import annotations

import logging
import re
import shutil
import time
import traceback
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import parallel
from neuroscale_couple.config import schema
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.learning.promote import write_history
from neuroscale_couple.learning.store import SampleStore, set_aside
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, FineAnswer, Points

REJECTED, PROMOTED = 0, 1
FILES = (".pt", ".safetensors")
"""An artifact and the weights beside it."""

log = logging.getLogger("neuroscale_couple.learning")


class PromotingLearner(Learner):
    """Stores fine answers of all ranks; rank 0 trains, validates and decides, all ranks load what it promotes.

    Nothing that goes wrong here ends the run: it goes on with the current surrogate, and says why once.
    A learner of its own says when to train (`_due`) and how (`_train`).
    """

    def __init__(
        self,
        settings: schema.Learning,
        problem: MicroProblem,
        folder: Path,
        comm: Any,
        gate: schema.Gate,
        device: str = "auto",
    ) -> None:
        self._settings, self._problem, self._gate, self._device = settings, problem, gate, device
        self._comm = comm
        self._rank, self._size = parallel.rank(comm), parallel.size(comm)
        self._models = folder / "models"
        self._store = SampleStore(folder / "samples", self._rank)
        self._resumed = self._opened = False
        self._new = 0  # samples of this rank since the last training
        self._dear = 0  # answers since then that cost as much as a sample and gave none: of the fine head
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
        if parallel.max_over(
            self._comm, np.array([int(failure is not None)])
        ).any():  # else samples of two runs would mix
            return self._stop(failure or OSError("rank 0 could not set those of an earlier run aside"))
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
        if not self._ready(window, current):
            return None
        new = int(parallel.sum_over(self._comm, np.array([self._new + self._dear], dtype=np.int64))[0])
        self._trainings += 1
        self._seen += new
        self._new = self._dear = 0
        outcome = np.zeros(2, dtype=np.int64)  # decision, version
        if self._rank == 0:
            outcome[:] = self._train_safely(window, current)
        self._broadcast(outcome)
        return self._load(int(outcome[1]), current) if outcome[0] == PROMOTED else None

    def _ready(self, window: int, current: Surrogate | None) -> bool:
        """Whether a training is due; what was observed is written first. Collective: yes."""
        self._flush(window)
        if self._settings.mode != "online" or self._trainings >= self._most_trainings:
            return False
        counts = np.array([int(self._stopped), self._new + self._dear], dtype=np.int64)
        stopped, new = parallel.sum_over(self._comm, counts)
        return not stopped and self._due(int(new), current)

    @property
    @abstractmethod
    def _most_trainings(self) -> float:
        """Trainings in one run at most."""

    @abstractmethod
    def _due(self, new: int, current: Surrogate | None) -> bool:
        """Whether to train now, with so many new samples of all ranks; the same on every rank."""

    @abstractmethod
    def _train(self, current: Surrogate | None, entry: dict[str, Any]) -> tuple[int, int]:
        """Train, validate and decide, on rank 0: REJECTED or PROMOTED, and the version; what to write down in entry."""

    def _rejected(self, version: int) -> tuple[int, int]:
        """Keep a candidate that is not promoted under a name that says so."""
        for file in _files(self._path(version)):
            file.rename(file.with_stem(f"v{version:03d}_rejected"))
        return REJECTED, version

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

    # -- artifacts

    def _keep_first(self, current: Surrogate | None) -> Path | None:
        """The artifact that training starts from; the first one of this run is kept as v000."""
        path = getattr(current, "path", None)
        if path is None:
            return None
        known = self._path(0)
        if not known.exists() or (self._trainings == 1 and Path(path).resolve() != known.resolve()):
            for file in _files(Path(path)):
                shutil.copyfile(file, known.with_suffix(file.suffix))
        return Path(path)

    def _path(self, version: int) -> Path:
        return self._models / f"v{version:03d}.pt"

    def _next_version(self) -> int:
        found = [int(m[1]) for p in self._models.glob("v*.pt") if (m := re.match(r"v(\d+)", p.name))]
        return max([0, *found]) + 1

    def _read(self, path: Path, version: int) -> Surrogate:
        from neuroscale_couple.surrogate import load

        surrogate = load(path, self._problem, device=self._device)
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
        counts = {"new": self._new, "dear": self._dear, "seen": self._seen, "trainings": self._trainings}
        return {name: np.int64(count) for name, count in counts.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on after a resumed window: the shards of the interrupted run are kept."""
        self._resumed = True
        self._new, self._dear, self._seen, self._trainings = (
            int(np.asarray(state.get(name, 0))) for name in ("new", "dear", "seen", "trainings")
        )


def _files(path: Path) -> list[Path]:
    """An artifact and what lies beside it."""
    return [file for suffix in FILES if (file := path.with_suffix(suffix)).exists()]
