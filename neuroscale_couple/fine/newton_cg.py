r"""Newton-CG on periodic cells: the numerical core of the fine solver, free of points and bookkeeping.

For a convex law s = dw/de the total gradient e = mean + fluctuation minimises <w(e)> over compatible fluctuations.
Each Newton step solves  <q : C p> = -<q : s>  for all compatible q  by CG with the reference medium C0 as metric:
the gradient of a flux field tau in that metric is z = -Gamma tau, so an iteration costs one Gamma.

The tangent needs one linear solve per driving component; its error is quadratic in the error of those fields, since
<A : C A> is evaluated with the full energy form.
Source: Vondrejc, Zeman & Marek 2014; Zeman et al. 2017 (finite strain, same structure); Eisenstat & Walker 1996.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuroscale_couple.physics.base import CellLaw
from neuroscale_couple.physics.periodic import GreenOperator

_LINE_SEARCH = 12
_SLOPE = 0.5
_NEAR = 1e-6
_TINY = 1e-300


@dataclass
class Solved:
    """Result of a batched solve.

    field: [n, c, y, x] total gradient; flux: the same shape; converged: [n]; iterations: [n] CG iterations
    residual: [n] relative; history: [newton + 1, n] relative residuals, NaN once a row has stopped
    """

    field: Tensor
    flux: Tensor
    converged: Tensor
    iterations: Tensor
    residual: Tensor
    history: Tensor


class NewtonCG:
    """Solver for one law and one Green operator on grids of one size."""

    def __init__(
        self,
        law: CellLaw,
        green: GreenOperator,
        grid: tuple[int, int],
        tolerance: float,
        limits: tuple[int, int],
        floor: float,
    ) -> None:
        """limits: Newton iterations, CG iterations per Newton iteration.

        floor: size of the mean flux below which residuals are measured against the floor
        """
        self.law = law
        self.grid = grid
        self.tolerance = tolerance
        self.max_newton, self.max_cg = limits
        self.floor = floor
        self.green = green
        self._symbol: Tensor | None = None

    def gamma(self, tau: Tensor) -> Tensor:
        """Gamma tau for tau [..., c, y, x]."""
        ny, nx = self.grid
        if self._symbol is None or self._symbol.device != tau.device:
            symbol = self.green.symbol(ny, nx, tau)
            self._symbol = torch.stack([symbol, symbol], dim=-1).flatten(-2).contiguous()  # real and imaginary part
        hat = torch.fft.rfft2(tau)
        real = torch.view_as_real(hat).flatten(-2)
        out = torch.empty_like(real)
        g, c = self._symbol, tau.shape[-3]
        for i in range(c):
            torch.mul(real[..., 0, :, :], g[i, 0], out=out[..., i, :, :])
            for j in range(1, c):
                out[..., i, :, :].addcmul_(real[..., j, :, :], g[i, j])
        product = torch.view_as_complex(out.view(*out.shape[:-1], -1, 2))
        result: Tensor = torch.fft.irfft2(product, s=(ny, nx))
        return result

    def reference(self, field: Tensor) -> Tensor:
        """C0 field for [..., c, y, x]."""
        if self.green.components == 2:
            return field * self.green.first
        out = field * (2.0 * self.green.second)
        trace = (field[..., 0, :, :] + field[..., 1, :, :]) * self.green.first
        out[..., 0, :, :] += trace
        out[..., 1, :, :] += trace
        return out

    def compatible(self, field: Tensor) -> Tensor:
        """The compatible zero-mean part of [..., c, y, x], by the C0 projection."""
        return self.gamma(self.reference(field))

    def better(self, phase: Tensor, mean: Tensor, condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Per row, that of two fluctuations [n, c, y, x] whose compatible part has the lower energy, projected."""
        uniform = mean[:, :, None, None]
        first, second = self.compatible(first), self.compatible(second)
        energy = [self.law.energy(uniform + f, phase, condition).mean(dim=(-2, -1)) for f in (first, second)]
        lower = (energy[0] < energy[1]) | ~torch.isfinite(energy[1])
        return torch.where(lower[:, None, None, None], first, second)

    def solve(self, phase: Tensor, mean: Tensor, condition: Tensor, start: Tensor | None) -> Solved:
        """Solve n cells.

        phase: [n, y, x]; mean: [n, c] prescribed mean gradient; condition: [n, k]
        start: [n, c, y, x] fluctuation to start from, projected first; None is zero
        """
        n, c = mean.shape
        field = mean[:, :, None, None].expand(n, c, *self.grid).contiguous()
        if start is not None:
            field += self.compatible(start)
        flux = self.law.flux(field, phase, condition)
        iterations = torch.zeros(n, dtype=torch.int64, device=mean.device)
        residual = torch.full_like(mean[:, 0], float("nan"))
        history: list[Tensor] = []
        active = torch.arange(n, device=mean.device)
        for step in range(self.max_newton + 1):
            e, s = (field, flux) if len(active) == n else (field[active], flux[active])
            z = -self.gamma(s)
            relative = self._relative(z, s)
            residual[active] = relative
            history.append(torch.full_like(residual, float("nan")).index_copy_(0, active, relative))
            going = (relative > self.tolerance) & torch.isfinite(relative)
            if step == self.max_newton or not bool(going.any()):
                break
            active = active[going]
            if len(active) < len(e):
                e, s, z, relative = e[going], s[going], z[going], relative[going]
            spent = self._newton(e, s, z, (phase[active], condition[active]), relative)
            iterations[active] += spent
            if len(active) < n:
                field[active], flux[active] = e, s
        return Solved(field, flux, residual <= self.tolerance, iterations, residual, torch.stack(history))

    def _relative(self, z: Tensor, flux: Tensor) -> Tensor:
        """Energy norm of the compatible part of the flux, against the mean flux."""
        size = torch.linalg.vector_norm(flux.mean(dim=(-2, -1)), dim=1).clamp_min(self.floor)
        scale = 2.0 * self.green.second if self.green.components == 3 else self.green.first
        relative: Tensor = torch.sqrt(self._square(z) * scale) / size
        return relative

    def _square(self, z: Tensor) -> Tensor:
        """<z : C0 z> of [..., c, y, x]; unlike -<z : tau> it keeps its digits when z is small."""
        if self.green.components == 2:
            return _dot(z, z) * self.green.first
        trace = (z[..., 0, :, :] + z[..., 1, :, :]).flatten(-2)
        bulk = torch.linalg.vecdot(trace, trace) * (self.green.first / (z.shape[-1] * z.shape[-2]))
        square: Tensor = _dot(z, z) * (2.0 * self.green.second) + bulk
        return square

    def _newton(self, e: Tensor, s: Tensor, z: Tensor, parameters: tuple[Tensor, Tensor], relative: Tensor) -> Tensor:
        """One damped Newton step in place: field e, flux s = s(e), z = -Gamma s; returns CG iterations [n]."""
        moduli = self.law.moduli(e, *parameters)
        enough = 0.5 * self.tolerance / relative
        forcing = enough if self.law.linear else torch.clamp(0.5 * relative, max=0.1).maximum(enough)
        rho = self._square(z)
        d = torch.zeros_like(e)
        spent = self._cg(moduli, d[:, None], s.clone()[:, None], z[:, None], (forcing**2 * rho)[:, None])
        slope = torch.where(relative > _NEAR, _dot(s, d), float("inf"))  # near the solution a full step is safe
        e += d
        s.copy_(self.law.flux(e, *parameters))
        self._damp(e, s, d, slope, parameters)
        return spent

    def _damp(self, e: Tensor, s: Tensor, d: Tensor, slope: Tensor, parameters: tuple[Tensor, Tensor]) -> None:
        """Secant search along d for rows whose step left the potential sloping; <w> is convex along d."""
        length = torch.ones_like(slope)
        low, high = torch.zeros_like(slope), torch.full_like(slope, float("inf"))
        for _ in range(_LINE_SEARCH):
            now = _dot(s, d)
            rows = torch.nonzero(now.abs() > _SLOPE * slope.abs())[:, 0]
            if not len(rows):
                return
            over = now[rows] > 0.0
            high[rows] = torch.where(over, length[rows], high[rows])
            low[rows] = torch.where(over, low[rows], length[rows])
            middle = 0.5 * (low[rows] + high[rows])
            new = torch.where(torch.isinf(middle), 2.0 * length[rows], middle)
            e[rows] += (new - length[rows])[:, None, None, None] * d[rows]
            length[rows] = new
            s[rows] = self.law.flux(e[rows], parameters[0][rows], parameters[1][rows])

    def _cg(self, moduli: Tensor, x: Tensor, tau: Tensor, z: Tensor, stop: Tensor) -> Tensor:
        """CG for r right-hand sides per row, all sharing the row's moduli; a finished row costs nothing more.

        moduli: [n, c, c, y, x]; x: [n, r, c, y, x] in/out; tau: the same shape, in/out, flux of x; z = -Gamma tau
        stop: [n, r] bound on <z : C0 z>
        Returns iterations [n].
        """
        spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        all_x, all_tau, rows = x, tau, torch.arange(len(x), device=x.device)
        rho = self._square(z)
        p = z.clone()
        for _ in range(self.max_cg):
            going = (rho > stop).any(dim=1)
            if not bool(going.all()):
                if x is not all_x:
                    all_x[rows[~going]], all_tau[rows[~going]] = x[~going], tau[~going]
                rows, x, tau, p = rows[going], x[going], tau[going], p[going]
                moduli, rho, stop = moduli[going], rho[going], stop[going]
                if not len(rows):
                    return spent
            q = _apply(moduli, p)
            alpha = rho / _dot(p, q).clamp_min(_TINY)
            x.addcmul_(p, alpha[..., None, None, None])
            tau.addcmul_(q, alpha[..., None, None, None])
            spent[rows] += 1
            z = self.gamma(tau)
            new = self._square(z)
            p.mul_((new / rho.clamp_min(_TINY))[..., None, None, None]).sub_(z)
            rho = new
        if x is not all_x:
            all_x[rows], all_tau[rows] = x, tau
        return spent

    def tangent(
        self, field: Tensor, phase: Tensor, condition: Tensor, drive: Tensor, start: Tensor | None, accuracy: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Consistent tangent of n cells.

        drive: [r, c] driving directions; the k components of the condition add k more right-hand sides
        start: [n, r + k, c, y, x] compatible fluctuation fields to start from
        accuracy: relative residual of the fields; the tangent's error is of the order of its square
        Returns T [n, r, r + k] (symmetric in its driving block), fluctuations [n, r + k, c, y, x], CG iterations [n].
        """
        moduli = self.law.moduli(field, phase, condition)
        by_condition = self.law.flux_by_condition(field, phase, condition).transpose(1, 2)
        n, k, c = by_condition.shape[:3]
        r = len(drive)
        a = field.new_zeros(n, r + k, c, *self.grid) if start is None else start.clone()
        a[:, :r] += drive[None, :, :, None, None]
        tau = _apply(moduli, a)
        tau[:, r:] += by_condition
        z = -self.gamma(tau)
        scale = 2.0 * self.green.second if self.green.components == 3 else self.green.first
        size = torch.cat([_dot(a[:, :r], tau[:, :r]), _dot(by_condition, by_condition) / scale], dim=1)
        spent = self._cg(moduli, a, tau, z, accuracy**2 * size)
        pixels = self.grid[0] * self.grid[1]
        t = torch.bmm(a[:, :r].flatten(2), tau.flatten(2).transpose(1, 2)) / pixels
        t[:, :, :r] = 0.5 * (t[:, :, :r] + t[:, :, :r].transpose(1, 2))
        a[:, :r] -= drive[None, :, :, None, None]
        return t, a, spent


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a : b> over components and pixels: [..., c, y, x] -> [...]."""
    product: Tensor = torch.linalg.vecdot(a.flatten(-3), b.flatten(-3)) / (a.shape[-1] * a.shape[-2])
    return product


def _apply(moduli: Tensor, p: Tensor) -> Tensor:
    """C : p for moduli [n, c, c, y, x] and p [n, r, c, y, x]."""
    out = torch.empty_like(p)
    for i in range(p.shape[2]):
        torch.mul(moduli[:, None, i, 0], p[:, :, 0], out=out[:, :, i])
        for j in range(1, p.shape[2]):
            out[:, :, i].addcmul_(moduli[:, None, i, j], p[:, :, j])
    return out
