"""The contract of the learner: it sees every fine answer and may propose a better surrogate between windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, I64, U8, FineAnswer, Points

Questions = Sequence[tuple[I64, F64]]
"""Batches of rows int64 [m], none twice in a batch, and their inputs float64 [m, n_in]."""


class Learner(ABC):
    """Stores fine answers and trains between converged windows."""

    @abstractmethod
    def attach(self, points: Points) -> None:
        """Take the points of this rank."""

    @abstractmethod
    def observe(self, window: int, inputs: F64, answer: FineAnswer) -> None:
        """Store converged fine answers; inputs: float64 [m, q], the question of answer.rows (`MicroProblem.question`).

        Never raises on a full disk.
        """

    def ask(self, window: int, current: Surrogate | None, inputs: F64, source: U8) -> Questions:
        """What the fine solver should answer, for `observe`, before a training: loads that the run has not met yet.

        inputs: float64 [n, n_in] of this rank's points in the converged window; source: uint8 [n], who answered them.
        Collective: yes.
        """
        return ()

    @abstractmethod
    def propose(self, window: int, current: Surrogate | None) -> Surrogate | None:
        """After a window has converged: train within the budget and return a validated better surrogate, or None.

        Collective: yes. All ranks return the same surrogate (attached to their own points) or None.
        """

    @abstractmethod
    def get_state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep."""

    @abstractmethod
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave."""
