"""What each point was last asked and answered: the part of a question that the macro solver does not send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, Batch, Reply


class Memory:
    """Last inputs, last outputs and doubt of all points of a rank; empty for a micro problem without history.

    A point that has not been answered yet has NaN there: no surrogate can be asked about it.
    """

    def __init__(self, problem: MicroProblem, points: int) -> None:
        columns = problem.inputs.size + problem.outputs.size + 1 if problem.remembers else 0
        self._last: F64 = np.full((points, columns), np.nan)
        self._start: F64 | None = None  # at the start of a window of several steps

    def question(self, batch: Batch) -> F64:
        """What the surrogate is asked with, float64 [n, q]: the inputs alone for a micro problem without history."""
        if not self._last.shape[1]:
            return batch.inputs
        return np.column_stack([batch.inputs, np.full(len(batch), batch.dt), self._last])

    def step(self, batch: Batch, reply: Reply, score: F64) -> None:
        """A time step has ended with these answers; the next question starts from them. score: float64 [n]."""
        if not self._last.shape[1]:
            return
        if self._start is None:
            self._start = self._last
        doubt = np.where(reply.source == Source.FINE, 0.0, score)
        self._last = np.column_stack([batch.inputs, reply.outputs, doubt])

    def commit(self) -> None:
        """The window has converged."""
        self._start = None

    def rewind(self) -> None:
        """Back to the start of the window."""
        if self._start is not None:
            self._last, self._start = self._start, None

    def get_state(self) -> Mapping[str, Any]:
        """For a checkpoint: empty without history."""
        return {"memory": self._last} if self._last.shape[1] else {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave."""
        if self._last.shape[1]:
            self._last = np.array(state["memory"], dtype=np.float64)
