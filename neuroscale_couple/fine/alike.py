r"""Points that ask the same are solved once and share the answer.

Two points are alike if their parameters are the same and each column of their questions falls into the same cell, of
the width  0.01 tolerance max|x_j|  (the gate's tolerance; x_j the input that the column belongs to): a hundredth of
what an answer may err, so that a response ten times as sensitive as proportional stays within a tenth of it. What
distinguishes opaque simulations is hidden in them: each is solved on its own until its first answers are known, and
those must be alike too. Cells are found by sorting, O(N log N).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.memory import Memory
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.values import F64, I64, Batch, FineAnswer, Points

CELL = 0.01
"""Width of a cell as a share of the tolerance."""
NEVER = -1


class Alike(FineSolver):
    """A fine solver that solves one of several points that are alike: the one that was solved last, or the lowest id.

    solver: the one that solves; tolerance: of the gate. The others' answers are marked in `FineAnswer.own`; to the
    solver they are points that were not solved.
    """

    def __init__(self, solver: FineSolver, problem: MicroProblem, tolerance: float) -> None:
        self.solver = solver
        self._problem, self._width = problem, CELL * tolerance
        self._memory = Memory(problem, 0)
        self._ids: I64 = np.zeros(0, dtype=np.int64)
        self._label: I64 = np.zeros(0, dtype=np.int64)  # points of the same parameters have the same
        self._first: F64 = np.zeros((0, 0))  # first answer of each point of an opaque problem
        self._solved: I64 = np.zeros(0, dtype=np.int64)  # step of each point's last solve of its own
        self._of: I64 = np.zeros(0, dtype=np.int64)  # whose answer each point was given last
        self._step = 0
        self._batch: Batch | None = None
        self._question: F64 = np.zeros((0, 0))

    def attach(self, points: Points) -> None:
        """See `FineSolver.attach`."""
        self.solver.attach(points)
        n = len(points)
        self._ids, self._label = points.ids, label(points)
        self._memory = Memory(self._problem, n)
        opaque = not self._problem.has_tangent
        self._first = np.full((n, self._problem.outputs.size if opaque else 0), np.nan)
        self._solved = np.full(n, NEVER)
        self._of = np.arange(n)

    def begin(self, batch: Batch) -> None:
        """See `FineSolver.begin`."""
        self._batch, self._question = batch, self._memory.question(batch)
        self.solver.begin(batch)

    def solve(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """See `FineSolver.solve`; one row of each group of alike rows is solved."""
        if self._batch is None or not np.array_equal(inputs, self._batch.inputs[rows]):
            return self.solve_apart(rows, inputs, guess)  # not a question of the run
        group = self._groups(rows)
        count = int(group.max(initial=-1)) + 1
        if count == len(rows):
            return self._remember(self.solve_apart(rows, inputs, guess))
        order = np.lexsort((self._ids[rows], -self._solved[rows], group))
        chosen = np.sort(order[np.unique(group[order], return_index=True)[1]])
        answer = self._remember(
            self.solver.solve(rows[chosen], inputs[chosen], None if guess is None else guess[chosen])
        )
        place = np.empty(count, dtype=np.int64)
        place[group[chosen]] = np.arange(len(chosen))
        given = place[group]
        own = np.zeros(len(rows), dtype=np.bool_)
        own[chosen] = True
        self._of[rows] = rows[chosen][given]
        shared = answer.take(given)
        return replace(shared, rows=rows, iterations=np.where(own, shared.iterations, 0), own=own)

    def solve_apart(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """See `FineSolver.solve_apart`."""
        self._of[rows] = rows
        return self.solver.solve(rows, inputs, guess)

    def _groups(self, rows: I64) -> I64:
        """Number of the group of each row, int64 [m], 0 .. groups - 1; independent of the order of the rows."""
        assert self._batch is not None
        n_in = self._problem.inputs.size
        size = np.abs(self._batch.inputs).max(axis=0, initial=0.0)
        width = self._width * np.where(size > 0.0, size, 1.0)
        cells = [np.floor(self._question[rows] / np.tile(width, self._question.shape[1] // n_in) + 0.5)]
        if self._first.shape[1]:
            known = np.abs(np.where(np.isfinite(self._first), self._first, 0.0)).max(axis=0, initial=0.0)
            first = np.floor(self._first[rows] / (self._width * np.where(known > 0.0, known, 1.0)) + 0.5)
            unknown = ~np.isfinite(first).all(axis=1)
            alone = np.where(unknown, rows, NEVER).astype(np.float64)
            cells += [np.where(np.isfinite(first), first, 0.0), alone[:, None]]
        keys = np.column_stack([*cells, self._label[rows].astype(np.float64)])
        return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)

    def _remember(self, answer: FineAnswer) -> FineAnswer:
        good = answer.rows[answer.converged]
        self._solved[good] = self._step
        if self._first.shape[1]:
            new = ~np.isfinite(self._first[good]).all(axis=1)
            self._first[good[new]] = answer.outputs[answer.converged][new]
        return answer

    # -- everything else is the solver's affair

    def commit(self) -> None:
        """See `FineSolver.commit`."""
        self._advance()
        self._memory.commit()
        self.solver.commit()

    def next_step(self) -> None:
        """See `FineSolver.next_step`."""
        self._advance()
        self.solver.next_step()

    def _advance(self) -> None:
        self._step += 1
        if self._batch is not None:
            self._memory.step(self._batch)

    def rollback(self) -> None:
        """See `FineSolver.rollback`."""
        self._memory.rewind()
        self.solver.rollback()

    def snapshot(self) -> dict[str, Any]:
        """See `FineSolver.snapshot`."""
        return self.solver.snapshot()

    def restore(self, start: Mapping[str, Any]) -> None:
        """See `FineSolver.restore`."""
        self._memory.rewind()
        self.solver.restore(start)

    @property
    def advice(self) -> str:
        """See `FineSolver.advice`."""
        return self.solver.advice

    def diagnosis(self, row: int) -> str:
        """See `FineSolver.diagnosis`; of the point that was solved for it."""
        return self.solver.diagnosis(int(self._of[row]))

    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        """See `FineSolver.get_state`."""
        own = {"first": self._first, "solved": self._solved, "step": np.int64(self._step), **self._memory.get_state()}
        return {**self.solver.get_state(), **{f"alike/{name}": np.asarray(value) for name, value in own.items()}}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `FineSolver.set_state`."""
        own = {name.removeprefix("alike/"): value for name, value in state.items() if name.startswith("alike/")}
        self.solver.set_state({name: value for name, value in state.items() if not name.startswith("alike/")})
        if own:
            self._first = np.array(own["first"], dtype=np.float64)
            self._solved, self._step = np.array(own["solved"], dtype=np.int64), int(own["step"])
            self._memory.set_state(own)

    def close(self) -> None:
        """See `FineSolver.close`."""
        self.solver.close()


def label(points: Points) -> I64:
    """Number of each point's set of parameters, int64 [n]: the same for points whose parameters are equal."""
    labels = np.zeros(len(points), dtype=np.int64)
    for array in points.parameters.values():
        rows = np.ascontiguousarray(array).reshape(len(points), -1)
        if not rows.shape[1] or not len(rows):
            continue
        bytes_of = rows.view(np.uint8).reshape(len(rows), -1)
        whole = bytes_of.view(np.dtype((np.void, bytes_of.shape[1])))[:, 0]
        found = np.unique(whole, return_inverse=True)[1].reshape(-1)
        labels = np.unique(np.column_stack([labels, found]), axis=0, return_inverse=True)[1].reshape(-1)
    return labels
