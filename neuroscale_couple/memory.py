"""What each point was asked lately: the part of a question that the macro solver does not send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.physics.opaque import MEMORIES
from neuroscale_couple.values import F64, Batch


class Memory:
    r"""Fading memories h_k of the inputs of all points of a rank; empty for a micro problem without history.

        h_k <- h_k + (1 - exp(-(dt / dt_0) / tau_k)) (x - h_k),   h_k = x before the first step

    dt_0 is the first time step. The question is (x, x - h_k after this step).
    """

    def __init__(self, problem: MicroProblem, points: int, wanted: bool = True) -> None:
        """wanted: False where nobody asks (gate closed, nothing learns): questions are the inputs then"""
        self._on = problem.remembers and wanted
        self._past: F64 = np.full((len(MEMORIES) if self._on else 0, points, problem.inputs.size), np.nan)
        self._first_dt = 0.0
        self._start: F64 | None = None  # at the start of a window of several steps

    def question(self, batch: Batch) -> F64:
        """What the surrogate is asked with, float64 [n, q]: the inputs alone for a micro problem without history."""
        if not self._on:
            return batch.inputs
        return np.column_stack([batch.inputs, *(batch.inputs - past for past in self._after(batch))])

    def _after(self, batch: Batch) -> F64:
        """The memories after this time step, float64 [memory, n, n_in]."""
        share = batch.dt / self._first_dt if self._first_dt > 0.0 and batch.dt > 0.0 else 1.0
        fade = -np.expm1(-share / np.asarray(MEMORIES))[:, None, None]
        before = np.where(np.isfinite(self._past), self._past, batch.inputs)
        return np.asarray(before + fade * (batch.inputs - before))

    def step(self, batch: Batch) -> None:
        """A time step has ended with these inputs."""
        if not self._on:
            return
        if self._start is None:
            self._start = self._past
        self._past = self._after(batch)
        if self._first_dt <= 0.0:
            self._first_dt = batch.dt

    def commit(self) -> None:
        """The window has converged."""
        self._start = None

    def rewind(self) -> None:
        """Back to the start of the window."""
        if self._start is not None:
            self._past, self._start = self._start, None

    def get_state(self) -> Mapping[str, Any]:
        """For a checkpoint: empty without history."""
        return {"past": self._past.transpose(1, 0, 2), "first_dt": np.float64(self._first_dt)} if self._on else {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave."""
        if self._on:
            self._past = np.array(state["past"], dtype=np.float64).transpose(1, 0, 2)
            self._first_dt = float(np.asarray(state["first_dt"]))
