"""A worker process of the fine solver `micro_manager`: holds a user's micro simulations and runs them.

The loops over points here are the only ones in Python: each calls the user's own `solve` once.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import mmap
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from neuroscale_couple.fine.jobs import Done, Facts, Job, Output, Spec
from neuroscale_couple.fine.micro_interface import stand_in
from neuroscale_couple.values import F64, I64

CLASSES = ("MicroSimulation", *(f"MicroSimulation{i}" for i in range(10)))
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""


class Worker:
    """The micro simulations of some points.

    progress: place of the point that is worked on, and a count of what was begun; the other side watches them
    """

    def __init__(self, spec: Spec, progress: Any) -> None:
        self.spec, self.progress = spec, progress
        self.kind = load(spec)
        self.names = [name for name, _ in spec.inputs]
        self.sims: dict[int, Any] = {}
        self.solves: dict[int, Callable[[dict[str, Any], float], Any]] = {}
        self.saved: dict[int, Any] = {}
        self.last: tuple[bytes, list[int], list[Any]] = b"", [], []  # points of the last job and their `solve`

    def facts(self) -> Facts:
        """What the class offers."""
        has = {name: callable(getattr(self.kind, name, None)) for name in ("get_state", "set_state", "output")}
        return Facts(self.kind.__name__, has["get_state"] and has["set_state"], has["output"])

    def run(self, job: Job) -> Done:
        """Do a job; what a point's own simulation does wrong is its own failure."""
        failed: dict[int, str] = {}
        rows, same = self._points(job)
        self._each(job.build.tolist(), failed, "cannot be built", lambda i, k: self._build(rows[i], job, k))
        self._each(job.restore.tolist(), failed, "set_state", lambda i, k: self._restore(rows[i]))
        self._each(
            job.replay.tolist(), failed, "replay of its earlier steps", lambda i, k: self._replay(rows[i], job, k)
        )
        self._each(job.save.tolist(), failed, "get_state", lambda i, k: self._save(rows[i]))
        places = [i for i in range(len(rows)) if i not in failed] if failed else range(len(rows))
        asked = self._asked(job.inputs[list(places)] if failed else job.inputs)
        solves = same if same is not None and not failed else [self.solves[rows[i]] for i in places]
        self.last = job.rows.tobytes() if not failed else b"", rows, solves
        answers = self._solve(places, solves, asked, job.dt, failed)
        return Done(self._packed(len(rows), places, answers, failed), failed)

    def _points(self, job: Job) -> tuple[list[int], list[Any] | None]:
        """The points of a job, and their `solve` if that is known from the last one."""
        if len(job.build) or self.last[0] != job.rows.tobytes():
            return job.rows.tolist(), None
        return self.last[1:]

    def output(self, rows: I64) -> Done:
        """Let simulations write their own results. rows: int64 [m] local points"""
        failed: dict[int, str] = {}
        places = list(range(len(rows)))
        self._each(places, failed, "output", lambda i, _: self._output(int(rows[i])))
        return Done(np.zeros((0, 0)), failed)

    def close(self) -> None:
        """Let simulations give back what they hold."""
        for sim in self.sims.values():
            if callable(destroy := getattr(sim, "destroy", None)):
                destroy()
        self.sims.clear()

    def _each(
        self, places: Sequence[int], failed: dict[int, str], what: str, action: Callable[[int, int], None]
    ) -> None:
        """action(place, number) for each place that has not failed."""
        for k, place in enumerate(places):
            if place in failed:
                continue
            self.progress[0], self.progress[1] = place, self.progress[1] + 1
            try:
                action(place, k)
            except Exception as error:
                failed[place] = f"{what}: {told(error)}"

    def _build(self, row: int, job: Job, k: int) -> None:
        sim = construct(self.kind, int(job.ids[k]))
        self.saved.pop(row, None)
        self.sims[row] = sim
        self.solves[row] = sim.solve
        if not wanted(sim, "initialize"):
            return
        if takes_data(sim.initialize):
            sim.initialize(self._asked(job.first[[k]])[0])
        else:
            sim.initialize()

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
            solve(self._asked(job.history[step - job.base, k][None])[0], float(job.dts[step - job.base]))

    def _solve(
        self, places: Iterable[int], solves: Sequence[Any], asked: Sequence[Any], dt: float, failed: dict[int, str]
    ) -> list[Any]:
        """The answers in the order of the places; None where one failed, which is written down."""
        answers: list[Any] = []
        add, progress = answers.append, self.progress
        todo = zip(places, solves, asked, strict=True)
        while True:
            place = -1
            try:
                for place, solve, values in todo:
                    progress[0] = place
                    add(solve(values, dt))
                return answers
            except Exception as error:
                failed[place] = told(error)
                add(None)

    def _asked(self, inputs: F64) -> list[dict[str, Any]]:
        """What each point is asked: numpy scalars or 1-D arrays by name, as preCICE would give them."""
        asked: list[dict[str, Any]] = []
        start = 0
        for name, size in self.spec.inputs:
            part = np.array(inputs[:, start : start + size] if size else inputs[:, start])
            if not asked:
                asked = [{name: value} for value in part]
            else:
                for values, value in zip(asked, part, strict=True):
                    values[name] = value
            start += max(size, 1)
        return asked

    def _packed(self, rows: int, places: Sequence[int], answers: Sequence[Any], failed: dict[int, str]) -> F64:
        """Outputs float64 [rows, n_out]; answers that cannot be used become failures."""
        if not failed:
            try:
                found = stacked(answers, self.spec.outputs)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                found = None
            if found is not None and np.isfinite(found.sum()):
                return found
        packed = np.full((rows, sum(max(size, 1) for _, size in self.spec.outputs)), np.nan)
        for place, answer in zip(places, answers, strict=True):
            if place in failed:
                continue
            self.progress[0] = place
            if said := wrong(answer, self.spec.outputs):
                failed[place] = said
            else:
                packed[place] = stacked([answer], self.spec.outputs)[0]
        return packed


def stacked(answers: Sequence[dict[str, Any]], fields: Sequence[tuple[str, int]]) -> F64:
    """Outputs float64 [m, n_out] of answers. Raises: KeyError, TypeError, ValueError"""
    parts = []
    for name, size in fields:
        values = [answer[name] for answer in answers]
        if size and values and isinstance(values[0], np.ndarray):
            column = np.concatenate(values, dtype=np.float64)
        else:
            column = np.array(values, dtype=np.float64)
        if column.size != len(values) * max(size, 1) or (size and set(map(len, values)) - {size}):
            raise ValueError(name)
        parts.append(column.reshape(len(values), max(size, 1)))
    return np.concatenate(parts, axis=1)


def wrong(answer: Any, fields: Sequence[tuple[str, int]]) -> str:
    """What is wrong with an answer; empty: nothing."""
    if not isinstance(answer, dict):
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
    theirs = [frame for frame in frames if frame.filename != __file__]
    where = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{where}"


def main(connection: int, memory: int) -> None:
    """Serve jobs until the other side goes. connection, memory: file descriptors."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress = memoryview(mmap.mmap(memory, 16)).cast("q")
    link = Connection(connection)
    try:
        worker = Worker(link.recv(), progress)
        link.send(worker.facts())
    except Exception as error:
        link.send(told(error))
        return
    while True:
        try:
            task = link.recv()
        except (EOFError, OSError):
            return worker.close()
        progress[0] = -1
        link.send(worker.output(task.rows) if isinstance(task, Output) else worker.run(task))
