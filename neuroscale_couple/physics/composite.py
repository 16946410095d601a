r"""Plane-strain composite: linear elastic inclusions in a nonlinear-elastic, power-law matrix.

    w(e) = kappa/2 tr(e)^2 + 3/2 mu e0^2 ((1 + q)^p - 1)/p,   q = 2/3 |dev e|^2 / e0^2,   p = (1 + m)/2

with the power-law exponent m (1 = linear elastic) and the reference strain e0; inclusions have m = 1.
w is convex and smooth, so the response is path-independent and the tangent symmetric positive definite.
Source: Ponte Castaneda & Suquet 1998 (power-law composites); deviators are those of the 3D strain with e_zz = 0.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from neuroscale_couple.config.schema import Positive, Problem
from neuroscale_couple.physics.base import CellLaw
from neuroscale_couple.physics.bounds import energy_bounds, tangent_bounds
from neuroscale_couple.physics.cell import PeriodicCell, Settings, read_settings, share_of
from neuroscale_couple.physics.periodic import GreenOperator
from neuroscale_couple.values import F64, FieldSpec, Layout


class PowerLawComposite(CellLaw):
    """Two-phase plane-strain law in Mandel components (xx, yy, sqrt2 xy); moduli in MPa.

    matrix, inclusion: (kappa, mu); exponent: m of the matrix; reference_strain: e0
    A phase between 0 and 1 (coarser scales) takes the volume-weighted mean of both energies.
    """

    def __init__(
        self, matrix: tuple[float, float], inclusion: tuple[float, float], exponent: float, reference_strain: float
    ) -> None:
        super().__init__()
        self.linear = exponent == 1.0
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


class Phase(Settings):
    """Elastic constants of a phase."""

    E: Positive = Field(description="Young's modulus, MPa")
    nu: Annotated[float, Field(gt=-1.0, lt=0.5)] = Field(description="Poisson's ratio")

    @property
    def moduli(self) -> tuple[float, float]:
        """(kappa, mu), MPa."""
        return self.E / (3.0 * (1.0 - 2.0 * self.nu)), self.E / (2.0 * (1.0 + self.nu))


class Matrix(Phase):
    """The nonlinear matrix."""

    E: Positive = Field(5000.0, description="initial Young's modulus, MPa")
    nu: Annotated[float, Field(gt=-1.0, lt=0.5)] = Field(0.35, description="initial Poisson's ratio")
    exponent: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="power-law exponent m; 1 is linear elastic"
    )
    reference_strain: Positive = Field(0.01, description="strain e0 at which the matrix starts to soften")


class Inclusion(Phase):
    """The linear elastic inclusions."""

    E: Positive = Field(50000.0, description="Young's modulus, MPa")
    nu: Annotated[float, Field(gt=-1.0, lt=0.5)] = Field(0.2, description="Poisson's ratio")


class CompositeSettings(Settings):
    """Keys of `problem:` for `name: composite`."""

    matrix: Matrix = Field(default_factory=Matrix)
    inclusion: Inclusion = Field(default_factory=Inclusion)


class Composite(PeriodicCell):
    """Plane-strain composite: strain (xx, yy, gamma_xy) in, stress (xx, yy, xy) MPa out."""

    law: PowerLawComposite

    def __init__(self, settings: Problem) -> None:
        own = read_settings(CompositeSettings, settings)
        matrix, inclusion = own.matrix.moduli, own.inclusion.moduli
        law = PowerLawComposite(matrix, inclusion, own.matrix.exponent, own.matrix.reference_strain)
        kappa, mu = (math.sqrt(a * b) for a, b in zip(matrix, inclusion, strict=True))
        layouts = (
            Layout((FieldSpec("strain", ("xx", "yy", "xy"), "1"),)),
            Layout((FieldSpec("stress", ("xx", "yy", "xy"), "MPa"),)),
        )
        to_grid = torch.diag(torch.tensor([1.0, 1.0, math.sqrt(0.5)], dtype=torch.float64))
        green = GreenOperator(3, (kappa - 2.0 / 3.0 * mu, mu), settings.scheme)
        super().__init__(settings, layouts, law, green, to_grid)
        self._own = own
        self._mandel = np.diag(to_grid.numpy())

    @property
    def material(self) -> dict[str, Any]:
        """Elastic constants of both phases."""
        return self._own.model_dump()

    def output_floor(self) -> float:
        """A twentieth of the stress E e0 at which the matrix softens, MPa."""
        return 0.05 * self._own.matrix.E * self._own.matrix.reference_strain

    def bounds(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Bounds (lower, upper) on stress . strain of each point, float64 [n] MPa; see physics/bounds.py."""
        return energy_bounds(self.law, inputs * self._mandel, share_of(phase))

    def tangent_bounds(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Bounds (lower, upper) on the tangent as quadratic forms, float64 [n, 3, 3] MPa; see physics/bounds.py."""
        lower, upper = tangent_bounds(self.law, inputs * self._mandel, share_of(phase))
        scale = self._mandel[:, None] * self._mandel
        return lower * scale, upper * scale
