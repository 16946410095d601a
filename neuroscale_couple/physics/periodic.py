r"""Green operator of a homogeneous reference medium on a periodic pixel grid.

For a field tau the operator gives the compatible, zero-mean gradient field e = Gamma tau that solves
div(C0 e) = div(tau). In Fourier space Gamma depends on the direction n(xi) of the (discrete) gradient alone:

    scalar:  Gamma = n n^T / k0
    vector:  Gamma = S K^-1 S^T,  K^-1 = (I - (lam+mu)/(lam+2mu) n n^T) / mu,
             S(n) maps a displacement to n (x)_sym u in Mandel components (xx, yy, sqrt2 xy)

Schemes: `fourier` (trigonometric collocation; Nyquist modes of even grids are dropped) and `rotated`.
Source: Moulinec & Suquet 1998; Vondrejc, Zeman & Marek 2014 (fourier); Willot 2015 (rotated).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SCHEMES = ("rotated", "fourier")


class GreenOperator(nn.Module):
    """Applies Gamma to a batch of fields of any grid size; scriptable, float32 or float64, any device.

    components: 2 for the gradient of a scalar, 3 for a plane small strain in Mandel components
    reference: (k0,) or (lam0, mu0) of the homogeneous reference medium
    """

    def __init__(self, components: int, reference: tuple[float, ...], scheme: str = "rotated") -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {scheme!r}; one of {SCHEMES}")
        if (components, len(reference)) not in ((2, 1), (3, 2)):
            raise ValueError(f"components {components} does not go with reference {reference}")
        self.components = components
        self.rotated = scheme == "rotated"
        self.first = float(reference[0])
        self.second = float(reference[-1])

    def symbol(self, ny: int, nx: int, like: Tensor) -> Tensor:
        """Gamma in Fourier space: [c, c, ny, nx//2+1], real, dtype and device of `like`."""
        ky = torch.fft.fftfreq(ny, d=1.0 / ny, device=like.device, dtype=torch.float64)[:, None]
        kx = torch.fft.rfftfreq(nx, d=1.0 / nx, device=like.device, dtype=torch.float64)[None, :]
        if self.rotated:
            ay = ky * (math.pi / ny)
            ax = kx * (math.pi / nx)
            dx = torch.sin(ax) * torch.cos(ay)
            dy = torch.cos(ax) * torch.sin(ay)
        else:
            keep = ((2 * ky.abs() != ny) & (2 * kx.abs() != nx)).to(torch.float64)
            dx = kx * float(ny) / float(nx) * keep
            dy = ky * keep
        norm2 = dx * dx + dy * dy
        active = norm2 > 1e-20
        length = torch.sqrt(torch.where(active, norm2, torch.ones_like(norm2)))
        scale = torch.where(active, 1.0 / length, torch.zeros_like(norm2))
        n1 = (dx * scale).to(like.dtype)
        n2 = (dy * scale).to(like.dtype)
        if self.components == 2:
            rows = [n1 * n1, n1 * n2, n1 * n2, n2 * n2]
            return torch.stack(rows).view(2, 2, ny, nx // 2 + 1) / self.first
        lam, mu = self.first, self.second
        beta = (lam + mu) / (lam + 2.0 * mu)
        half = math.sqrt(0.5)
        s = [[n1, torch.zeros_like(n1)], [torch.zeros_like(n1), n2], [n2 * half, n1 * half]]
        # S n = (n1^2, n2^2, sqrt2 n1 n2), so Gamma = (S S^T - beta (S n)(S n)^T) / mu
        m = [n1 * n1, n2 * n2, n1 * n2 * math.sqrt(2.0)]
        rows = []
        for i in range(3):
            for j in range(3):
                rows.append((s[i][0] * s[j][0] + s[i][1] * s[j][1] - beta * m[i] * m[j]) / mu)
        return torch.stack(rows).view(3, 3, ny, nx // 2 + 1)

    def apply_symbol(self, symbol: Tensor, tau: Tensor) -> Tensor:
        """Gamma tau for tau [n, c, y, x] with a symbol from `symbol(y, x, tau)`; returns [n, c, y, x]."""
        ny, nx, c = tau.shape[-2], tau.shape[-1], self.components
        hat = torch.view_as_real(torch.fft.rfft2(tau)).flatten(-2)
        both = torch.stack([symbol, symbol], dim=-1).flatten(-2)  # for real and imaginary part
        rows: list[Tensor] = []
        for i in range(c):
            row = both[i, 0] * hat[:, 0]
            for j in range(1, c):
                row = torch.addcmul(row, both[i, j], hat[:, j])
            rows.append(row)
        out = torch.stack(rows, dim=1).unflatten(-1, [-1, 2])
        applied: Tensor = torch.fft.irfft2(torch.view_as_complex(out), s=(ny, nx))
        return applied

    def forward(self, tau: Tensor) -> Tensor:
        """Gamma tau for tau [n, c, y, x]."""
        return self.apply_symbol(self.symbol(tau.shape[-2], tau.shape[-1], tau), tau)
