"""A worker process of the fine solver `micro_manager`: holds a user's micro simulations and runs them.

The loops over points here are the only ones in Python, and call what the user has written in Python: `initialize`,
`get_state` and the like; `solve` of all points is called in `micro_calls`.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import os
import pickle
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from neuroscale_couple.fine import micro_calls
from neuroscale_couple.fine.board import Board
from neuroscale_couple.fine.jobs import (
    NONE,
    Again,
    Done,
    Facts,
    Job,
    Keep,
    Output,
    Spec,
    Task,
    packed_done,
    unpacked_task,
)
from neuroscale_couple.fine.micro_interface import stand_in
from neuroscale_couple.fine.seats import NOWHERE, seated
from neuroscale_couple.values import F64, I64

CLASSES = ("MicroSimulation", *(f"MicroSimulation{i}" for i in range(10)))
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""
OURS = (__file__, micro_calls.__file__)
"""Files that a message about the user's code does not name."""


class Worker:
    """The micro simulations of some points.

    board: what they are asked and answer; progress: this worker's row of it, which the other side watches
    """

    def __init__(self, spec: Spec, board: Board, number: int) -> None:
        self.spec, self.board = spec, board
        self.progress = memoryview(board.progress[number])  # a number is written faster through it
        self.kind = load(spec)
        self.sims: dict[int, Any] = {}
        self.solves: dict[int, Callable[[dict[str, Any], float], Any]] = {}
        self.saved: dict[int, Any] = {}
        self.rows: I64 = NONE  # points of the last job, in its order, and what solves them
        self.places: I64 = NONE
        self.order: list[Callable[[dict[str, Any], float], Any]] = []

    def facts(self) -> Facts:
        """What the class offers."""
        has = {name: callable(getattr(self.kind, name, None)) for name in ("get_state", "set_state", "output")}
        return Facts(self.kind.__name__, has["get_state"] and has["set_state"], has["output"])

    def do(self, task: Task) -> Done:
        """Do what is asked."""
        if isinstance(task, Again):
            return self._solve({}, task.dt)
        if isinstance(task, Keep):
            return self.keep(task.rows)
        return self.output(task.rows) if isinstance(task, Output) else self.run(task)

    def run(self, job: Job) -> Done:
        """Do a job; what a point's own simulation does wrong is its own failure."""
        failed: dict[int, str] = {}
        rows = job.rows.tolist()
        self._each(job.build.tolist(), failed, "cannot be built", lambda i, k: self._build(rows[i], job, k))
        self._each(job.load.tolist(), failed, "set_state", lambda i, k: self._load(rows[i], job.states[k]))
        self._each(job.restore.tolist(), failed, "set_state", lambda i, k: self._restore(rows[i]))
        self._each(
            job.replay.tolist(), failed, "replay of its earlier steps", lambda i, k: self._replay(rows[i], job, k)
        )
        self._each(job.save.tolist(), failed, "get_state", lambda i, k: self._save(rows[i]))
        self.rows, self.places = job.rows, np.arange(len(rows))
        if not failed:
            self.order = [self.solves[row] for row in rows]
            return self._solve(failed, job.dt)
        self.places = np.setdiff1d(self.places, list(failed))
        self.order = [self.solves[rows[place]] for place in self.places.tolist()]
        return self._solve(failed, job.dt)

    def _solve(self, failed: dict[int, str], dt: float) -> Done:
        """Solve all points of the last job that have not failed before."""
        inputs, places, solves = self.board.inputs, self.places, self.order
        rows = self.rows if len(places) == len(self.rows) else self.rows[places]
        arrays = self._arrays(inputs, rows)
        while len(places):
            unusual: list[tuple[int, Any]] = []
            asked = [(name, size, part) for (name, size), part in zip(self.spec.inputs, arrays, strict=True)]
            self.progress[0] = -1
            try:
                micro_calls.solve_each(
                    solves, places, rows, asked, inputs, dt, self.spec.outputs, self.board.outputs, self.progress,
                    unusual,
                )  # fmt: skip
                done = len(places)
            except Exception as error:
                if self.progress[0] < 0:
                    raise
                done = int(np.searchsorted(places, self.progress[0])) + 1
                failed[int(places[done - 1])] = told(error)
            self._judge(unusual, places, rows, failed)
            places, rows, solves = places[done:], rows[done:], solves[done:]
            arrays = [None if part is None else part[done:] for part in arrays]
        return Done(failed)

    def _arrays(self, inputs: F64, rows: I64) -> list[F64 | None]:
        """What the points are asked in inputs that are arrays, float64 [m, size] each (it may keep its row)."""
        arrays: list[F64 | None] = []
        start = 0
        for _, size in self.spec.inputs:
            arrays.append(np.array(inputs[rows, start : start + size]) if size else None)
            start += max(size, 1)
        return arrays

    def _judge(self, unusual: Sequence[tuple[int, Any]], places: I64, rows: I64, failed: dict[int, str]) -> None:
        """Take the numbers of answers in other forms; what cannot be used is a failure."""
        for call, answer in unusual:
            place = int(places[call])
            self.progress[0] = place
            if said := wrong(answer, self.spec.outputs):
                failed[place] = said
            else:
                self.board.outputs[rows[call]] = flat(answer, self.spec.outputs)

    def output(self, rows: I64) -> Done:
        """Let simulations write their own results. rows: int64 [m] local points"""
        failed: dict[int, str] = {}
        self._each(range(len(rows)), failed, "", lambda i, _: self._output(int(rows[i])))
        return Done(failed)

    def keep(self, rows: I64) -> Done:
        """States of points for a checkpoint. rows: int64 [m] local points"""
        failed: dict[int, str] = {}
        states = [b""] * len(rows)

        def take(i: int, k: int) -> None:
            states[i] = pickle.dumps(self.sims[int(rows[i])].get_state(), pickle.HIGHEST_PROTOCOL)

        self._each(range(len(rows)), failed, "", take)
        return Done(failed, tuple(states))

    def close(self) -> None:
        """Let simulations give back what they hold."""
        for row, sim in self.sims.items():
            try:
                if callable(destroy := getattr(sim, "destroy", None)):
                    destroy()
            except Exception as error:  # the run is over; the others' turn is to come
                sys.stderr.write(f"neuroscale-couple: micro simulation in row {row}: destroy: {told(error)}\n")
        self.sims.clear()

    def _each(
        self, places: Sequence[int], failed: dict[int, str], what: str, action: Callable[[int, int], None]
    ) -> None:
        """action(place, number) for each place that has not failed. what: is done, for messages of a job"""
        for k, place in enumerate(places):
            if place in failed:
                continue
            self.progress[0] = place
            self.progress[1] += 1
            try:
                action(place, k)
            except Exception as error:
                failed[place] = f"{what}: {told(error)}" if what else told(error)

    def _build(self, row: int, job: Job, k: int) -> None:
        sim = construct(self.kind, int(job.ids[k]))
        self.saved.pop(row, None)
        self.sims[row] = sim
        self.solves[row] = sim.solve
        if not wanted(sim, "initialize"):
            return
        if takes_data(sim.initialize):
            sim.initialize(question(job.first[k], self.spec.inputs))
        else:
            sim.initialize()

    def _load(self, row: int, state: bytes) -> None:
        self.sims[row].set_state(pickle.loads(state))

    def _restore(self, row: int) -> None:
        self.sims[row].set_state(self.saved[row])

    def _save(self, row: int) -> None:
        self.saved[row] = self.sims[row].get_state()

    def _output(self, row: int) -> None:
        if wanted(self.sims[row], "output"):
            self.sims[row].output()

    def _replay(self, row: int, job: Job, k: int) -> None:
        solve = self.solves[row]
        for step in range(int(job.starts[k]), job.base + len(job.dts)):
            self.progress[1] += 1
            if step == job.keep:
                self._save(row)
            asked = question(job.history[step - job.base, k], self.spec.inputs)
            solve(asked, float(job.dts[step - job.base]))


