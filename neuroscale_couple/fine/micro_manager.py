"""A user's own micro simulations (classes of the preCICE Micro Manager) as the fine solver.

A point's simulation is built when the point first needs it, in a worker process. `position` counts the steps that its
live state has taken; the run is at step `len(journal)`. A point that others have answered meanwhile is brought up to
date by a replay of its recorded inputs; one that is ahead (the window is repeated) goes back to its saved state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError, FineSolverError
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.fine.board import board_file
from neuroscale_couple.fine.jobs import NONE, Again, Done, Facts, Job, Keep, Lost, Output
from neuroscale_couple.fine.journal import Journal
from neuroscale_couple.fine.kept import Kept
from neuroscale_couple.fine.micro_setup import spec_of
from neuroscale_couple.fine.pool import Pool, Process
from neuroscale_couple.fine.seats import NOWHERE, cores
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.values import F64, I64, Batch, FineAnswer, Points

JOURNAL = "micro_inputs.f64"
LIVES = 2
"""How often a point may take its worker down in one call before it counts as failed."""

log = logging.getLogger("neuroscale_couple.fine")


@dataclass
class Call:
    """One call of `solve`: what is asked, and what has come back so far.

    rows: int64 [m]; outputs: float64 [m, n_out]; spent: int64 [m] micro solves
    failed: place -> why; lost: place -> how often it has taken its worker down
    """

    rows: I64
    outputs: F64
    spent: I64
    failed: dict[int, str]
    lost: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Deal:
    """Points that were asked together and who has them, to be recognised when they are asked again.

    rows: int64 [m]; parts: worker -> its places in `rows`; every: all points, in order
    """

    rows: I64
    parts: dict[int, Any]
    every: bool


class MicroManager(FineSolver):
    """Runs micro simulations in worker processes, one message a worker and call."""

    def __init__(self, settings: schema.Fine, problem: MicroProblem) -> None:
        self.spec = spec_of(settings, problem)
        self.settings = settings.micro
        self.remembers = bool(getattr(problem, "remembers", True))
        self.inputs, self.outputs = problem.inputs, problem.outputs
        self.pool: Pool | None = None
        self.journal = Journal(0, 0)
        self.folder: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """See `FineSolver.keep_in`: the journal goes there."""
        self.folder = folder

    def attach(self, points: Points) -> None:
        """Take the points and start the workers. Raises: ConfigError"""
        self.close()
        self.points, n = points, len(points)
        self.position: I64 = np.full(n, -1, dtype=np.int64)  # steps that the live state has taken; -1: not built
        self.saved_at: I64 = np.full(n, -1, dtype=np.int64)  # step of the saved state; -1: none
        self.home: I64 = np.full(n, -1, dtype=np.int64)  # worker
        self.places: I64 = np.arange(n)
        self.asked: F64 = np.zeros((n, self.inputs.size))
        self.first: F64 | None = None  # inputs of the first step, with which simulations are initialised
        self.dt, self.windows, self.window_start = 1.0, 0, 0
        path = self.folder / JOURNAL if self.folder is not None and self.remembers else None
        self.journal = Journal(n, self.inputs.size, path)
        self.kept = Kept(n)
        self.told: dict[int, str] = {}
        self.warned = False
        self.deal: Deal | None = None  # of the last jobs
        self.workers = self.settings.workers or cores()
        if n:
            self.pool = Pool(replace(self.spec, points=n), self.workers, self.settings.timeout)

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
        m = len(rows)
        if m > len(self.points):
            raise ValueError(f"rows: got {m}, but there are {len(self.points)} points, each of which is asked once")
        failed = {int(i): "an input is not finite" for i in bad_rows(inputs)}
        call = Call(rows, np.empty((m, self.outputs.size)), np.zeros(m, dtype=np.int64), failed)
        if inputs is not self.asked and not np.array_equal(self.asked[rows], inputs, equal_nan=True):  # without `begin`
            self.asked = np.array(self.asked)
            self.asked[rows] = inputs
        todo = self.places[:m]
        todo = np.setdiff1d(todo, list(failed)) if failed else todo
        while len(todo):
            todo = self._round(todo, call)
        for place, said in failed.items():
            self.told[int(rows[place])] = said
        converged = np.ones(m, dtype=np.bool_)
        if failed:
            converged[list(failed)], call.outputs[list(failed)] = False, 0.0
        return FineAnswer(
            rows, call.outputs, np.zeros((m, self.outputs.size, 0)), converged, call.spent, np.zeros(m)
        )  # fmt: skip

    def _round(self, todo: I64, call: Call) -> I64:
        """One message to every worker; returns the places that must be asked again, as their worker was lost."""
        assert self.pool is not None
        rows = call.rows[todo] if len(todo) < len(call.rows) else call.rows
        if self.deal is None or not np.array_equal(self.deal.rows, rows):
            self._house(rows)
            deal = self._dealt(rows)
        else:
            deal = self.deal
        tasks: dict[int, Job | Again]
        if deal is self.deal and self._only_solves(deal):
            tasks = dict.fromkeys(deal.parts, Again(self.dt))
        else:
            tasks = {w: self._job(rows[at]) for w, at in deal.parts.items()}
        self.deal = deal
        at_rows: Any = slice(None) if deal.every else rows
        self.pool.board.inputs[at_rows] = self.asked[at_rows]
        again = [NONE]
        for worker, result in self.pool.run(tasks).items():
            at = deal.parts[worker]
            if len(todo) < len(call.rows):
                at = todo[at]
            if isinstance(result, Lost):
                again.append(self._lost(worker, result, self.places[at], call))
            else:
                self._take(tasks[worker], result, at, call, at if deal.every else call.rows[at])
        return np.concatenate(again)

    def _only_solves(self, deal: Deal) -> bool:
        """Whether there is nothing to do for the points of the last jobs but to solve."""
        if self._saves and len(self.journal) == self.window_start:
            return False
        position = self.position if deal.every else self.position[deal.rows]
        ready = position == len(self.journal) if self.remembers else position >= 0
        return bool(ready.all())

    def _dealt(self, rows: I64) -> Deal:
        """Who has these points. Raises: ValueError"""
        if len(np.unique(rows)) < len(rows):
            raise ValueError("rows: each point is asked once in a call, as it has one simulation")
        home = self.home[rows]
        parts: dict[int, Any] = {int(w): np.flatnonzero(home == w) for w in np.flatnonzero(np.bincount(home))}
        for worker, at in parts.items():
            if at[-1] - at[0] + 1 == len(at):
                parts[worker] = slice(at[0], at[-1] + 1)  # without copies
        every = len(rows) == len(self.home) and np.array_equal(rows, np.arange(len(rows)))
        return Deal(np.array(rows), parts, every)

    def _lost(self, worker: int, lost: Lost, at: I64, call: Call) -> I64:
        """A worker is gone with all that it held; returns the places that are asked again."""
        self._forget(np.flatnonzero(self.home == worker))
        self.deal = None
        culprit = int(at[lost.place])
        call.lost[culprit] = call.lost.get(culprit, 0) + 1
        if call.lost[culprit] < LIVES:
            return at
        call.failed[culprit] = f"{lost.said}; twice"
        return np.setdiff1d(at, [culprit])

    def _take(self, task: Job | Again, done: Done, at: Any, call: Call, rows: Any) -> None:
        """Take what a worker has answered. at: places of its points in the call; rows: its points"""
        assert self.pool is not None
        call.outputs[at] = self.pool.board.outputs[rows]
        call.spent[at] += 1
        here = len(self.journal)
        self.position[rows] = here + 1
        if self.remembers and isinstance(task, Job):
            places = self.places[at]
            call.spent[places[task.replay]] += here - task.starts
            self.saved_at[task.rows[task.save]] = here
            kept = task.replay[(task.starts <= task.keep) & (task.keep < here)] if task.keep >= 0 else NONE
            self.saved_at[task.rows[kept]] = task.keep
        for place, said in done.failed.items():
            where = int(self.places[at][place])
            call.failed[where] = said
            self._forget(call.rows[[where]])

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

    def _job(self, rows: I64) -> Job:
        """What a worker does for these points. Raises: FineSolverError"""
        here, start = len(self.journal), self.window_start
        position = self.position[rows]
        build = np.flatnonzero(position < 0)
        first = self.asked if self.first is None else self.first
        ids, initial = self.points.ids[rows[build]], first[rows[build]]
        if not self.remembers:
            return Job(rows, self.dt, build, ids, initial, NONE, NONE)
        restore = np.flatnonzero(position > here)
        if len(restore) and (self.saved_at[rows[restore]] < 0).any():
            self._refuse_repeat(int(rows[restore[self.saved_at[rows[restore]] < 0][0]]))
        position[build] = self.kept.at[rows[build]]
        load = build[position[build] >= 0]
        states = tuple(self.kept.of(rows[load]))
        position = np.maximum(position, 0)
        position[restore] = self.saved_at[rows[restore]]
        save, keep = NONE, -1
        if self._saves and here == start:
            save = np.flatnonzero(self.saved_at[rows] != here)
        elif self._saves:
            keep = start
        replay = np.flatnonzero(position < here)
        if not len(replay):
            return Job(rows, self.dt, build, ids, initial, restore, save, load, states)
        base = int(position[replay].min())
        history, dts = self.journal.read(base, rows[replay])
        return Job(
            rows, self.dt, build, ids, initial, restore, save, load, states,
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
        wrong: list[tuple[int, str]] = []
        for asked, result in self._ask(Output, rows):
            failed = {result.place: result.said} if isinstance(result, Lost) else result.failed
            wrong += [(int(asked[place]), said) for place, said in failed.items()]
        if wrong:
            row, said = min(wrong)
            raise FineSolverError(f"window {self.windows - 1}: point {self.points.ids[row]}: output: {said}")

    def _ask(self, what: type[Output] | type[Keep], rows: I64) -> Iterator[tuple[I64, Done | Lost]]:
        """Points by worker, and what has come back; a worker that was lost has forgotten its simulations."""
        assert self.pool is not None
        tasks = {w: what(rows[at]) for w, at in self._dealt(rows).parts.items()}
        for worker, result in sorted(self.pool.run(tasks).items()):
            if isinstance(result, Lost):
                self._forget(np.flatnonzero(self.home == worker))
                self.deal = None
            yield tasks[worker].rows, result

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
        """What a resumed run builds the simulations from: their states where they can be kept, and the journal."""
        if self.folder is None:
            return {}
        first = np.zeros((0, self.inputs.size)) if self.first is None else self.first
        state: dict[str, Any] = {"windows": np.int64(self.windows), "first": first}
        if self.remembers:
            self._keep()
            state |= {f"journal/{name}": value for name, value in self.journal.get_state().items()}
            state |= {f"kept/{name}": value for name, value in self.kept.get_state().items()}
        return {name: np.asarray(value) for name, value in state.items()}

    def _keep(self) -> None:
        """Take the states of simulations that are up to date; the others' have been taken before."""
        if self.pool is None or not self.pool.facts.restorable:
            return
        here = len(self.journal)
        rows = np.flatnonzero((self.position == here) & (self.kept.at != here))
        for asked, result in self._ask(Keep, rows):
            if isinstance(result, Lost):
                continue
            self.kept.put(asked, here, result.states)
            if result.failed and not self.warned:
                place, said = min(result.failed.items())
                point = self.points.ids[asked[place]]
                log.warning("micro simulation %d: get_state: %s; --resume will replay all its steps", point, said)
                self.warned = True

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `get_state` gave; simulations are built when they are next asked. Raises: CheckpointError"""
        if self.folder is None:
            return
        self.windows = int(state["windows"])
        self.first = np.array(state["first"], dtype=np.float64) if len(state["first"]) else None
        if self.remembers:
            self.journal.set_state(
                {n.removeprefix("journal/"): v for n, v in state.items() if n.startswith("journal/")}
            )
            self.kept.set_state({n.removeprefix("kept/"): v for n, v in state.items() if n.startswith("kept/")})
        self.window_start = len(self.journal)

    def close(self) -> None:
        """End the workers; idempotent."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()
        self.journal.close()


def part_of(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What has a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def bad_rows(inputs: F64) -> I64:
    """Rows that are not finite, int64 [k]."""
    if np.isfinite(inputs.sum()):
        return NONE
    return np.flatnonzero(~np.isfinite(inputs).all(axis=1))


def look(settings: schema.Fine, problem: MicroProblem) -> Facts:
    """Load the micro simulation once, in a process of its own, before anything waits for it. Raises: ConfigError"""
    spec = spec_of(settings, problem)
    with board_file(1, 0, 0) as memory:
        process = Process(spec, memory.fileno(), 0, [NOWHERE])
        facts = process.facts()
    process.close()
    if settings.micro.rollback and getattr(problem, "remembers", True) and not facts.restorable:
        raise ConfigError(
            f"the coupling repeats windows (fine.micro.rollback), but {facts.name} has no get_state and set_state: "
            "give it both, or set problem.history: false if its answers depend on the inputs alone"
        )
    return facts
