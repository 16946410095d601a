"""The NeuroScale operator: encode a micro structure once, then answer loads on two rungs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroscale_couple.operator.fine_head import FineHead
from neuroscale_couple.operator.heads import CoarseHead, potential
from neuroscale_couple.operator.levels import LippmannSchwinger, Pyramid
from neuroscale_couple.operator.scale_attention import ScaleAttention
from neuroscale_couple.operator.uncertainty import ErrorModel


@dataclass(frozen=True)
class Sizes:
    """Hyper-parameters of the operator; a JSON object of these restores its structure."""

    members: int = 4
    terms: int = 4
    width: int = 16
    latent: int = 8
    hidden: int = 64
    steps: int = 3
    corrections: tuple[int, int] = (2, 3)


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
        self.fine_head = FineHead(physics.law, physics.green, media, sizes.width, *sizes.corrections)
        self.error_model = ErrorModel()
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
        density = self._density(e, s)
        n, j, pairs = density.shape[0], density.shape[1], density.shape[2]
        first = (density * (1.0 - phase)[:, None, None]).reshape(n, j, pairs, -1)
        moments = torch.matmul(first, density.reshape(n, j, pairs, -1).transpose(2, 3)) / float(first.shape[-1])
        factor = torch.linalg.cholesky(bounds[:, 0, -1])
        drops = self._whiten(factor, bounds[:, :, :-1] - bounds[:, :, 1:])
        last = self._whiten(factor, bounds[:, :, -1:])
        shares = self._whiten(factor, split)
        scalars = [drops.flatten(1), last.flatten(1), shares.flatten(1), factor[:, self.row, self.column]]
        scalars += [torch.mean(phase, dim=(1, 2))[:, None], moments[:, :, self.inner_row, self.inner_column].flatten(1)]
        image = self._squash(phase, density)
        return split.flatten(1, 2), torch.cat(scalars, dim=1), image

    @torch.jit.export
    def describe(self, image: Tensor) -> Tensor:
        """Descriptors of the pyramid's levels, [n, levels, 2 width + 1]."""
        return self.pyramid.descriptors(self.pyramid(image))

    @torch.jit.export
    def parameters_of(self, forms: Tensor, scalars: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the coarse head: base [n, m, k, c, c] and code [n, m, k, width]."""
        known = torch.clamp((scalars - self.scalar_mean) / self.scalar_std, -6.0, 6.0)
        latent = self.attention(descriptors).flatten(2)
        inputs = torch.cat([known[None].expand(latent.shape[0], -1, -1), latent], dim=2)
        base, code = self.coarse_head(inputs, forms)
        return base, code

    @torch.jit.export
    def encode(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the coarse head, kept per point; phase: float32 [n, y, x]."""
        forms, scalars, image = self.features(phase)
        return self.parameters_of(forms, scalars, self.describe(image))

    @torch.jit.export
    def members(self, base: Tensor, code: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's normalised flux [n, l, m, c] and tangent [n, l, m, c, c] on the grid.

        inputs: float32 [n, l, n_in], several loads of each point
        """
        x, condition = self.normalise(inputs.flatten(0, 1))
        n, loads = inputs.shape[0], inputs.shape[1]
        if condition.shape[1] > 0:
            base, code = base.repeat_interleave(loads, dim=0), code.repeat_interleave(loads, dim=0)
        else:
            condition = condition[:n]
            x = x.view(n, loads, -1)
        factors, amplitude, power = self.coarse_head.parameters_at(base, code, condition)
        form = torch.matmul(factors, factors.transpose(-2, -1))
        if condition.shape[1] > 0:
            x = x[:, None]
        _, flux, tangent = potential(form, amplitude, power, x)
        m, c = flux.shape[2], flux.shape[3]
        return flux.reshape(n, loads, m, c), tangent.reshape(n, loads, m, c, c)

    @torch.jit.export
    def coarse(self, base: Tensor, code: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rung 1: outputs [n, d], tangent [n, d, n_in] and score [n]; inputs: float32 [n, n_in]."""
        flux, tangent = self.members(base, code, inputs[:, None])
        flux, tangent = flux[:, 0], tangent[:, 0]
        outputs = torch.matmul(flux.mean(dim=1), self.to_grid) * self.flux_scale
        block = torch.matmul(tangent.mean(dim=1).transpose(1, 2), self.to_grid)
        block = torch.matmul(block.transpose(1, 2), self.to_grid) * (self.flux_scale / self.load_scale)
        columns = [block]
        x, condition = self.normalise(inputs)
        for i in range(condition.shape[1]):
            slope = self.coarse_head.condition_slope(base, code, condition, x, i).mean(dim=1)
            columns.append((torch.matmul(slope, self.to_grid) * (self.flux_scale / self.half_width[i]))[:, :, None])
        score = self.error_model(flux, tangent, x, self.floor / self.flux_scale)
        return outputs, torch.cat(columns, dim=2), score

    @torch.jit.export
    def evidence(self, base: Tensor, code: Tensor, inputs: Tensor) -> Tensor:
        """What the score of rung 1 is made of, [n, 6]; see `ErrorModel`."""
        flux, tangent = self.members(base, code, inputs[:, None])
        x, _ = self.normalise(inputs)
        return self.error_model.evidence(flux[:, 0], tangent[:, 0], x, self.floor / self.flux_scale)

    @torch.jit.export
    def modes(self, phase: Tensor) -> Tensor:
        """Field modes of the fine head, [n, j + 1, l, c, y, x]; phase: float32 [n, y, x]."""
        _, _, e = self.lippmann(phase)
        stress = self.lippmann.stress(e, phase)
        return self.fine_head.modes(self.pyramid(self._image(phase, e, stress)), e, stress)

    @torch.jit.export
    def fine(self, modes: Tensor, phase: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rung 2: outputs [n, d], tangent [n, d, n_in] and score [n]; phase: float32 [n, y, x], inputs: [n, n_in]."""
        x, _ = self.normalise(inputs)
        condition = inputs[:, self.driving :]
        _, flux, tangent, slope, score = self.fine_head(modes, phase, x, condition, self.load_scale)
        block = torch.matmul(self.to_grid.t(), torch.matmul(tangent, self.to_grid))
        columns = torch.matmul(self.to_grid.t(), slope)
        return torch.matmul(flux, self.to_grid), torch.cat([block, columns], dim=2), score

    @torch.jit.export
    def field(self, modes: Tensor, phase: Tensor, inputs: Tensor) -> Tensor:
        """Predicted total gradient [n, c, y, x] after the correction of the field alone."""
        x, _ = self.normalise(inputs)
        e = self.fine_head.field(modes, x, self.load_scale)
        return self.fine_head.correct(e, phase, inputs[:, self.driving :])

    def normalise(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Grid load in units of load_scale [n, c] and normalised conditions [n, k]."""
        x = torch.matmul(inputs[:, : self.driving], self.to_grid.t()) / self.load_scale
        return x, (inputs[:, self.driving :] - self.centre) / self.half_width

    def _density(self, e: Tensor, stress: Tensor) -> Tensor:
        """Energy densities of pairs of unit loads relative to their mean, [n, j, pairs, y, x]."""
        density = torch.einsum("njacyx,njbcyx->njabyx", e, stress)
        size = torch.diagonal(density.mean(dim=(4, 5)), dim1=-2, dim2=-1).mean(dim=-1)
        return density[:, :, self.row, self.column] / size[:, :, None, None, None]

    def _squash(self, phase: Tensor, density: Tensor) -> Tensor:
        """Image channels of the finest level, [n, 1 + j pairs, y, x]."""
        return torch.cat([phase[:, None], torch.tanh(0.5 * density.flatten(1, 2))], dim=1)

    def _image(self, phase: Tensor, e: Tensor, stress: Tensor) -> Tensor:
        return self._squash(phase, self._density(e, stress))

    def _whiten(self, factor: Tensor, forms: Tensor) -> Tensor:
        """Components of R^-1 F R^-T, [n, j, s, pairs], for forms [n, j, s, c, c]."""
        inverse = torch.linalg.inv(factor)[:, None, None]
        return torch.matmul(torch.matmul(inverse, forms), inverse.transpose(-2, -1))[:, :, :, self.row, self.column]
