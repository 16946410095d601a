"""The NeuroScale operator: encode a micro structure once, then answer loads on two rungs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroscale_couple.operator.heads import CoarseHead, potential
from neuroscale_couple.operator.levels import LippmannSchwinger, Pyramid
from neuroscale_couple.operator.scale_attention import ScaleAttention
from neuroscale_couple.operator.uncertainty import relative_spread


@dataclass(frozen=True)
class Sizes:
    """Hyper-parameters of the operator; a JSON object of these restores its structure."""

    members: int = 4
    terms: int = 4
    width: int = 16
    latent: int = 8
    hidden: int = 64
    steps: int = 3


@dataclass(frozen=True)
class Physics:
    """What the operator is given of a micro problem.

    law: local law on the grid (`flux`, `moduli`); green: compatible projection; to_grid: float32 [c, d]
    media: float32 [j, 2, c, c] comparison moduli in units of flux_scale / load_scale
    load_scale, flux_scale: usual size of gradient and flux; floor: size of an output that counts as small
    conditions: (centre, half width) of each input that does not drive the field
    """

    law: nn.Module
    green: nn.Module
    to_grid: Tensor
    media: Tensor
    load_scale: float
    flux_scale: float
    floor: float
    conditions: tuple[tuple[float, float], ...] = ()


class NeuroScale(nn.Module):
    """Encoder (Lippmann-Schwinger layer, pyramid, scale attention), coarse head, fine head; an ensemble throughout."""

    def __init__(self, physics: Physics, sizes: Sizes) -> None:
        super().__init__()
        c, media = physics.media.shape[-1], physics.media.shape[0]
        self.law = physics.law
        self.load_scale, self.flux_scale, self.floor = physics.load_scale, physics.flux_scale, physics.floor
        self.driving = physics.to_grid.shape[1]
        self.lippmann = LippmannSchwinger(physics.green, physics.media, sizes.steps)
        pairs = c * (c + 1) // 2
        self.pyramid = Pyramid(1 + media * pairs, sizes.width)
        self.attention = ScaleAttention(sizes.members, sizes.terms, 2 * sizes.width + 1, sizes.latent)
        moments = media * pairs * (pairs + 1) // 2
        self.scalars = media * (sizes.steps + 3) * pairs + pairs + 1 + moments
        k = len(physics.conditions)
        shape = (sizes.members, sizes.terms, c, k)
        self.coarse_head = CoarseHead(shape, 2 * media, self.scalars + sizes.terms * sizes.latent, sizes.hidden)
        lower, inner = torch.tril_indices(c, c), torch.tril_indices(pairs, pairs)
        buffers = {
            "to_grid": physics.to_grid.to(torch.float32),
            "row": lower[0], "column": lower[1], "inner_row": inner[0], "inner_column": inner[1],
            "centre": torch.tensor([p[0] for p in physics.conditions]),
            "half_width": torch.tensor([p[1] for p in physics.conditions]),
            "scalar_mean": torch.zeros(self.scalars), "scalar_std": torch.ones(self.scalars),
        }  # fmt: skip
        self.to_grid: Tensor
        self.row: Tensor
        self.column: Tensor
        self.inner_row: Tensor
        self.inner_column: Tensor
        self.centre: Tensor
        self.half_width: Tensor
        self.scalar_mean: Tensor
        self.scalar_std: Tensor
        for name, value in buffers.items():
            self.register_buffer(name, value)

    @torch.jit.export
    def features(self, phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What does not depend on weights, computed once per micro structure.

        phase: float32 [n, y, x]
        Returns: forms [n, 2j, c, c], the shares of the two phases in the best bounds; raw scalars [n, s];
        image [n, channels, y, x]
        """
        bounds, split, e = self.lippmann(phase)
        s = self.lippmann.stress(e, phase)
        density = torch.einsum("njacyx,njbcyx->njabyx", e, s)[:, :, self.row, self.column]
        size = torch.diagonal(bounds[:, :, -1], dim1=-2, dim2=-1).mean(dim=-1)
        density = density / size[:, :, None, None, None]
        n, j, pairs = density.shape[0], density.shape[1], density.shape[2]
        first = (density * (1.0 - phase)[:, None, None]).reshape(n, j, pairs, -1)
        moments = torch.matmul(first, density.reshape(n, j, pairs, -1).transpose(2, 3)) / float(first.shape[-1])
        factor = torch.linalg.cholesky(bounds[:, 0, -1])
        drops = self._whiten(factor, bounds[:, :, :-1] - bounds[:, :, 1:])
        last = self._whiten(factor, bounds[:, :, -1:])
        shares = self._whiten(factor, split)
        scalars = [drops.flatten(1), last.flatten(1), shares.flatten(1), factor[:, self.row, self.column]]
        scalars += [torch.mean(phase, dim=(1, 2))[:, None], moments[:, :, self.inner_row, self.inner_column].flatten(1)]
        image = torch.cat([phase[:, None], torch.tanh(0.5 * density.flatten(1, 2))], dim=1)
        return split.flatten(1, 2), torch.cat(scalars, dim=1), image

    @torch.jit.export
    def encode_features(self, forms: Tensor, scalars: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the coarse head from `features`: base [n, m, k, c, c] and code [n, m, k, width]."""
        known = torch.clamp((scalars - self.scalar_mean) / self.scalar_std, -6.0, 6.0)
        latent = self.attention(self.pyramid.descriptors(self.pyramid(image))).flatten(2)
        inputs = torch.cat([known[None].expand(latent.shape[0], -1, -1), latent], dim=2)
        base, code = self.coarse_head(inputs, forms)
        return base, code

    @torch.jit.export
    def encode(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the coarse head, kept per point; phase: float32 [n, y, x]."""
        forms, scalars, image = self.features(phase)
        return self.encode_features(forms, scalars, image)

    @torch.jit.export
    def members(self, base: Tensor, code: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's normalised flux [n, m, c] and tangent [n, m, c, c] on the grid; inputs: float32 [n, n_in]."""
        x, condition = self.normalise(inputs)
        factors, amplitude, power = self.coarse_head.parameters_at(base, code, condition)
        _, flux, tangent = potential(factors, amplitude, power, x[:, None])
        return flux, tangent

    @torch.jit.export
    def coarse(self, base: Tensor, code: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rung 1: outputs [n, d], tangent [n, d, n_in] and score [n]; inputs: float32 [n, n_in]."""
        flux, tangent = self.members(base, code, inputs)
        stiffness = self.flux_scale / self.load_scale
        outputs = torch.matmul(flux.mean(dim=1), self.to_grid) * self.flux_scale
        block = torch.matmul(self.to_grid.t(), torch.matmul(tangent.mean(dim=1), self.to_grid)) * stiffness
        columns = [block]
        x, condition = self.normalise(inputs)
        for i in range(condition.shape[1]):
            slope = self.coarse_head.condition_slope(base, code, condition, x, i).mean(dim=1)
            columns.append((torch.matmul(slope, self.to_grid) * (self.flux_scale / self.half_width[i]))[:, :, None])
        score = relative_spread(torch.matmul(flux, self.to_grid) * self.flux_scale, self.floor)
        return outputs, torch.cat(columns, dim=2), score

    def normalise(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Grid load in units of load_scale [n, c] and normalised conditions [n, k]."""
        x = torch.matmul(inputs[:, : self.driving], self.to_grid.t()) / self.load_scale
        return x, (inputs[:, self.driving :] - self.centre) / self.half_width

    def _whiten(self, factor: Tensor, forms: Tensor) -> Tensor:
        """Components of R^-1 F R^-T, [n, j, s, pairs], for forms [n, j, s, c, c]."""
        inverse = torch.linalg.inv(factor)[:, None, None]
        return torch.matmul(torch.matmul(inverse, forms), inverse.transpose(-2, -1))[:, :, :, self.row, self.column]
