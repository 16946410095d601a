"""What training minimises; every term is a relative error, so that they can be added."""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTH = 3e-3
"""Relative error below which a loss turns from linear to quadratic."""


def soft_relative(got: Tensor, wanted: Tensor, floor: float) -> Tensor:
    """Smoothed relative distance sqrt(|got - wanted|^2 / max(|wanted|, floor)^2 + s^2) - s over the last axis.

    got, wanted: [..., components]; floor: size below which a value counts as small. Returns: [...]
    """
    size = torch.clamp_min(torch.linalg.vector_norm(wanted, dim=-1), floor)
    square = torch.sum((got - wanted) ** 2, dim=-1) / size**2
    return torch.sqrt(square + SMOOTH**2) - SMOOTH


def data_loss(
    flux: Tensor, tangent: Tensor, wanted_flux: Tensor, wanted_tangent: Tensor, floor: float, tangent_weight: float
) -> Tensor:
    """Relative error of outputs plus weighted relative error of tangents, per sample and member [..., m].

    flux: [..., m, d]; tangent: [..., m, d, d]; wanted_flux: [..., d]; wanted_tangent: [..., d, d]
    """
    first = soft_relative(flux, wanted_flux.unsqueeze(-2), floor)
    second = soft_relative(tangent.flatten(-2), wanted_tangent.flatten(-2).unsqueeze(-2), 1e-12)
    return first + tangent_weight * second


def relative_energy(energy: Tensor, work: Tensor) -> Tensor:
    """Mean energy of predicted compatible fields in units of the work of the exact answer.

    The exact field has the smallest energy of all compatible fields of the same mean, so this residual term needs no
    field data. energy, work: [n]
    """
    return torch.mean(energy / torch.clamp_min(work, 1e-12))