def question(row: F64, fields: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What one point is asked: numpy scalars or 1-D arrays by name. row: float64 [n_in]"""
    asked: dict[str, Any] = {}
    start = 0
    for name, size in fields:
        asked[name] = np.array(row[start : start + size]) if size else row[start]
        start += max(size, 1)
    return asked


def flat(answer: Mapping[str, Any], fields: Sequence[tuple[str, int]]) -> F64:
    """Outputs float64 [n_out] of one answer that is right."""
    return np.concatenate([np.asarray(answer[name], dtype=np.float64).reshape(-1) for name, _ in fields])


def wrong(answer: Any, fields: Sequence[tuple[str, int]]) -> str:
    """What is wrong with an answer; empty: nothing."""
    if not isinstance(answer, Mapping):
        return f"solve() gave {type(answer).__name__}, expected a dict of {', '.join(name for name, _ in fields)}"
    for name, size in fields:
        if name not in answer:
            given = ", ".join(map(repr, answer)) or "nothing"
            return f"solve() gave no {name!r}, which the configuration writes; it gave {given}"
        try:
            values = np.asarray(answer[name], dtype=np.float64)
        except (TypeError, ValueError):
            return f"{name!r} is {answer[name]!r}, expected numbers"
        if values.size != max(size, 1):
            expected = f"{size} values" if size else "one value"
            return f"{name!r} has {values.size} value(s), expected {expected} (see the preCICE configuration)"
        if not np.isfinite(values).all():
            return f"{name!r} is {values.tolist()}, not finite"
    return ""


def load(spec: Spec) -> Any:
    """The class MicroSimulation of the user's module. Raises: ImportError, AttributeError"""
    sys.path[:0] = [folder for folder in spec.folders if folder not in sys.path]
    before = set(sys.modules)
    try:
        module = importlib.import_module(spec.module)
    except ImportError as error:
        if not blames(error, "micro_manager"):
            raise
        for name in set(sys.modules) - before:  # half imported
            if name == spec.module or name.split(".")[0] == "micro_manager":
                del sys.modules[name]
        stand_in()
        module = importlib.import_module(spec.module)
    for name in CLASSES:
        if (kind := getattr(module, name, None)) is not None:
            return kind
    raise AttributeError(f"{module.__file__} has no class MicroSimulation")


def blames(error: ImportError, module: str) -> bool:
    """Whether an import failed at or inside a module."""
    if (error.name or "").split(".")[0] == module:
        return True
    folders = [os.path.basename(os.path.dirname(f.filename)) for f in traceback.extract_tb(error.__traceback__)]
    return module in folders


def construct(kind: Any, identity: int) -> Any:
    """A micro simulation; old classes take no id."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # a compiled class
        text = getattr(kind.__init__, "__doc__", None) or ""
        return kind(identity) if re.search(r"self[^,)]*,", text) or "__init__(" not in text else kind()
    return kind(identity) if any(p.kind is not p.KEYWORD_ONLY for p in parameters) else kind()


def wanted(sim: Any, what: str) -> bool:
    """Whether `initialize` or `output` is to be called."""
    asked = getattr(sim, f"requires_{what}", None)
    return bool(asked()) if callable(asked) else callable(getattr(sim, what, None))


def takes_data(initialize: Any) -> bool:
    """Whether `initialize` takes the initial data."""
    try:
        parameters = inspect.signature(initialize).parameters.values()
    except (TypeError, ValueError):  # a compiled class: its docstring shows the signature
        return bool(re.search(r"self[^,)]*,", getattr(initialize, "__doc__", None) or ""))
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def told(error: BaseException) -> str:
    """An error of the user's code in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename not in OURS]
    where = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{where}"


def main(connection: int, memory: int, number: int, workers: int, seat: int = NOWHERE) -> None:
    """Serve jobs until the other side goes.

    connection, memory: file descriptors; number: of this worker; seat: the core that it wakes on (`fine.seats`)
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Connection(connection)
    try:
        spec: Spec = link.recv()
        board = Board(memory, workers, spec.points, *spec.columns)
        worker = Worker(spec, board, number)
        link.send(worker.facts())
    except Exception as error:
        link.send(told(error))
        return
    while True:
        try:
            with seated(seat):
                message = link.recv_bytes()
            task = unpacked_task(message)
        except (EOFError, OSError):
            return worker.close()
        worker.progress[0] = -1
        link.send_bytes(packed_done(worker.do(task)))
