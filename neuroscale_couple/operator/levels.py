r"""Levels of the pyramid, and the Lippmann-Schwinger layer that starts them with exact physics.

For a linear comparison medium L(x) the layer takes m conjugate-gradient steps on Gamma L (I + e') = 0, one
problem per unit load. Every step keeps e' compatible and lowers the energy, so the quadratic forms

    C_s = <(I + e'_s)^T L (I + e'_s)>,   s = 0 .. m

are upper bounds of the effective tensor that fall from Voigt's (s = 0) towards the exact one. They are scalar
features of the micro structure; the fields I + e'_m are image channels and displacement modes.
Source: Zeman, Vondrejc, Novak & Marek 2010 (conjugate gradients on Gamma); Gonzalez & Huet 1997 (energy bounds).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LippmannSchwinger(nn.Module):
    """Conjugate-gradient steps for unit loads in a few linear comparison media; scriptable.

    media: float32 [j, 2, c, c] normalised moduli of the two phases in each medium
    green: compatible projection with `symbol(ny, nx, like)` and `apply_symbol(symbol, field)`
    steps: conjugate-gradient steps
    """

    def __init__(self, green: nn.Module, media: Tensor, steps: int) -> None:
        super().__init__()
        self.green = green
        self.steps = steps
        self.media: Tensor
        self.register_buffer("media", media.to(torch.float32))

    def stress(self, e: Tensor, phase: Tensor) -> Tensor:
        """L(x) e for e [n, j, l, c, y, x] and phase [n, y, x]."""
        flat = e.flatten(4)
        first = torch.matmul(self.media[:, 0][None, :, None], flat)
        jump = torch.matmul((self.media[:, 1] - self.media[:, 0])[None, :, None], flat)
        stress = torch.addcmul(first, phase.flatten(1)[:, None, None, None], jump)
        return stress.view(e.shape)

    def forward(self, phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds, shares of the phases in the last one, and fields.

        phase: [n, y, x]
        Returns: forms [n, j, m+1, c, c]; split [n, j, 2, c, c] with split.sum(2) = forms[:, :, m];
        fields [n, j, l, c, y, x], the total gradient for each unit load l after m steps
        """
        n, ny, nx = phase.shape[0], phase.shape[1], phase.shape[2]
        j, c = self.media.shape[0], self.media.shape[2]
        symbol = self.green.symbol(ny, nx, phase)
        unit = torch.eye(c, dtype=phase.dtype, device=phase.device)[None, None, :, :, None, None]
        e = unit.expand(n, j, c, c, ny, nx)
        s = self.stress(e, phase)
        forms = [self._form(e, s)]
        r = -self.green.apply_symbol(symbol, s.reshape(-1, c, ny, nx)).reshape(s.shape)
        rr = self._dot(r, -s)
        p = r
        for k in range(self.steps):
            lp = self.stress(p, phase)
            alpha = rr / torch.clamp_min(self._dot(p, lp), 1e-30)
            e = e + alpha * p
            s = s + alpha * lp
            forms.append(self._form(e, s))
            if k + 1 < self.steps:
                r = -self.green.apply_symbol(symbol, s.reshape(-1, c, ny, nx)).reshape(s.shape)
                new = self._dot(r, -s)
                p = r + new / torch.clamp_min(rr, 1e-30) * p
                rr = new
        weight = phase[:, None, None, None]
        first = torch.einsum("jab,njlbyx->njlayx", self.media[:, 0], e) * (1.0 - weight)
        matrix = self._form(e, first)
        split = torch.stack([matrix, forms[len(forms) - 1] - matrix], dim=2)
        return torch.stack(forms, dim=2), split, e

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product over components and pixels, [n, j, l, 1, 1, 1]."""
        return torch.sum(a * b, dim=(3, 4, 5), keepdim=True)

    def _form(self, e: Tensor, s: Tensor) -> Tensor:
        """<e_l . s_m>, [n, j, l, l]."""
        n, j, c, pixels = e.shape[0], e.shape[1], e.shape[2], e.shape[4] * e.shape[5]
        form = torch.matmul(e.reshape(n, j, c, -1), s.reshape(n, j, c, -1).transpose(2, 3)) / float(pixels)
        return 0.5 * (form + form.transpose(2, 3))


class Pyramid(nn.Module):
    """Convolutional levels from the finest grid down to about 4 x 4 pixels, the same weights on every level.

    Between two levels a field is coarse-grained exactly (2 x 2 means); on each level a circular convolution adds a
    correction. Each level gives a descriptor: mean and standard deviation of its channels, and its size in pixels.
    channels: image channels of the finest level; width: channels of the pyramid
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(channels, width, 1)
        self.mix = nn.Conv2d(width, width, 3)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Channels [n, width, y, x] of each level, finest first; image: [n, channels, y, x]."""
        levels = [torch.nn.functional.silu(self.lift(image))]
        while self._divisible(levels[len(levels) - 1]):
            coarse = torch.nn.functional.avg_pool2d(levels[len(levels) - 1], 2)
            padded = torch.nn.functional.pad(coarse, [1, 1, 1, 1], mode="circular")
            levels.append(coarse + self.out(torch.nn.functional.silu(self.mix(padded))))
        return levels

    def descriptors(self, levels: list[Tensor]) -> Tensor:
        """Descriptor of each level, [n, levels, 2 width + 1]."""
        rows: list[Tensor] = []
        for level in levels:
            var, mean = torch.var_mean(level.flatten(2), dim=2, correction=0)
            size = torch.full_like(mean[:, :1], 0.35 * math.log(float(level.shape[-1])))
            rows.append(torch.cat([mean, torch.sqrt(var + 1e-6), size], dim=1))
        return torch.stack(rows, dim=1)

    def _divisible(self, level: Tensor) -> bool:
        ny, nx = level.shape[-2], level.shape[-1]
        return ny % 2 == 0 and nx % 2 == 0 and min(ny, nx) > 4
