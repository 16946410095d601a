"""The contract of a micro problem: the single source of its physics.

Cell problems (conduction, composite) add a periodic grid on which a local law acts. The same law object is
used by the fine solver, by the surrogate's fine head, by training losses and by the gate's physical checks.

Two sets of components appear:
- macro: what the macro solver sends and gets (strain: xx, yy, gamma_xy; stress: xx, yy, xy)
- grid: orthonormal components on the grid (Mandel for strains: xx, yy, sqrt2 xy), so that inner products are plain
The constant matrix `to_grid` maps macro driving components to grid components; outputs go back by its transpose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from neuroscale_couple.physics.periodic import GreenOperator
from neuroscale_couple.values import F64, Layout, relative_error


class CellLaw(nn.Module):
    """A local law with a convex potential w(e; phase, condition) on a grid; scriptable.

    e: [n, c, y, x] grid components of the gradient (strain, temperature gradient)
    phase: [n, y, x] share of the inclusion phase, 0 or 1 on the finest scale, in between on coarser ones
    condition: [n, k] inputs that do not drive the field (e.g. temperature); k may be 0
    The flux (stress, heat flux with the sign of the gradient) is s = dw/de, the moduli are d2w/de2.
    linear: whether the flux is linear in e, so that one Newton step solves a cell
    """

    linear = False

    def energy(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        """w: [n, y, x]."""
        raise NotImplementedError

    def flux(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        """s: [n, c, y, x]."""
        raise NotImplementedError

    def moduli(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        """ds/de: [n, c, c, y, x], symmetric positive definite."""
        raise NotImplementedError

    def flux_by_condition(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        """ds/dcondition: [n, c, k, y, x]."""
        raise NotImplementedError


class MicroProblem(ABC):
    """The physics at a point: fields, pyramid, governing law, conserved quantities, homogenisation, bounds.

    has_tangent: whether answers come with the derivative of the outputs; without it, tangents are [n, n_out, 0]
    remembers: whether an answer depends on earlier ones in a way that no state shows (`opaque.OpaqueProblem`)
    """

    name: str
    inputs: Layout
    outputs: Layout
    state: Layout
    has_tangent: bool = True
    remembers: bool = False

    @property
    def question(self) -> Layout:
        """What the surrogate is asked with: the inputs, and what was remembered."""
        return self.inputs

    @property
    def tangent_columns(self) -> int:
        """Number of inputs that the tangent has a column for: all of them, or 0 without a tangent."""
        return self.inputs.size if self.has_tangent else 0

    @property
    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """JSON-able identity (name, material parameters, fields, units); an artifact must carry the same."""

    @abstractmethod
    def output_floor(self) -> float:
        """Size of an output vector below which errors are measured against this floor; unit of the outputs."""

    def relative_error(self, got: F64, reference: F64) -> F64:
        """Relative error of each point's outputs, float64 [n], measured against `output_floor` at least."""
        return relative_error(got, reference, self.output_floor())

    @abstractmethod
    def check_parameters(self, parameters: dict[str, Any]) -> None:
        """Raises: MicrostructureError naming the point and the reason if the parameters cannot be used."""


class CellProblem(MicroProblem):
    """A micro problem on a periodic two-phase pixel grid with a local convex law.

    grid: (ny, nx) of the finest scale; each further scale halves it; the last scale is one value per point
    driving: columns of the inputs that drive the field; the remaining columns are the condition
    """

    law: CellLaw
    green: GreenOperator
    grid: tuple[int, int]
    driving: slice
    condition: slice
    to_grid: Tensor  # float64 [c, number of driving columns]

    @property
    @abstractmethod
    def scales(self) -> tuple[tuple[int, int], ...]:
        """Grid (ny, nx) of each scale, finest first; the last is (1, 1)."""

    @abstractmethod
    def residual(self, field: Tensor, phase: Tensor, inputs: Tensor, scale: int) -> Tensor:
        """Governing law at a scale: the compatible part Gamma s(e) of the flux, [n, c, y, x]; 0 at the solution.

        field: [n, c, y, x] total gradient at that scale; phase: [n, y, x] at that scale; inputs: [n, n_in]
        """

    @abstractmethod
    def conserved(self, field: Tensor, phase: Tensor, inputs: Tensor, scale: int) -> Tensor:
        """What must agree across scales: mean gradient, mean flux and mean energy, [n, 2c + 1]."""

    @abstractmethod
    def coarsen(self, field: Tensor, source: int, target: int) -> Tensor:
        """C(source -> target): volume mean of a field [n, ..., y, x] onto a coarser scale."""

    @abstractmethod
    def outputs_of(self, field: Tensor, phase: Tensor, inputs: Tensor) -> Tensor:
        """Homogenisation: [n, n_out] from the total gradient field [n, c, y, x] on any grid."""

    @abstractmethod
    def bounds(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Two-sided bounds (lower, upper) on `effective_energy` of each point, float64 [n] each.

        Voigt (uniform gradient) above, Reuss (uniform flux) below. phase: [n, y, x] on any scale; the gate passes the
        coarsest, [n, 1, 1] inclusion shares.
        """

    @abstractmethod
    def effective_energy(self, inputs: F64, outputs: F64) -> F64:
        """inputs . outputs of the driving columns, float64 [n] (for a linear law: twice the energy)."""

    @abstractmethod
    def tangent_bounds(self, inputs: F64, phase: Any) -> tuple[F64, F64]:
        """Bounds (lower, upper) on the driving block of the tangent in the sense of quadratic forms.

        Returns float64 [n, d, d] each; every admissible tangent T has lower <= T <= upper. phase: as in `bounds`
        """


def macro_to_grid(to_grid: Tensor, driving: Tensor) -> Tensor:
    """Uniform field [n, c, 1, 1] of macro driving values [n, d]."""
    return (driving.to(to_grid.dtype) @ to_grid.T)[:, :, None, None]


def mean_flux_to_macro(to_grid: Tensor, flux: Tensor) -> Tensor:
    """Macro outputs [n, d] of a flux field [n, c, y, x]: to_grid^T <s>."""
    return torch.mean(flux, dim=(-2, -1)) @ to_grid.to(flux.dtype)
