"""A service with an answer known in closed form, points in any split, faults on demand."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.errors import FineSolverError
from neuroscale_couple.transport.base import Closure
from neuroscale_couple.values import Batch, FieldSpec, Layout, Points, Reply

N = 37
INPUTS = Layout((FieldSpec("strain", ("xx", "yy", "xy"), "1"),))
OUTPUTS = Layout((FieldSpec("stress", ("xx", "yy", "xy"), "Pa"), FieldSpec("energy", ("",), "J", True)))
MATRIX = np.random.default_rng(5).random((OUTPUTS.size, INPUTS.size))


def all_ids() -> Any:
    """Sparse, unordered ids."""
    return np.random.default_rng(2).permutation(10 * N)[:N].astype(np.int64)


def rows_of(rank: int, ranks: int, split: str) -> Any:
    """Which of the points a macro rank owns."""
    order = np.arange(N)
    if split == "permuted":
        order = np.random.default_rng(9).permutation(N)
    if split == "even" or ranks == 1:
        return np.array_split(order, ranks)[rank]
    cuts = [0, 3, 3, N] if ranks == 3 else [0, 0, N]  # one rank owns nothing
    return order[cuts[rank] : cuts[rank + 1]]


def points_of(rank: int, ranks: int, split: str) -> Points:
    """The points of a macro rank: `phase` and `stiffness` depend on the id alone."""
    ids = all_ids()[rows_of(rank, ranks, split)]
    pixels = np.arange(16).reshape(1, 4, 4)
    phase = ((ids[:, None, None] * 7 + pixels) % 2).astype(np.uint8)
    coordinates = np.stack([ids % 10, ids // 10], axis=1).astype(np.float64)
    return Points(ids, coordinates, 1.0 + ids, {"phase": phase, "stiffness": 1.0 + ids * 0.1})


def inputs_of(ids: Any, window: int, iteration: int) -> dict[str, Any]:
    """The macro solver's values, a function of id, window and iteration."""
    base = (ids[:, None] * 0.37 + np.arange(3) * 1.7 + window * 0.11 + iteration * 0.013) % 1.0
    return {"strain": base}


def answer_of(points: Points, batch: Batch) -> Reply:
    """outputs = stiffness * matrix . input + share of phase 1, row by row."""
    stiffness, share = points.parameters["stiffness"], points.parameters["phase"].mean(axis=(1, 2))
    tangent = stiffness[:, None, None] * MATRIX
    outputs = np.stack([tangent[:, i, :] * batch.inputs for i in range(OUTPUTS.size)], axis=1)
    summed = outputs[..., 0] + outputs[..., 1] + outputs[..., 2] + share[:, None]
    ids = points.ids
    return Reply(summed, tangent, (ids % 3).astype(np.uint8), (ids % 10).astype(np.uint8), ids * 0.5)


class Scripted:
    """A real service; `fault` = {rank, window, iteration, kind} makes it fail on that service rank."""

    inputs, outputs = INPUTS, OUTPUTS
    model_version = -1

    def __init__(self, points: Points, comm: Any, fault: Mapping[str, Any], folder: Path | None = None) -> None:
        self.points, self.comm, self.fault, self.folder = points, comm, fault, folder
        self.seen: list[tuple[int, int]] = []
        if folder is not None:
            np.savez(folder / f"owned{comm.Get_rank()}.npz", ids=points.ids, coordinates=points.coordinates)

    def evaluate(self, batch: Batch) -> Reply:
        self.seen.append((batch.window, batch.iteration))
        self._maybe_fail(batch)
        return answer_of(self.points, batch)

    def _maybe_fail(self, batch: Batch) -> None:
        due = (batch.window, batch.iteration) == (self.fault.get("window"), self.fault.get("iteration", 0))
        if not due or self.fault["rank"] != self.comm.Get_rank():
            if due and self.fault["kind"] == "collective":
                self.comm.allreduce(1)  # this rank waits for one that never comes
            return
        break_down(self.fault["kind"], f"point {self.points.ids[0]} does not converge")

    def commit(self, macro_state: Mapping[str, Any] | None) -> None:
        self.state = macro_state
        if self.folder is not None and macro_state is not None:
            np.savez(self.folder / f"state{self.comm.Get_rank()}.npz", **macro_state)

    def rollback(self) -> None:
        self.seen.append((-1, -1))

    def repeat(self) -> None:
        self.seen.append((-2, -2))

    def next_step(self) -> None:
        self.seen.append((-3, -3))

    def resumed(self) -> tuple[int, Mapping[str, Any]] | None:
        stored = self.folder / f"state{self.comm.Get_rank()}.npz" if self.folder is not None else None
        if self.fault.get("kind") != "resume" or stored is None or not stored.exists():
            return None
        with np.load(stored) as file:
            return 2, dict(file)

    def close(self) -> None:
        if self.folder is not None:
            (self.folder / f"closed{self.comm.Get_rank()}").write_text(repr(self.seen))


def break_down(kind: str, message: str) -> None:
    """Fail in one of the ways a process can fail."""
    if kind in ("raise", "collective"):
        raise FineSolverError(message)
    if kind == "bug":
        raise ZeroDivisionError(message)
    if kind == "exit":
        os._exit(3)  # as a library does that calls exit(): no Python code runs any more
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(1.0)


def play(closure: Closure, points: Points, windows: int = 2, iterations: int = 2) -> dict[str, Any]:
    """A macro solver: every window is rolled back once, then converges. Returns all answers by name."""
    answers: list[dict[str, Any]] = []
    for window in range(windows):
        answers += [ask(closure, points, window, iteration) for iteration in range(iterations)]
        closure.rollback()
        answers += [ask(closure, points, window, iteration) for iteration in range(iterations)]
        closure.commit({"ids": points.ids, "clock": np.array(window)})
    return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}


def ask(closure: Closure, points: Points, window: int, iteration: int) -> dict[str, Any]:
    """All that one evaluation returns, by name."""
    inputs = inputs_of(points.ids, window, iteration)
    got = closure.evaluate(inputs, t=0.1 * window, dt=0.1, totals={"energy": 1.5})
    return {**got, "tangent": got.tangent, "source": got.source, "reason": got.reply.reason, "error": got.error}


def cpu_seconds() -> float:
    """Processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
