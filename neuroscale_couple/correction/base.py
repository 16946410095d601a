"""The contract of a correction: the minimal change that makes the mixed answer admissible or conservative."""

from __future__ import annotations

from abc import ABC, abstractmethod

from neuroscale_couple.values import F64, U8, Batch, Points


class Correction(ABC):
    """Changes surrogate answers in place; fine answers (zero variance) stay as they are to the bit."""

    @abstractmethod
    def attach(self, points: Points) -> None:
        """Take the points of this rank."""

    @abstractmethod
    def apply(self, batch: Batch, outputs: F64, tangent: F64, error: F64, source: U8) -> None:
        """Correct all points of this rank. Collective: yes.

        outputs: float64 [n, n_out], in/out; tangent: float64 [n, n_out, n_in], in/out
        error: float64 [n], estimated relative error (0 for fine answers); source: uint8 [n] (`Source`)
        """
