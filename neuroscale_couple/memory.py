"""What each point was asked lately: the part of a question that the macro solver does not send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.physics.opaque import MEMORIES
from neuroscale_couple.values import F64, Batch


class Memory:
    r"""Fading memories h_k and the mean m of the inputs of all points of a rank; empty without history.

        h_k <- h_k + (1 - exp(-(dt / dt_0) / tau_k)) (x - h_k),   h_k = x before the first step
        m <- m + dt / (t + dt) (x - m),   t the time since the start

    dt_0 is the first time step. The question is (x, x - h_k, m), all after this step.
    """

    def __init__(self, problem: MicroProblem, points: int, wanted: bool = True) -> None:
        """wanted: False where nobody asks (gate closed, nothing learns): questions are the inputs then"""
        self._on = problem.remembers and wanted
        self._past: F64 = np.full((len(MEMORIES) + 1 if self._on else 0, points, problem.inputs.size), np.nan)
        self._first_dt = 0.0
        self._steps = 0.0  # time since the start, in first steps
        self._start: tuple[F64, float] | None = None  # memories and time at the start of a window of several steps

    def question(self, batch: Batch) -> F64:
        """What the surrogate is asked with, float64 [n, q]: the inputs alone for a micro problem without history."""
        if not self._on:
            return batch.inputs
        *fading, mean = self._after(batch)
        return np.column_stack([batch.inputs, *(batch.inputs - past for past in fading), mean])

    def _length(self, batch: Batch) -> float:
        """Length of this time step, in first steps."""
        return batch.dt / self._first_dt if self._first_dt > 0.0 and batch.dt > 0.0 else 1.0

    def _after(self, batch: Batch) -> F64:
        """The memories and the mean after this time step, float64 [memory, n, n_in]."""
        length = self._length(batch)
        fade = np.append(-np.expm1(-length / np.asarray(MEMORIES)), length / (self._steps + length))[:, None, None]
        before = np.where(np.isfinite(self._past), self._past, batch.inputs)
        return np.asarray(before + fade * (batch.inputs - before))

    def step(self, batch: Batch) -> None:
        """A time step has ended with these inputs."""
        if not self._on:
            return
        if self._start is None:
            self._start = self._past, self._steps
        self._past, self._steps = self._after(batch), self._steps + self._length(batch)
        if self._first_dt <= 0.0:
            self._first_dt = batch.dt

    def commit(self) -> None:
        """The window has converged."""
        self._start = None

    def rewind(self) -> None:
        """Back to the start of the window."""
        if self._start is not None:
            (self._past, self._steps), self._start = self._start, None

    def get_state(self) -> Mapping[str, Any]:
        """For a checkpoint: empty without history."""
        if not self._on:
            return {}
        times = {"first_dt": np.float64(self._first_dt), "steps": np.float64(self._steps)}
        return {"past": self._past.transpose(1, 0, 2), **times}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave."""
        if self._on:
            self._past = np.array(state["past"], dtype=np.float64).transpose(1, 0, 2)
            self._first_dt, self._steps = (float(np.asarray(state[name])) for name in ("first_dt", "steps"))
