"""Batched Newton-CG with the Green operator as preconditioner, for all micro problems on periodic cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neuroscale_couple.config.schema import Fine
from neuroscale_couple.devices import choose_device
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.fine.newton_cg import NewtonCG
from neuroscale_couple.fine.warm_start import WarmStart
from neuroscale_couple.physics.base import CellProblem, MicroProblem, macro_to_grid, mean_flux_to_macro
from neuroscale_couple.values import F64, I64, FineAnswer, Points
from neuroscale_couple.workers import Workers

_TANGENT_ACCURACY = 1.5e-3
_CACHE_PIXELS = 64 * 1024
_BYTES = 160
_SMALLEST_PART = 8


class FftCell(FineSolver):
    """Newton-CG on the finest grid, float64, on CPU or GPU; points are solved in batches, each with its own mask.

    Memory, linear in pixels, for c field components and n_in inputs: a solve takes 160 c n_in bytes per pixel of the
    points in work (composite: 1.4 kB, a point of 32 x 32: 1.5 MB), capped by `memory_mb`; the starting fields take
    8 c (1 + n_in) bytes per pixel of all points (composite: 96 B, a point of 32 x 32: 98 kB), capped by
    `warm_start_mb`, see `WarmStart`.
    """

    def __init__(self, settings: Fine, problem: MicroProblem) -> None:
        if not isinstance(problem, CellProblem):
            raise ConfigError(f"fine.solver: fft_cell solves periodic cells; {problem.name!r} is not one")
        self.problem = problem
        self.settings = settings
        self.device = choose_device(settings.device)
        self.core = NewtonCG(
            problem.law,
            problem.green,
            problem.grid,
            settings.tolerance,
            (settings.max_newton, settings.max_cg),
            1e-6 * problem.output_floor(),
        )
        self.drive = problem.to_grid.T.to(self.device)
        pixels = problem.grid[0] * problem.grid[1]
        per_point = _BYTES * problem.to_grid.shape[0] * problem.inputs.size * pixels
        self._most = int(settings.memory_mb * 2**20 / per_point)
        self.chunk = max(1, min(self._most, _CACHE_PIXELS // pixels) if self.device.type == "cpu" else self._most)
        self._workers = Workers()
        self._phase = torch.zeros((0, *problem.grid), dtype=torch.uint8)
        self._ids: I64 = np.zeros(0, dtype=np.int64)
        self._history = np.zeros((0, 0), dtype=np.float32)
        self._inputs: F64 = np.zeros((0, problem.inputs.size))
        self._warm = WarmStart(0, 0, 0, problem.grid, self.device, 0.0)

    def attach(self, points: Points) -> None:
        """Take the points this rank owns. Raises: MicrostructureError."""
        self.problem.check_parameters(dict(points.parameters))
        self._ids = points.ids
        phase = np.ascontiguousarray(points.parameters["phase"], dtype=np.uint8)
        self._phase = torch.from_numpy(phase).to(self.device)
        c, k = self.problem.to_grid.shape[0], self.problem.inputs.size
        self._history = np.full((len(points), self.settings.max_newton + 1), np.nan, dtype=np.float32)
        self._inputs = np.full((len(points), k), np.nan)
        self._warm = WarmStart(len(points), k, c, self.problem.grid, self.device, self.settings.warm_start_mb)

    def solve(self, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None = None) -> FineAnswer:
        """Solve the points `rows` (int64 [m], local) for `inputs` float64 [m, n_in]; see `FineSolver.solve`."""
        m = len(rows)
        n_out, n_in = self.problem.outputs.size, self.problem.inputs.size
        answer = FineAnswer(
            rows,
            np.full((m, n_out), np.nan),
            np.full((m, n_out, n_in), np.nan),
            np.zeros(m, dtype=np.bool_),
            np.zeros(m, dtype=np.int64),
            np.full(m, np.nan),
        )
        self._history[rows] = np.nan
        self._inputs[rows] = inputs

        def work(part: slice) -> None:
            with torch.no_grad():
                self._solve_part(part, rows, inputs, None if guess is None else guess[part], answer)

        size = self._part_size(m)
        parts = [slice(start, min(start + size, m)) for start in range(0, m, size)]
        if self.device.type == "cpu":
            self._workers.run(work, parts)
        else:
            for part in parts:
                work(part)
        return answer

    def _part_size(self, m: int) -> int:
        """Rows per part: at most a chunk; less where that leaves a thread without work."""
        if self.device.type != "cpu":
            return self.chunk
        threads = torch.get_num_threads()
        return max(1, min(self.chunk, self._most // threads, max(_SMALLEST_PART, -(-m // threads))))

    def _solve_part(
        self, part: slice, rows: I64, inputs: F64, guess: npt.NDArray[Any] | None, answer: FineAnswer
    ) -> None:
        p = self.problem
        index = torch.from_numpy(rows[part]).to(self.device)
        given = torch.from_numpy(np.ascontiguousarray(inputs[part], dtype=np.float64)).to(self.device)
        phase = self._phase[index].to(torch.float64)
        condition = given[:, p.condition]
        mean = macro_to_grid(self.drive.T, given[:, p.driving])[:, :, 0, 0]
        start, slopes = self._warm.read(index, given)
        if guess is not None:
            guessed = _fluctuation(torch.from_numpy(guess).to(self.device, torch.float64))
            other = torch.zeros_like(guessed) if start is None else start
            start = self.core.better(phase, mean, condition, guessed, other)
        solved = self.core.solve(phase, mean, condition, start)
        tangent, slopes, spent = self.core.tangent(
            solved.field, phase, condition, self.drive, slopes, _TANGENT_ACCURACY
        )
        self._warm.write(index, given, solved.field - mean[:, :, None, None], slopes, solved.converged)
        answer.outputs[part] = mean_flux_to_macro(self.drive.T, solved.flux).cpu().numpy()
        answer.tangent[part] = tangent.cpu().numpy()
        answer.converged[part] = solved.converged.cpu().numpy()
        answer.iterations[part] = (solved.iterations + spent).cpu().numpy()
        answer.residual[part] = solved.residual.cpu().numpy()
        self._history[rows[part], : len(solved.history)] = solved.history.T.cpu().numpy()

    def commit(self) -> None:
        """What was last solved is the committed starting field."""
        self._warm.commit()

    def rollback(self) -> None:
        """Back to the committed starting fields; nothing is copied."""
        self._warm.rollback()

    def diagnosis(self, row: int) -> str:
        """Residual history of the last solve of a point."""
        history = self._history[row]
        residuals = ", ".join(f"{r:.1e}" for r in history[np.isfinite(history)]) or "none (not finite)"
        load = ", ".join(f"{c}={v:g}" for c, v in zip(self.problem.inputs.columns, self._inputs[row], strict=True))
        return (
            f"point {self._ids[row]}: {load}; relative residual after each Newton iteration: {residuals}"
            f" (tolerance {self.settings.tolerance:g}, at most {self.settings.max_newton} Newton and"
            f" {self.settings.max_cg} CG iterations)"
        )

    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Empty: the micro problems solved here are path-independent."""
        return {}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Nothing to restore: the next solve starts cold."""
        self._warm.clear()


def _fluctuation(guess: Tensor) -> Tensor:
    """Fluctuation of a guess [m, c, y, x]; zero in rows that are not finite."""
    usable = torch.isfinite(guess).all(dim=3).all(dim=2).all(dim=1)[:, None, None, None]
    return torch.where(usable, guess - guess.mean(dim=(-2, -1), keepdim=True), torch.zeros_like(guess))
