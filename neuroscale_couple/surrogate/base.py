"""The contract of a surrogate: fast answers with an uncertainty, on one or two rungs of the ladder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, I64, Bool, Points, Prediction


class Surrogate(ABC):
    """A frozen map from (parameters, inputs) to outputs, tangent and score.

    The answer for a row depends on that row alone. Encoded parameters are kept per point.
    A surrogate may name leaders: points whose fine answers it takes into account when it answers the others. They are
    named once in a window and solved in each of its iterations, so that the map stays one (docs/decisions/0009).
    """

    card: Card
    version: int

    @property
    @abstractmethod
    def rungs(self) -> tuple[Source, ...]:
        """The rungs this surrogate offers, cheapest first."""

    @abstractmethod
    def attach(self, points: Points) -> None:
        """Encode the parameters of the points this rank owns and keep them."""

    @abstractmethod
    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        """Answer the points `rows` (int64 [m]) on one rung for `inputs` float64 [m, q] (`MicroProblem.question`)."""

    @abstractmethod
    def fields(self, rows: I64, inputs: F64) -> npt.NDArray[Any] | None:
        """Predicted total gradient fields [m, c, y, x] to start the fine solver from; None without a fine head."""

    def guess(self, rows: I64, inputs: F64, stale: I64) -> npt.NDArray[Any] | None:
        """`fields` of the stale ones of the rows (int64 [k], positions), NaN for the others; None if there are none."""
        fields = self.fields(rows[stale], inputs[stale]) if len(stale) else None
        if fields is None or len(stale) == len(rows):
            return fields
        guess = np.full((len(rows), *fields.shape[1:]), np.nan, dtype=fields.dtype)
        guess[stale] = fields
        return guess

    def lead(self, question: F64, fresh: Bool, limit: float) -> I64:
        """Rows (int64) of the leaders of a window, from the questions of all points of this rank; none by default.

        fresh: bool [n], points whose last window was answered by the fine solver; limit: largest score accepted
        """
        return np.zeros(0, dtype=np.int64)

    def condition(self, rows: I64, question: F64, outputs: F64, again: bool = False) -> None:  # noqa: B027
        """Take the leaders' fine answers: rows int64 [m], question float64 [m, q], outputs float64 [m, n_out].

        again: the same time step as the last time, with other inputs: a further iteration
        """

    def lead_on(self, question: F64, fresh: Bool, limit: float) -> I64:
        """Rows (int64 [k]) that shall lead beside those whose answers were taken, as `lead` has it; none by default."""
        return np.zeros(0, dtype=np.int64)

    def inherit(self, before: Surrogate | None) -> None:  # noqa: B027
        """Go on with the leaders of the surrogate that this one replaces."""

    def get_state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep beside the artifact: arrays by name."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `get_state` gave."""
