"""A user's own micro simulations (classes of the preCICE Micro Manager) as the fine solver.

A point's simulation is built when the point first needs it, in a worker process. `position` counts the steps that its
live state has taken; the run is at step `len(journal)`. A point that others have answered meanwhile is brought up to
date by a replay of its recorded inputs; one that is ahead (the window is repeated) goes back to its saved state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError, FineSolverError
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.fine.jobs import NONE, Done, Facts, Job, Lost, Output, Spec
from neuroscale_couple.fine.journal import Journal
from neuroscale_couple.fine.pool import Pool, Process
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.values import F64, I64, Batch, FineAnswer, Layout, Points

LIVES = 2
"""How often a point may take its worker down in one call before it counts as failed."""


class MicroManager(FineSolver):
    """Runs micro simulations in worker processes, one message a worker and call."""

    def __init__(self, settings: schema.Fine, problem: MicroProblem) -> None:
        self.spec = spec_of(settings, problem)
        self.settings = settings.micro
        self.remembers = bool(getattr(problem, "remembers", True))
        self.inputs, self.outputs = problem.inputs, problem.outputs
        self.pool: Pool | None = None
        self.journal = Journal(0, 0)

    def attach(self, points: Points) -> None:
        """Take the points and start the workers. Raises: ConfigError"""
        self.close()
        self.points, n = points, len(points)
        self.position: I64 = np.full(n, -1, dtype=np.int64)  # steps that the live state has taken; -1: not built
        self.saved_at: I64 = np.full(n, -1, dtype=np.int64)  # step of the saved state; -1: none
        self.home: I64 = np.full(n, -1, dtype=np.int64)  # worker
        self.asked: F64 = np.zeros((n, self.inputs.size))
        self.first: F64 | None = None  # inputs of the first step, with which simulations are initialised
        self.dt, self.windows, self.window_start = 1.0, 0, 0
        self.journal = Journal(n, self.inputs.size)
        self.told: dict[int, str] = {}
        self.workers = self.settings.workers or cores()
        if n:
            self.pool = Pool(self.spec, self.workers, self.settings.timeout)

    @property
    def advice(self) -> str:
        """See `FineSolver.advice`."""
        return "Look at the micro simulation, or set fine.on_failure: keep"

    @property
    def _saves(self) -> bool:
        assert self.pool is not None
        return self.remembers and self.settings.rollback and self.pool.facts.restorable

    def begin(self, batch: Batch) -> None:
        """Keep what all points are asked: those that others answer are replayed with it later."""
        self.asked, self.dt = batch.inputs, batch.dt
        if self.first is None:
            self.first = np.array(batch.inputs)

    def solve(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """See `FineSolver.solve`. iterations: micro solves, those of a replay included. Raises: FineSolverError"""
        outputs = np.zeros((len(rows), self.outputs.size))
        spent: I64 = np.zeros(len(rows), dtype=np.int64)
        failed: dict[int, str] = {int(i): "an input is not finite" for i in bad_rows(inputs)}
        lives: I64 = np.full(len(rows), LIVES, dtype=np.int64)
        if inputs is not self.asked and not np.array_equal(self.asked[rows], inputs, equal_nan=True):  # without `begin`
            self.asked = np.array(self.asked)
            self.asked[rows] = inputs
        todo = np.setdiff1d(np.arange(len(rows)), list(failed)) if failed else np.arange(len(rows))
        while len(todo):
            todo = self._round(todo, rows, inputs, outputs, failed, lives, spent)
        for place, said in failed.items():
            self.told[int(rows[place])] = said
        converged = np.ones(len(rows), dtype=np.bool_)
        converged[list(failed)] = False
        tangent = np.zeros((len(rows), self.outputs.size, 0))
        return FineAnswer(rows, outputs, tangent, converged, spent, np.zeros(len(rows)))

    def _round(
        self, todo: I64, rows: I64, inputs: F64, outputs: F64, failed: dict[int, str], lives: I64, spent: I64
    ) -> I64:
        """One message to every worker; returns the places that must be asked again, as their worker was lost."""
        assert self.pool is not None
        self._house(rows[todo])
        parts = self._dealt(rows[todo])
        parts = {w: todo[at] for w, at in parts.items()} if len(todo) < len(rows) else parts
        again = [NONE]
        jobs = {w: self._job(rows[at], inputs[at]) for w, at in parts.items()}
        for worker, result in self.pool.run(jobs).items():
            at = parts[worker]
            if isinstance(result, Lost):
                culprit = int(at[result.place])
                lives[culprit] -= 1
                if lives[culprit] == 0:
                    failed[culprit] = f"{result.said}; twice"
                self._forget(np.flatnonzero(self.home == worker))
                again.append(at[at != culprit] if lives[culprit] == 0 else at)
                continue
            self._take(jobs[worker], result, at, outputs, failed, spent)
        return np.concatenate(again)

    def _dealt(self, rows: I64) -> dict[int, I64]:
        """Places in `rows` (int64 [m]) by worker."""
        home = self.home[rows]
        return {int(w): np.flatnonzero(home == w) for w in np.flatnonzero(np.bincount(home))}

    def _take(self, job: Job, done: Done, at: I64, outputs: F64, failed: dict[int, str], spent: I64) -> None:
        outputs[at] = done.outputs
        spent[at] += 1
        spent[at[job.replay]] += len(self.journal) - job.starts
        self.position[job.rows] = len(self.journal) + 1
        if self.remembers:
            self.saved_at[job.rows[job.save]] = len(self.journal)
            kept = job.replay[(job.starts <= job.keep) & (job.keep < len(self.journal))] if job.keep >= 0 else NONE
            self.saved_at[job.rows[kept]] = job.keep
        for place, said in done.failed.items():
            failed[int(at[place])] = said
            outputs[at[place]] = 0.0
            self._forget(job.rows[[place]])

    def _forget(self, rows: I64) -> None:
        """These simulations are gone, or in no state to go on: they will be built anew."""
        self.position[rows] = self.saved_at[rows] = -1

    def _house(self, rows: I64) -> None:
        """Deal points without a worker so that this call is spread evenly."""
        new = rows[self.home[rows] < 0]
        if not len(new):
            return
        load = np.bincount(self.home[rows][self.home[rows] >= 0], minlength=self.workers)
        level = np.sort(np.concatenate([np.arange(n, n + len(new)) for n in load]))[: len(new)]
        room = np.maximum(0, level[-1] + 1 - load)
        self.home[new] = np.repeat(np.arange(self.workers), room)[: len(new)]

    def _job(self, rows: I64, inputs: F64) -> Job:
        """What a worker does for these points. Raises: FineSolverError"""
        here, start = len(self.journal), self.window_start
        position = self.position[rows]
        build = np.flatnonzero(position < 0)
        first = self.asked if self.first is None else self.first
        ids, initial = self.points.ids[rows[build]], first[rows[build]]
        if not self.remembers:
            return Job(rows, inputs, self.dt, build, ids, initial, NONE, NONE)
        restore = np.flatnonzero(position > here)
        if len(restore) and (self.saved_at[rows[restore]] < 0).any():
            self._refuse_repeat(int(rows[restore[self.saved_at[rows[restore]] < 0][0]]))
        position = np.maximum(position, 0)
        position[restore] = self.saved_at[rows[restore]]
        save, keep = NONE, -1
        if self._saves and here == start:
            save = np.flatnonzero(self.saved_at[rows] != here)
        elif self._saves:
            keep = start
        replay = np.flatnonzero(position < here)
        if not len(replay):
            return Job(rows, inputs, self.dt, build, ids, initial, restore, save)
        base = int(position[replay].min())
        history, dts = self.journal.read(base, rows[replay])
        return Job(
            rows, inputs, self.dt, build, ids, initial, restore, save,
            replay, position[replay], history, dts, base, keep,
        )  # fmt: skip

    def _refuse_repeat(self, row: int) -> None:
        raise FineSolverError(
            f"point {self.points.ids[row]}: the window is repeated, but the state of its micro simulation was not "
            "saved: give its class get_state and set_state and set fine.micro.rollback: true, or set problem.history: "
            "false if its answers depend on the inputs alone"
        )

    # -- steps and windows -----------------------------------------------------------------------------------

    def _step(self) -> None:
        if self.remembers:
            self.journal.append(self.asked, self.dt)

    def commit(self) -> None:
        """See `FineSolver.commit`; simulations that are up to date write their own output. Raises: FineSolverError"""
        self._step()
        self.windows += 1
        self.window_start = len(self.journal)
        every = self.settings.output_every
        if self.pool is not None and self.pool.facts.outputs and every and self.windows % every == 0:
            self._output(np.flatnonzero(self.position == (len(self.journal) if self.remembers else 1)))

    def _output(self, rows: I64) -> None:
        assert self.pool is not None
        tasks = {w: Output(rows[at]) for w, at in self._dealt(rows).items()}
        wrong: list[tuple[int, str]] = []
        for worker, result in self.pool.run(tasks).items():
            if isinstance(result, Lost):
                self._forget(np.flatnonzero(self.home == worker))
                failed = {result.place: f"output: {result.said}"}
            else:
                failed = result.failed
            wrong += [(int(tasks[worker].rows[place]), said) for place, said in failed.items()]
        if wrong:
            row, said = min(wrong)
            raise FineSolverError(f"window {self.windows - 1}: point {self.points.ids[row]}: {said}")

    def next_step(self) -> None:
        """See `FineSolver.next_step`."""
        self._step()

    def rollback(self) -> None:
        """See `FineSolver.rollback`: simulations that are ahead go back when they are next asked."""
        self.journal.truncate(self.window_start)

    def snapshot(self) -> dict[str, Any]:
        """See `FineSolver.snapshot`."""
        return {"step": np.array(self.window_start)}

    def restore(self, start: Mapping[str, Any]) -> None:
        """See `FineSolver.restore`."""
        self.rollback()

    def diagnosis(self, row: int) -> str:
        """Why a point failed."""
        return f"micro simulation {self.points.ids[row]}: {self.told.get(row, 'nothing was wrong')}"

    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing: what a simulation holds is its own affair, so a run with them writes no checkpoint."""
        return {}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """End the workers; idempotent."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()
        self.journal.close()


def cores() -> int:
    """Cores that a rank may use for its workers."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
    ranks = next((int(os.environ[name]) for name in names if name in os.environ), 1)
    return max(1, available // ranks)


def bad_rows(inputs: F64) -> I64:
    """Rows that are not finite, int64 [k]."""
    if np.isfinite(inputs.sum()):
        return NONE
    return np.flatnonzero(~np.isfinite(inputs).all(axis=1))


def spec_of(settings: schema.Fine, problem: MicroProblem) -> Spec:
    """What workers load. Raises: ConfigError"""
    if settings.micro.file is None:
        raise ConfigError("fine.micro.file is missing; it is the Python file of the class MicroSimulation")
    if not isinstance(problem, OpaqueProblem):
        raise ConfigError(f"fine.solver: micro_manager solves problem.name: opaque, not {problem.name!r}")
    file = Path(settings.micro.file)
    folder = Path(settings.micro.folder or ".").resolve()
    module = ".".join(file.with_suffix("").parts if file.suffix == ".py" else Path(str(file).replace(".", "/")).parts)
    return Spec(module, (str(folder), os.getcwd()), sizes(problem.inputs), sizes(problem.outputs))


def sizes(layout: Layout) -> tuple[tuple[str, int], ...]:
    """Name and size of each field; 0: a scalar."""
    return tuple((f.name, 0 if f.components == ("",) else len(f.components)) for f in layout.fields)


def look(settings: schema.Fine, problem: MicroProblem) -> Facts:
    """Load the micro simulation once, in a process of its own, before anything waits for it. Raises: ConfigError"""
    process = Process(spec_of(settings, problem))
    facts = process.facts()
    process.close()
    if settings.micro.rollback and getattr(problem, "remembers", True) and not facts.restorable:
        raise ConfigError(
            f"the coupling repeats windows (fine.micro.rollback), but {facts.name} has no get_state and set_state: "
            "give it both, or set problem.history: false if its answers depend on the inputs alone"
        )
    return facts
