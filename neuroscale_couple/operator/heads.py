r"""Heads: a convex potential for the macro outputs, and compatible fields for the fine rung.

The coarse head's potential of a normalised load x [c] is

    W(x) = sum_k a_k ((1 + x^T Q_k x)^{p_k} - 1) / p_k,   a_k > 0,  Q_k = L_k L_k^T,  1/2 <= p_k <= 1

which is convex and zero at zero, so flux = dW/dx and tangent = d2W/dx2 are closed forms, the tangent is
symmetric positive definite, and the mean over an ensemble is again such a potential.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuroscale_couple.operator.uncertainty import EnsembleLinear


def potential(form: Tensor, amplitude: Tensor, power: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, flux and tangent of each member's potential at several loads per point.

    form: [n, m, k, c, c] the Q_k; amplitude, power: [n, m, k]; x: [n, l, c]
    Returns: W [n, l, m], dW/dx [n, l, m, c], d2W/dx2 [n, l, m, c, c]
    """
    n, m, k, c, loads = form.shape[0], form.shape[1], form.shape[2], form.shape[3], x.shape[1]
    columns = x.transpose(1, 2)
    qx = torch.matmul(form.reshape(n, m * k * c, c), columns).view(n, m, k, c, loads)
    q1 = 1.0 + torch.sum(qx * columns[:, None, None], dim=3)
    a, p = amplitude[..., None], power[..., None]
    energy = torch.sum(a * (q1**p - 1.0) / p, dim=2)
    slope = 2.0 * a * q1 ** (p - 1.0)
    flux = torch.sum(slope[:, :, :, None] * qx, dim=2)
    bend = 2.0 * slope * (p - 1.0) / q1
    secant = torch.matmul(slope.transpose(2, 3), form.reshape(n, m, k, c * c)).view(n, m, loads, c, c)
    outer = torch.sum((bend[:, :, :, None] * qx)[:, :, :, :, None] * qx[:, :, :, None], dim=2)
    tangent = secant + outer.permute(0, 1, 4, 2, 3)
    return energy.transpose(1, 2), flux.permute(0, 3, 1, 2), tangent.transpose(1, 2)


class CoarseHead(nn.Module):
    """Turns latents into the parameters of each member's potential, and evaluates it.

    The factors start from physics: L_k = R_k (1 + D_k), where R_k is the Cholesky factor of a learned positive
    mixture of the encoder's quadratic forms and D_k (lower triangular, from the network) starts near zero.
    D_k, log a_k and p_k are quadratic polynomials of each condition (e.g. temperature).
    sizes: members, terms, components, conditions; forms: number of quadratic forms; inputs, hidden: of the network
    """

    def __init__(self, sizes: tuple[int, int, int, int], forms: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.members, self.terms, self.components, self.conditions = sizes
        self.triangle = self.components * (self.components + 1) // 2
        self.width = (self.triangle + 2) * (1 + 2 * self.conditions)
        m, k = self.members, self.terms
        self.mix = nn.Parameter(0.5 * torch.randn(m, k, forms) - 1.0)
        self.log_amplitude = nn.Parameter(torch.zeros(m, 1, k))
        self.power = nn.Parameter(torch.linspace(-2.0, 2.0, k).expand(m, 1, k).clone())
        self.first = EnsembleLinear(m, inputs, hidden)
        self.second = EnsembleLinear(m, hidden, hidden)
        self.third = EnsembleLinear(m, hidden, k * self.width, gain=0.05)
        lower = torch.tril_indices(self.components, self.components)
        scatter = torch.zeros(self.triangle, self.components, self.components)
        scatter[torch.arange(self.triangle), lower[0], lower[1]] = 1.0
        self.scatter: Tensor
        self.register_buffer("scatter", scatter)

    def forward(self, latent: Tensor, forms: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters kept per point.

        latent: [m, n, inputs]; forms: [n, f, c, c] positive semi-definite
        Returns: base [n, m, k, c, c] (the R_k) and code [n, m, k, width]
        """
        mixed = torch.einsum("mkf,nfab->nmkab", torch.nn.functional.softplus(self.mix), forms)
        floor = 1e-4 * torch.eye(self.components, dtype=forms.dtype, device=forms.device)
        base = torch.linalg.cholesky(mixed + floor)
        hidden = torch.nn.functional.silu(self.first(latent))
        hidden = hidden + torch.nn.functional.silu(self.second(hidden))
        code = self.third(hidden).view(self.members, -1, self.terms, self.width)
        return base, code.transpose(0, 1)

    def parameters_at(self, base: Tensor, code: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_k [n, m, k, c, c], a_k and p_k [n, m, k] at normalised conditions [n, conditions]."""
        width = self.triangle + 2
        value = code[..., :width]
        for i in range(self.conditions):
            t = condition[:, i][:, None, None, None]
            start = width * (1 + 2 * i)
            value = value + t * (code[..., start : start + width] + t * code[..., start + width : start + 2 * width])
        return self._physical(base, value)

    def condition_slope(self, base: Tensor, code: Tensor, condition: Tensor, x: Tensor, index: int) -> Tensor:
        """Derivative of the members' fluxes with respect to one normalised condition, [n, m, c]; x: [n, c]."""
        width = self.triangle + 2
        t = condition[:, index][:, None, None, None]
        start = width * (1 + 2 * index)
        rate = code[..., start : start + width] + 2.0 * t * code[..., start + width : start + 2 * width]
        factors, amplitude, power = self.parameters_at(base, code, condition)
        rate_factors = torch.matmul(base, torch.einsum("nmkt,tab->nmkab", rate[..., : self.triangle], self.scatter))
        rate_power = (2.0 * power - 1.0) * (1.0 - power) * rate[..., self.triangle + 1]
        xs = x[:, None, None, :, None]
        y = torch.matmul(factors.transpose(-2, -1), xs)
        dy = torch.matmul(rate_factors.transpose(-2, -1), xs)
        q1 = 1.0 + torch.sum(y * y, dim=(-2, -1))
        dq = 2.0 * torch.sum(y * dy, dim=(-2, -1))
        slope = 2.0 * amplitude * q1 ** (power - 1.0)
        growth = rate[..., self.triangle] + rate_power * torch.log(q1) + (power - 1.0) * dq / q1
        flux = torch.matmul(factors, y) * growth[..., None, None]
        change = torch.matmul(rate_factors, y) + torch.matmul(factors, dy)
        return torch.sum(slope[..., None] * (flux + change).squeeze(-1), dim=2)

    def _physical(self, base: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        correction = torch.einsum("nmkt,tab->nmkab", value[..., : self.triangle], self.scatter)
        amplitude = torch.exp(self.log_amplitude.transpose(0, 1) + value[..., self.triangle])
        power = 0.5 + 0.5 * torch.sigmoid(self.power.transpose(0, 1) + value[..., self.triangle + 1])
        return base + torch.matmul(base, correction), amplitude, power
