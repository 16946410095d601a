r"""Two-phase heat conduction with a temperature-dependent conductivity in each phase.

    s = k(T) g,   k_i(T) = k_i (1 + b_i (T - T_ref)),   i = matrix, inclusion

g is the temperature gradient, T the macro temperature (constant in the cell to first order). The flux is given
with the sign of the gradient: the heat flux is q = -s. With b = 0 the law is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuroscale_couple.physics.base import CellLaw


class TwoPhaseConduction(CellLaw):
    """Isotropic two-phase conduction law; conductivities in W/(m K), b in 1/K, T_ref in K.

    matrix, inclusion: (k, b)
    """

    def __init__(self, matrix: tuple[float, float], inclusion: tuple[float, float], reference_temperature: float) -> None:
        super().__init__()
        self.k_m, self.b_m = matrix
        self.k_i, self.b_i = inclusion
        self.t_ref = reference_temperature

    def conductivity(self, phase: Tensor, condition: Tensor) -> Tensor:
        """k [n, y, x]; coarser scales take the volume-weighted mean."""
        dt = (condition[:, 0] - self.t_ref)[:, None, None]
        k_m = self.k_m * (1.0 + self.b_m * dt)
        k_i = self.k_i * (1.0 + self.b_i * dt)
        return k_m + phase * (k_i - k_m)

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
