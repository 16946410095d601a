"""The ensemble: members with weights of their own, evaluated side by side, and the spread of their answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """One affine map per member in a single batched product: [m, n, inputs] -> [m, n, outputs].

    gain: factor on the initial weights (0: starts as the zero map)
    """

    def __init__(self, members: int, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        bound = gain / math.sqrt(inputs)
        self.weight = nn.Parameter((2.0 * torch.rand(members, inputs, outputs) - 1.0) * bound)
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: [m, n, inputs]."""
        return torch.baddbmm(self.bias, x, self.weight)


def relative_spread(members: Tensor, floor: float) -> Tensor:
    """Root mean square distance of the members' answers to their mean, relative to max(|mean|, floor).

    members: [n, m, c]; returns [n]
    """
    mean = torch.mean(members, dim=1)
    spread = torch.sqrt(torch.mean(torch.sum((members - mean[:, None]) ** 2, dim=2), dim=1))
    return spread / torch.clamp_min(torch.linalg.vector_norm(mean, dim=1), floor)
