r"""Two-phase heat conduction with a temperature-dependent conductivity in each phase.

    s = k(T) g,   k_i(T) = k_i (1 + b_i (T - T_ref)),   i = matrix, inclusion

g is the temperature gradient, T the macro temperature (constant in the cell to first order). The flux is given
with the sign of the gradient: the heat flux is q = -s. With b = 0 the law is linear.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from neuroscale_couple.config.schema import Positive, Problem
from neuroscale_couple.physics.base import CellLaw
from neuroscale_couple.physics.cell import PeriodicCell, Settings, read_settings, share_of
from neuroscale_couple.physics.periodic import GreenOperator
from neuroscale_couple.values import F64, FieldSpec, Layout


class TwoPhaseConduction(CellLaw):
    """Isotropic two-phase conduction law; conductivities in W/(m K), b in 1/K, T_ref in K.

    matrix, inclusion: (k, b)
    """

    def __init__(
        self, matrix: tuple[float, float], inclusion: tuple[float, float], reference_temperature: float
    ) -> None:
        super().__init__()
        self.linear = True
        self.k_m, self.b_m = matrix
        self.k_i, self.b_i = inclusion
        self.t_ref = reference_temperature

    def conductivity(self, phase: Tensor, condition: Tensor) -> Tensor:
        """k [n, y, x], NaN where the law leaves its range k > 0; coarser scales take the volume-weighted mean."""
        dt = (condition[:, 0] - self.t_ref)[:, None, None]
        k_m = self.k_m * (1.0 + self.b_m * dt)
        k_i = self.k_i * (1.0 + self.b_i * dt)
        k = k_m + phase * (k_i - k_m)
        return torch.where(k > 0.0, k, torch.full_like(k, float("nan")))

    def energy(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        return 0.5 * self.conductivity(phase, condition) * torch.sum(e * e, dim=1)

    def flux(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        return self.conductivity(phase, condition)[:, None] * e

    def moduli(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        k = self.conductivity(phase, condition)
        zero = torch.zeros_like(k)
        return torch.stack([torch.stack([k, zero], dim=1), torch.stack([zero, k], dim=1)], dim=1)

    def flux_by_condition(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        slope = self.k_m * self.b_m + phase * (self.k_i * self.b_i - self.k_m * self.b_m)
        return (slope[:, None] * e)[:, :, None]


class Conductor(Settings):
    """A phase: k(T) = k (1 + slope (T - T_ref))."""

    k: Positive = Field(description="conductivity at the reference temperature, W/(m K)")
    slope: float = Field(0.0, description="relative change of the conductivity per kelvin, 1/K")


class ConductionSettings(Settings):
    """Keys of `problem:` for `name: conduction`."""

    matrix: Conductor = Field(default_factory=lambda: Conductor(k=1.0, slope=0.001))
    inclusion: Conductor = Field(default_factory=lambda: Conductor(k=10.0, slope=-0.001))
    reference_temperature: float = Field(300.0, description="T_ref, K")
    reference_gradient: Positive = Field(1.0, description="usual size of the temperature gradient, K/m")


class Conduction(PeriodicCell):
    """Heat conduction: gradient (x, y) K/m and temperature K in, flux (x, y) = k grad T W/m2 out.

    The flux has the sign of the gradient; the heat flux is its negative.
    """

    law: TwoPhaseConduction

    def __init__(self, settings: Problem) -> None:
        own = read_settings(ConductionSettings, settings)
        matrix, inclusion = (own.matrix.k, own.matrix.slope), (own.inclusion.k, own.inclusion.slope)
        law = TwoPhaseConduction(matrix, inclusion, own.reference_temperature)
        layouts = (
            Layout((FieldSpec("gradient", ("x", "y"), "K/m"), FieldSpec("temperature", ("",), "K"))),
            Layout((FieldSpec("flux", ("x", "y"), "W/m2"),)),
        )
        green = GreenOperator(2, (math.sqrt(own.matrix.k * own.inclusion.k),), settings.scheme)
        super().__init__(settings, layouts, law, green, torch.eye(2, dtype=torch.float64))
        self._own = own

    @property
    def material(self) -> dict[str, Any]:
        """Conductivities of both phases."""
        return self._own.model_dump(exclude={"reference_gradient"})

    def output_floor(self) -> float:
        """A twentieth of the flux k g of the matrix at the reference gradient, W/m2."""
        return 0.05 * self._own.matrix.k * self._own.reference_gradient

    def _means(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Harmonic and arithmetic mean of the conductivities at the points' temperatures, float64 [n] W/(m K)."""
        share = share_of(phase)
        dt = inputs[:, 2] - self.law.t_ref
        k_m, k_i = self.law.k_m * (1.0 + self.law.b_m * dt), self.law.k_i * (1.0 + self.law.b_i * dt)
        return 1.0 / (share / k_i + (1.0 - share) / k_m), share * k_i + (1.0 - share) * k_m

    def bounds(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Reuss and Voigt bounds on flux . gradient of each point, float64 [n] W K/m3."""
        low, high = self._means(inputs, phase)
        square = np.einsum("nd,nd->n", inputs[:, :2], inputs[:, :2])
        return low * square, high * square

    def tangent_bounds(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Reuss and Voigt bounds on the conductivity tensor, float64 [n, 2, 2] W/(m K)."""
        low, high = self._means(inputs, phase)
        return low[:, None, None] * np.eye(2), high[:, None, None] * np.eye(2)
