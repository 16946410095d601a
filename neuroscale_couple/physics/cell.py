"""What all micro problems on a periodic two-phase cell have in common."""

from __future__ import annotations

from abc import abstractmethod
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from neuroscale_couple.config.schema import Problem
from neuroscale_couple.errors import ConfigError, MicrostructureError
from neuroscale_couple.kernels import coarsen_pyramid
from neuroscale_couple.physics.base import CellLaw, CellProblem, mean_flux_to_macro
from neuroscale_couple.physics.periodic import GreenOperator
from neuroscale_couple.values import F64, Layout


class Settings(BaseModel):
    """Base of a problem's own settings: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Own = TypeVar("Own", bound=Settings)


def read_settings(model: type[Own], problem: Problem) -> Own:
    """The problem's own settings: the keys of the problem section that the schema does not know.

    Raises: ConfigError naming each wrong key, its value and what is allowed.
    """
    try:
        return model.model_validate(problem.model_extra or {})
    except ValidationError as cause:
        lines = []
        for error in cause.errors():
            key = ".".join(["problem", *(str(part) for part in error["loc"])])
            if error["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key; {_nearest(model, error['loc'])}")
            else:
                lines.append(f"{key}: {error['msg']}, got {error['input']!r}")
        raise ConfigError("\n".join(lines)) from cause


def _nearest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What the section around an unknown key knows, and the nearest of it."""
    known = ["name", "grid", "scheme", *model.model_fields]
    for part in location[:-1]:
        inner = model.model_fields[str(part)].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model, known = inner, list(inner.model_fields)
    near = get_close_matches(str(location[-1]), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known keys are {', '.join(sorted(known))}"


def pyramid(ny: int, nx: int) -> tuple[tuple[int, int], ...]:
    """Grids of all scales: halved while both sides are even, then one value per point."""
    scales = [(ny, nx)]
    while ny % 2 == 0 and nx % 2 == 0 and min(ny, nx) > 2:
        ny, nx = ny // 2, nx // 2
        scales.append((ny, nx))
    if scales[-1] != (1, 1):
        scales.append((1, 1))
    return tuple(scales)


class PeriodicCell(CellProblem):
    """A cell problem whose physics is one law and one Green operator.

    layouts: inputs, outputs; the first `d` inputs drive the field, the rest is the condition
    """

    def __init__(
        self, settings: Problem, layouts: tuple[Layout, Layout], law: CellLaw, green: GreenOperator, to_grid: Tensor
    ) -> None:
        self.name = settings.name
        self.inputs, self.outputs = layouts
        self.state = Layout(())
        self.law = law
        self.green = green
        self.scheme = settings.scheme
        self.grid = (settings.grid, settings.grid)
        self.to_grid = to_grid
        d = to_grid.shape[1]
        self.driving = slice(0, d)
        self.condition = slice(d, self.inputs.size)
        self._scales = pyramid(*self.grid)

    @property
    @abstractmethod
    def material(self) -> dict[str, Any]:
        """JSON-able material parameters."""

    @property
    def signature(self) -> dict[str, Any]:
        """Identity of the problem; the grid is not part of it, since the operator works on any."""

        def fields(layout: Layout) -> list[list[str]]:
            return [[f.name, f.unit, ",".join(f.components)] for f in layout.fields]

        return {
            "name": self.name,
            "scheme": self.scheme,
            "material": self.material,
            "inputs": fields(self.inputs),
            "outputs": fields(self.outputs),
        }

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """Grid (ny, nx) of each scale, finest first; the last is (1, 1)."""
        return self._scales

    def check_parameters(self, parameters: dict[str, Any]) -> None:
        """Raises: MicrostructureError naming the point and the reason if `phase` cannot be used."""
        if "phase" not in parameters:
            raise MicrostructureError(
                f"{self.name}: the points have no parameter 'phase' [point, y, x]; they have {sorted(parameters)}"
            )
        phase = np.asarray(parameters["phase"])
        if phase.ndim != 3 or phase.shape[1:] != self.grid:
            raise MicrostructureError(
                f"{self.name}: parameter 'phase' has shape {phase.shape}, expected"
                f" [point, {self.grid[0]}, {self.grid[1]}]; change problem.grid or the micro structures"
            )
        check_two_phase(phase)

    def residual(self, field: Tensor, phase: Tensor, inputs: Tensor, scale: int) -> Tensor:
        """Compatible part Gamma s(e) of the flux at a scale, [n, c, y, x]; 0 at the solution."""
        if field.shape[-2:] != self._scales[scale]:
            got, expected = tuple(field.shape[-2:]), self._scales[scale]
            raise ValueError(f"field of scale {scale} has grid {got}, expected {expected}")
        residual: Tensor = self.green(self.law.flux(field, phase, inputs[:, self.condition]))
        return residual

    def conserved(self, field: Tensor, phase: Tensor, inputs: Tensor, scale: int) -> Tensor:
        """Mean gradient, mean flux and mean energy, [n, 2c + 1]."""
        condition = inputs[:, self.condition]
        flux = self.law.flux(field, phase, condition).mean(dim=(-2, -1))
        energy = self.law.energy(field, phase, condition).mean(dim=(-2, -1))
        return torch.cat([field.mean(dim=(-2, -1)), flux, energy[:, None]], dim=1)

    def coarsen(self, field: Tensor, source: int, target: int) -> Tensor:
        """C(source -> target): volume mean of a field [n, ..., y, x] onto a coarser scale."""
        (ny, nx), (my, mx) = self._scales[source], self._scales[target]
        if field.shape[-2:] != (ny, nx):
            raise ValueError(f"field of scale {source} has grid {tuple(field.shape[-2:])}, expected {(ny, nx)}")
        if ny % my or nx % mx:
            raise ValueError(f"scale {target} is not coarser than scale {source}")
        flat = field.reshape(len(field), -1, ny, nx).contiguous()
        if not flat.is_floating_point():
            flat = flat.to(torch.float64)
        levels = (ny // my).bit_length() - 1
        while levels and (ny % 2**levels or nx % 2**levels or my * 2**levels > ny or mx * 2**levels > nx):
            levels -= 1
        if levels:
            flat = coarsen_pyramid(flat, levels)[-1]
        if flat.shape[-2:] != (my, mx):  # the last scale of a grid that is no power of two
            flat = flat.mean(dim=(-2, -1), keepdim=True)
        return flat.reshape(*field.shape[:-2], my, mx)

    def outputs_of(self, field: Tensor, phase: Tensor, inputs: Tensor) -> Tensor:
        """Homogenisation: to_grid^T <s>, [n, n_out]."""
        return mean_flux_to_macro(self.to_grid.to(field.device), self.law.flux(field, phase, inputs[:, self.condition]))

    def effective_energy(self, inputs: F64, outputs: F64) -> F64:
        """inputs . outputs of the driving columns, float64 [n]."""
        product: F64 = np.einsum("nd,nd->n", inputs[:, self.driving], outputs)
        return product


def share_of(phase: Any) -> F64:
    """Inclusion share of each point, float64 [n], of phase [n, y, x] (0, 1 or shares between)."""
    share: F64 = np.asarray(phase).mean(axis=(1, 2), dtype=np.float64)
    return share


def check_two_phase(phase: npt.NDArray[Any]) -> None:
    """Check images [n, y, x]: finite, and nothing but 0 and 1.

    Raises: MicrostructureError naming the first image that is not.
    """
    if phase.dtype.kind == "f" and not np.isfinite(phase).all():
        n, y, x = (int(i) for i in np.argwhere(~np.isfinite(phase))[0])
        value = phase[n, y, x]
        raise MicrostructureError(f"micro structure {n}: pixel [{y}, {x}] is not finite ({value}); use 0 and 1 only")
    wrong = (phase != 0) & (phase != 1)
    if wrong.any():
        n = int(np.argwhere(wrong.any(axis=(1, 2)))[0, 0])
        values = np.unique(phase[n])
        shown = ", ".join(f"{v:g}" for v in values[:6]) + (", ..." if len(values) > 6 else "")
        raise MicrostructureError(
            f"micro structure {n} is not two-phase: it holds {len(values)} values ({shown}),"
            " expected 0 (matrix) and 1 (inclusion)"
        )
