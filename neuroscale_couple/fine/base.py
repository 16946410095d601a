"""The contract of a fine solver: the trusted answer for a batch of points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from neuroscale_couple.values import F64, I64, FineAnswer, Points


class FineSolver(ABC):
    """Solves micro problems exactly (to its stated tolerance), a whole batch in one call.

    The answer for a row depends on that row's inputs, parameters and committed state only, to the solver's
    tolerance: not on its neighbours in the batch, and not on the guess.
    """

    @abstractmethod
    def attach(self, points: Points) -> None:
        """Take the points this rank owns, before the first solve. Raises: MicrostructureError."""

    @abstractmethod
    def solve(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """Solve the points `rows` (int64 [m], local) for `inputs` float64 [m, n_in].

        guess: total gradient field [m, c, y, x] to start from (e.g. of the surrogate's fine head), NaN rows mean
        none; the solver may prefer what it last computed for the point where that is closer.
        A solve that did not converge is reported in the answer, never raised.
        """

    @abstractmethod
    def commit(self) -> None:
        """The window has converged: what was last solved is the committed state."""

    @abstractmethod
    def rollback(self) -> None:
        """The window is repeated: back to the committed state."""

    @abstractmethod
    def diagnosis(self, row: int) -> str:
        """Residual history of the last solve of a point, for messages."""

    @abstractmethod
    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Committed physical state for a checkpoint: name -> array [n, ...]; empty without state."""

    @abstractmethod
    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore what `get_state` gave: name -> array [n, ...]."""
