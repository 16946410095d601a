"""Scale attention: learned queries decide, for each micro structure, which levels of the pyramid count."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neuroscale_couple.operator.uncertainty import EnsembleLinear


class ScaleAttention(nn.Module):
    """Each query (one per term of the potential) takes a weighted mean over the levels' descriptors.

    members, queries, inputs, latent: members of the ensemble, queries, size of a descriptor, size of the answer
    """

    def __init__(self, members: int, queries: int, inputs: int, latent: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(members, queries, latent))
        self.key = EnsembleLinear(members, inputs, latent)
        self.value = EnsembleLinear(members, inputs, latent)

    def weights(self, descriptors: Tensor) -> Tensor:
        """Weights over the levels, [m, n, queries, levels]; rows sum to one; descriptors: [n, levels, inputs]."""
        m, latent = self.query.shape[0], self.query.shape[2]
        n, levels, inputs = descriptors.shape
        flat = descriptors.reshape(1, n * levels, inputs).expand(m, n * levels, inputs)
        key = self.key(flat).view(m, n, levels, latent)
        score = torch.matmul(self.query[:, None], key.transpose(2, 3)) / math.sqrt(float(latent))
        return torch.softmax(score, dim=3)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Latent of each query, [m, n, queries, latent]."""
        m, latent = self.query.shape[0], self.query.shape[2]
        n, levels, inputs = descriptors.shape
        flat = descriptors.reshape(1, n * levels, inputs).expand(m, n * levels, inputs)
        value = self.value(flat).view(m, n, levels, latent)
        return torch.matmul(self.weights(descriptors), value)
