r"""Fine head: compatible gradient fields, and outputs that are coarse-grained from them.

The field of a load x is a mean gradient plus modes that all went through the Green operator, so it is compatible
whatever the weights are:

    e(x) = sum_j b_j(x) A_j x + g(x) Gamma(sum_j s_j L_j A_j) x

A_j are the fields of the Lippmann-Schwinger layer, s_j are scalar maps decoded from the pyramid; b (a partition of
unity) and g depend on the size of x. A few conjugate-gradient steps on the law's linearisation then correct the field
and, with the same moduli, its sensitivity B = de/dx. With these

    flux = <B^T s(e)>,  tangent = <B^T C(e) B>

the error is the product of the errors of e and B, and the tangent is symmetric positive definite.
The score is sqrt(<s : Gamma s> / <s : e>), the part of the flux that is out of balance: exact physics, no statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FineHead(nn.Module):
    """Decoder of the pyramid into field modes, and the physics that corrects and coarse-grains them.

    law, green: the micro problem's physics; media: comparison media; width: channels of the pyramid
    field_steps, joint_steps: steps on the field alone, then on field and sensitivities together
    """

    def __init__(
        self, law: nn.Module, green: nn.Module, media: int, width: int, field_steps: int = 2, joint_steps: int = 2
    ) -> None:
        super().__init__()
        self.law, self.green = law, green
        self.field_steps, self.joint_steps = field_steps, joint_steps
        self.decode = nn.Conv2d(width, media, 1)
        self.blend = nn.Parameter(torch.stack([torch.zeros(media + 1), torch.arange(media + 1.0)], dim=1))
        nn.init.zeros_(self.blend[media])

    def modes(self, levels: list[Tensor], e: Tensor, stress: Tensor) -> Tensor:
        """Field modes for unit loads, [n, j + 1, l, c, y, x]; the first j have the unit load as mean, the last zero.

        levels: of the pyramid; e, stress: [n, j, l, c, y, x] fields of the Lippmann-Schwinger layer
        """
        n, c, ny, nx = e.shape[0], e.shape[3], e.shape[4], e.shape[5]
        maps = self.decode(levels[len(levels) - 1])
        for k in range(len(levels) - 2, -1, -1):
            maps = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) + self.decode(levels[k])
        tau = torch.sum(maps[:, :, None, None] * stress, dim=1)
        learned = self._gamma(self.green.symbol(ny, nx, e), tau.reshape(-1, c, ny, nx)).reshape(n, 1, c, c, ny, nx)
        return torch.cat([e, learned], dim=1)

    def sensitivity(self, modes: Tensor, x: Tensor) -> Tensor:
        """B [n, l, c, y, x] for normalised loads x [n, c], so that the field is B x."""
        last = modes.shape[1] - 1
        level = torch.log(0.01 + torch.sum(x * x, dim=1, keepdim=True))
        value = self.blend[:, 0] + self.blend[:, 1] * level
        weights = torch.cat([torch.softmax(value[:, :last], dim=1), value[:, last:]], dim=1)
        return torch.sum(weights[:, :, None, None, None, None] * modes, dim=1)

    def field(self, modes: Tensor, x: Tensor, load_scale: float) -> Tensor:
        """Total gradient before the correction, [n, c, y, x]."""
        return torch.einsum("nlcyx,nl->ncyx", self.sensitivity(modes, x), x * load_scale)

    def correct(self, e: Tensor, phase: Tensor, condition: Tensor) -> Tensor:
        """The field [n, c, y, x] after `field_steps` conjugate-gradient steps on the law's linearisation."""
        moduli = self.law.moduli(e, phase, condition)
        flux = self.law.flux(e, phase, condition)
        change = self._solve(moduli, -flux[:, None], self.field_steps)
        return e + change[:, 0]

    def forward(self, modes: Tensor, phase: Tensor, x: Tensor, condition: Tensor, load_scale: float) -> list[Tensor]:
        """Corrected field e [n, c, y, x], flux [n, l], tangent [n, l, l], slope [n, l, k], score [n]; not normalised.

        slope: derivative of the flux with respect to the conditions
        """
        b = self.sensitivity(modes, x)
        e = self.correct(torch.einsum("nlcyx,nl->ncyx", b, x * load_scale), phase, condition)
        moduli = self.law.moduli(e, phase, condition)
        flux = self.law.flux(e, phase, condition)
        cb = torch.einsum("nabyx,nlbyx->nlayx", moduli, b)
        change = self._solve(moduli, torch.cat([-flux[:, None], -cb], dim=1), self.joint_steps)
        e, b = e + change[:, 0], b + change[:, 1:]
        moduli = self.law.moduli(e, phase, condition)
        flux = self.law.flux(e, phase, condition)
        pixels = float(e.shape[-2] * e.shape[-1])
        cb = torch.einsum("nabyx,nlbyx->nlayx", moduli, b)
        rows = b.flatten(2)
        tangent = torch.matmul(rows, cb.flatten(2).transpose(1, 2)) / pixels
        outputs = torch.matmul(rows, flux.flatten(1).unsqueeze(2)).squeeze(2) / pixels
        by_condition = self.law.flux_by_condition(e, phase, condition)
        slope = torch.einsum("nlcyx,nckyx->nlk", b, by_condition) / pixels
        r = self._gamma(self.green.symbol(e.shape[-2], e.shape[-1], e), flux)
        work = torch.clamp_min(torch.sum(flux * e, dim=(1, 2, 3)), 1e-30)
        score = torch.sqrt(torch.clamp_min(torch.sum(r * flux, dim=(1, 2, 3)), 0.0) / work)
        return [e, outputs, 0.5 * (tangent + tangent.transpose(1, 2)), slope, score]

    def _gamma(self, symbol: Tensor, tau: Tensor) -> Tensor:
        applied: Tensor = self.green.apply_symbol(symbol, tau)
        return applied

    def _solve(self, moduli: Tensor, tau: Tensor, steps: int) -> Tensor:
        """Compatible p with Gamma (C p - tau) = 0 after some conjugate-gradient steps; tau [n, r, c, y, x]."""
        shape = tau.shape
        symbol = self.green.symbol(shape[3], shape[4], tau)
        total = torch.zeros_like(tau)
        r = self._gamma(symbol, tau.reshape(-1, shape[2], shape[3], shape[4])).reshape(shape)
        rr = torch.sum(r * tau, dim=(2, 3, 4), keepdim=True)
        p = r
        for k in range(steps):
            cp = torch.einsum("nabyx,nlbyx->nlayx", moduli, p)
            alpha = rr / torch.clamp_min(torch.sum(p * cp, dim=(2, 3, 4), keepdim=True), 1e-30)
            total = total + alpha * p
            if k + 1 < steps:
                tau = tau - alpha * cp
                r = self._gamma(symbol, tau.reshape(-1, shape[2], shape[3], shape[4])).reshape(shape)
                new = torch.sum(r * tau, dim=(2, 3, 4), keepdim=True)
                p = r + new / torch.clamp_min(rr, 1e-30) * p
                rr = new
        return total
