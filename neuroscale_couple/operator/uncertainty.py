r"""The ensemble: members with weights of their own, evaluated side by side, and what their spread says of the error.

    score = exp(w . (1, log s, log t, log |x|, log c, log |T|))

with the relative spreads s of the outputs and t of the tangents, the load x, the tangent T and the cancellation
c = |T| |x| / |output|. The weights w are fitted to errors on held-out micro structures, which the calibration of the
score does not use; before that the score is s. Only the order of scores matters: the gate calibrates them.
"""

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


class ErrorModel(nn.Module):
    """Score of an answer from the ensemble's spread and the size of load, output and tangent."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))

    def evidence(self, flux: Tensor, tangent: Tensor, x: Tensor, floor: float) -> Tensor:
        """What the score is made of, [n, 6].

        flux: [n, m, c] and tangent: [n, m, c, c] of the members, x: [n, c], all normalised; floor: of a flux
        """
        stiffness = torch.mean(tangent, dim=1).flatten(1)
        size = torch.linalg.vector_norm(stiffness, dim=1)
        load = torch.linalg.vector_norm(x, dim=1)
        cancellation = size * load / torch.clamp_min(torch.linalg.vector_norm(torch.mean(flux, dim=1), dim=1), floor)
        first, second = relative_spread(flux, floor), relative_spread(tangent.flatten(2), 1e-12)
        rows = [torch.clamp_min(value, 1e-5).log() for value in (first, second, load, cancellation, size)]
        return torch.stack([torch.ones_like(size)] + rows, dim=1)

    def forward(self, flux: Tensor, tangent: Tensor, x: Tensor, floor: float) -> Tensor:
        """Score [n], >= 0; NaN for an answer that is NaN."""
        return torch.exp(torch.matmul(self.evidence(flux, tangent, x, floor), self.weight))

    @torch.jit.unused
    def fit(self, evidence: Tensor, error: Tensor) -> None:
        """Least squares for the logarithm of the error. evidence: [n, 6]; error: [n] relative."""
        logs = torch.log(error.double() + 1e-4)
        ridge = 1e-3 * len(error) * torch.eye(evidence.shape[1], dtype=torch.float64)
        rows = evidence.double()
        self.weight.copy_(torch.linalg.solve(rows.T @ rows + ridge, rows.T @ logs).float())


def relative_spread(members: Tensor, floor: float) -> Tensor:
    """Root mean square distance of the members' answers to their mean, relative to max(|mean|, floor).

    members: [n, m, c]; returns [n]
    """
    mean = torch.mean(members, dim=1)
    spread = torch.sqrt(torch.mean(torch.sum((members - mean[:, None]) ** 2, dim=2), dim=1))
    return spread / torch.clamp_min(torch.linalg.vector_norm(mean, dim=1), floor)
