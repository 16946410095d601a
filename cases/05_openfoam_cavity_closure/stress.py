"""The micro problem of case 05, with an answer that is known: a stress proportional to the strain rate.

    stress = viscosity * (G + G^T),      G_ij = d_i U_j

Its divergence in the momentum equation of an incompressible fluid is a change of the viscosity, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.values import F64, I64, FieldSpec, FineAnswer, Layout, Points

COMPONENTS = ("xx", "xy", "yx", "yy")
NUMBER = len(COMPONENTS)


class ViscousStress(MicroProblem):
    """Velocity gradient in, kinematic stress out; settings: `viscosity`, m2/s."""

    name = "viscous_stress"

    def __init__(self, settings: Any) -> None:
        self.viscosity = float(settings.model_extra["viscosity"])
        self.inputs = Layout((FieldSpec("gradient", COMPONENTS, "1/s"),))
        self.outputs = Layout((FieldSpec("stress", COMPONENTS, "m2/s2"),))
        self.state = Layout(())

    @property
    def signature(self) -> dict[str, Any]:
        """See `MicroProblem.signature`."""
        return {"name": self.name, "viscosity": self.viscosity}

    def output_floor(self) -> float:
        """The stress at a gradient of 0.05 per second."""
        return 0.05 * self.viscosity

    def check_parameters(self, parameters: dict[str, Any]) -> None:
        """All points are alike."""


class ExactStress(FineSolver):
    """The stress itself, for a whole batch in one product."""

    def __init__(self, settings: Any, problem: ViscousStress) -> None:
        transposed = [COMPONENTS.index(name[::-1]) for name in COMPONENTS]
        self.tangent: F64 = problem.viscosity * (np.eye(NUMBER) + np.eye(NUMBER)[transposed])

    def attach(self, points: Points) -> None:
        """Points differ in nothing."""

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        """See `FineSolver.solve`."""
        n = len(rows)
        tangent = np.broadcast_to(self.tangent, (n, NUMBER, NUMBER))
        steps = np.zeros(n, dtype=np.int64)
        return FineAnswer(rows, inputs @ self.tangent.T, tangent, np.ones(n, dtype=bool), steps, np.zeros(n))

    def commit(self) -> None:
        """Nothing is remembered."""

    def rollback(self) -> None:
        """Nothing is remembered."""

    def diagnosis(self, row: int) -> str:
        """See `FineSolver.diagnosis`."""
        return "a product, which cannot fail"

    def get_state(self) -> Mapping[str, Any]:
        """Nothing is remembered."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""
