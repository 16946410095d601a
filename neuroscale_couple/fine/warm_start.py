"""Starting fields of all points: the last fluctuation and its derivative by the inputs."""

from __future__ import annotations

import torch
from torch import Tensor


class WarmStart:
    """Keeps, per point, the last solution and extrapolates it linearly to a new input.

        start = fluctuation + sum_k slope_k (input_k - last input_k)

    Two slots per point, committed and current; commit and rollback only move slot numbers. Fields are kept in float32
    (they are starting values), which takes 2 * 4 * (1 + n_in) * c bytes per pixel and point; where that passes the cap,
    slopes are dropped first (2 * 4 * c bytes per pixel), then everything, and solves start cold.
    """

    def __init__(
        self, points: int, n_in: int, components: int, grid: tuple[int, int], device: torch.device, cap_mb: float
    ) -> None:
        """points, n_in, components: sizes; cap_mb: memory all starting fields may take, MB."""
        field = 2 * 4 * components * grid[0] * grid[1] * points / 2**20
        self.keeps_slopes = field * (1 + n_in) <= cap_mb
        self.keeps_fields = field <= cap_mb
        n = points if self.keeps_fields else 0
        self._field = torch.zeros((2, n, components, *grid), dtype=torch.float32, device=device)
        k = n_in if self.keeps_slopes else 0
        self._slopes = torch.zeros((2, n, k, components, *grid), dtype=torch.float32, device=device)
        self._inputs = torch.zeros((2, points, n_in), dtype=torch.float64, device=device)
        self._known = torch.zeros((2, points), dtype=torch.bool, device=device)
        self._committed = torch.zeros(points, dtype=torch.int64, device=device)
        self._current = self._committed.clone()

    def read(self, rows: Tensor, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Extrapolated fluctuation [m, c, y, x] and slopes [m, n_in, c, y, x] for new inputs [m, n_in]; None: cold."""
        if not self.keeps_fields:
            return None, None
        slot = self._current[rows]
        if not bool(self._known[slot, rows].any()):
            return None, None
        start = self._field[slot, rows].to(torch.float64)
        if not self.keeps_slopes:
            return start, None
        slopes = self._slopes[slot, rows].to(torch.float64)
        change = torch.nan_to_num(inputs - self._inputs[slot, rows])
        start += torch.einsum("nk,nkcyx->ncyx", change, slopes)
        return start, slopes

    def write(self, rows: Tensor, inputs: Tensor, fluctuation: Tensor, slopes: Tensor, good: Tensor) -> None:
        """Keep the solution of the rows that are good (bool [m])."""
        if not self.keeps_fields:
            return
        if not bool(good.all()):
            rows, inputs, fluctuation, slopes = rows[good], inputs[good], fluctuation[good], slopes[good]
        slot = 1 - self._committed[rows]
        self._field[slot, rows] = fluctuation.to(torch.float32)
        self._inputs[slot, rows] = inputs
        if self.keeps_slopes:
            self._slopes[slot, rows] = slopes.to(torch.float32)
        self._known[slot, rows] = True
        self._current[rows] = slot

    def commit(self) -> None:
        """The current fields become the committed ones."""
        self._committed = self._current.clone()

    def rollback(self) -> None:
        """The committed fields become the current ones."""
        self._current = self._committed.clone()

    def clear(self) -> None:
        """Forget everything: the next solves start cold."""
        self._known.zero_()
        self._field.zero_()
        self._slopes.zero_()
