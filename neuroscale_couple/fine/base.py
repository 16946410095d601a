"""The contract of a fine solver: the trusted answer for a batch of points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.values import F64, I64, Batch, FineAnswer, Points


class FineSolver(ABC):
    """Solves micro problems exactly (to its stated tolerance), a whole batch in one call.

    The answer for a row depends on that row's inputs, parameters and committed state only, to the solver's
    tolerance: not on its neighbours in the batch, and not on the guess.
    """

    @abstractmethod
    def attach(self, points: Points) -> None:
        """Take the points this rank owns, before the first solve. Raises: MicrostructureError."""

    def keep_in(self, folder: Path) -> None:  # noqa: B027
        """This run writes checkpoints: files that only grow may be kept in this folder. Called before `attach`."""

    def begin(self, batch: Batch) -> None:  # noqa: B027
        """An iteration begins: what all points are asked, also those that others will answer."""

    @abstractmethod
    def solve(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """Solve the points `rows` (int64 [m], local) for `inputs` float64 [m, n_in].

        guess: total gradient field [m, c, y, x] to start from (e.g. of the surrogate's fine head), NaN rows mean
        none; the solver may prefer what it last computed for the point where that is closer.
        A solve that did not converge is reported in the answer, never raised.
        """

    def solve_apart(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """As `solve`, but every row by a solve of its own: rows int64 [m], inputs float64 [m, n_in] (`fine.alike`)."""
        return self.solve(rows, inputs, guess)

    @abstractmethod
    def commit(self) -> None:
        """The window has converged: what was last solved is the committed state."""

    @abstractmethod
    def rollback(self) -> None:
        """The window is repeated: back to the committed state."""

    def next_step(self) -> None:
        """Go on inside the window: what was last solved is where the next step starts."""
        self.commit()

    def snapshot(self) -> dict[str, Any]:
        """What `restore` needs to come back to the start of a window of several steps."""
        return {name: np.array(values) for name, values in self.get_state().items()}

    def restore(self, start: Mapping[str, Any]) -> None:
        """Back to the start of the window. start: as `snapshot` gave it"""
        if start:
            self.set_state(start)

    @property
    def advice(self) -> str:
        """What to try when a point fails, for messages."""
        return "Try a smaller load step, raise fine.max_newton or fine.max_cg, or set fine.on_failure: keep"

    @abstractmethod
    def diagnosis(self, row: int) -> str:
        """Residual history of the last solve of a point, for messages."""

    @abstractmethod
    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Committed state for a checkpoint: name -> array; empty without state. What is physical is [n, ...]."""

    @abstractmethod
    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore what `get_state` gave: name -> array [n, ...]."""

    def close(self) -> None:  # noqa: B027
        """End of the run: give back what is held; idempotent."""
