r"""Plane-strain composite: linear elastic inclusions in a nonlinear-elastic, power-law matrix.

    w(e) = kappa/2 tr(e)^2 + 3/2 mu e0^2 ((1 + q)^p - 1)/p,   q = 2/3 |dev e|^2 / e0^2,   p = (1 + m)/2

with the power-law exponent m (1 = linear elastic) and the reference strain e0; inclusions have m = 1.
w is convex and smooth, so the response is path-independent and the tangent symmetric positive definite.
Source: Ponte Castaneda & Suquet 1998 (power-law composites); deviators are those of the 3D strain with e_zz = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuroscale_couple.physics.base import CellLaw


class PowerLawComposite(CellLaw):
    """Two-phase plane-strain law in Mandel components (xx, yy, sqrt2 xy); moduli in MPa.

    matrix, inclusion: (kappa, mu); exponent: m of the matrix; reference_strain: e0
    A phase between 0 and 1 (coarser scales) takes the volume-weighted mean of both energies.
    """

    def __init__(
        self, matrix: tuple[float, float], inclusion: tuple[float, float], exponent: float, reference_strain: float
    ) -> None:
        super().__init__()
        self.kappa_m, self.mu_m = matrix
        self.kappa_i, self.mu_i = inclusion
        self.p = 0.5 * (1.0 + exponent)
        self.e0 = reference_strain

    def energy(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        tr = e[:, 0] + e[:, 1]
        dev2 = e[:, 0] * e[:, 0] + e[:, 1] * e[:, 1] + e[:, 2] * e[:, 2] - tr * tr / 3.0
        q = dev2 * (2.0 / 3.0 / self.e0**2)
        matrix = 0.5 * self.kappa_m * tr * tr + 1.5 * self.mu_m * self.e0**2 * ((1.0 + q) ** self.p - 1.0) / self.p
        inclusion = 0.5 * self.kappa_i * tr * tr + self.mu_i * dev2
        return matrix + phase * (inclusion - matrix)

    def _secant(self, e: Tensor, phase: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tr = e[:, 0] + e[:, 1]
        dev2 = e[:, 0] * e[:, 0] + e[:, 1] * e[:, 1] + e[:, 2] * e[:, 2] - tr * tr / 3.0
        q1 = 1.0 + dev2 * (2.0 / 3.0 / self.e0**2)
        mu_matrix = self.mu_m * q1 ** (self.p - 1.0)
        kappa = self.kappa_m + phase * (self.kappa_i - self.kappa_m)
        mu = mu_matrix + phase * (self.mu_i - mu_matrix)
        return tr, kappa, mu, mu_matrix * (1.0 - phase) * (self.p - 1.0) / q1

    def flux(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        tr, kappa, mu, _ = self._secant(e, phase)
        pressure = (kappa - 2.0 / 3.0 * mu) * tr
        return torch.stack([pressure + 2.0 * mu * e[:, 0], pressure + 2.0 * mu * e[:, 1], 2.0 * mu * e[:, 2]], dim=1)

    def moduli(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        tr, kappa, mu, slope = self._secant(e, phase)
        # ds/de = kappa 1x1 + 2 mu (I - 1x1/3) + (8/3 slope / e0^2) dev x dev, with dev's in-plane components
        d0, d1, d2 = e[:, 0] - tr / 3.0, e[:, 1] - tr / 3.0, e[:, 2]
        a = slope * (8.0 / 3.0 / self.e0**2)
        bulk = kappa - 2.0 / 3.0 * mu
        c00, c01, c02 = bulk + 2.0 * mu + a * d0 * d0, bulk + a * d0 * d1, a * d0 * d2
        c11, c12, c22 = bulk + 2.0 * mu + a * d1 * d1, a * d1 * d2, 2.0 * mu + a * d2 * d2
        row0 = torch.stack([c00, c01, c02], dim=1)
        row1 = torch.stack([c01, c11, c12], dim=1)
        row2 = torch.stack([c02, c12, c22], dim=1)
        return torch.stack([row0, row1, row2], dim=1)

    def flux_by_condition(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        return e.new_zeros(e.shape[0], 3, 0, e.shape[2], e.shape[3])
