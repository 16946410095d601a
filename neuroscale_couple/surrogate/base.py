"""The contract of a surrogate: fast answers with an uncertainty, on one or two rungs of the ladder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy.typing as npt

from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, I64, Points, Prediction


class Surrogate(ABC):
    """A frozen map from (parameters, inputs) to outputs, tangent and score.

    The answer for a row depends on that row alone. Encoded parameters are kept per point.
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
