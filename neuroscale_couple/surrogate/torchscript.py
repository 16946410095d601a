"""A surrogate out of a TorchScript artifact; the only place where float64 turns into float32 and back."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neuroscale_couple.devices import choose_device
from neuroscale_couple.errors import ArtifactError
from neuroscale_couple.physics.base import CellProblem, MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate import artifact
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, I64, Points, Prediction
from neuroscale_couple.workers import Workers

COARSE_CHUNK = 512
"""Points per call on the coarse rung: what fits the processor's cache."""
CHUNK_PIXELS = 32 * 1024
"""Pixels per call of the encoder and of the fine rung."""
MODES_MB = 512.0
"""Memory for field modes that are kept; beyond it they are computed again when asked for."""


class TorchScriptSurrogate(Surrogate):
    """Both rungs of an artifact, with parameters kept per point.

    path, sha256: of the artifact; version: set by whoever promotes it
    """

    def __init__(self, path: Path, problem: MicroProblem, device: str = "auto") -> None:
        self.path = Path(path)
        content, self.card, self.sha256 = artifact.read(self.path)
        artifact.check_problem(self.path, self.card, problem.signature)
        if not isinstance(problem, CellProblem):
            raise ArtifactError(f"{path}: is a model for periodic cells, but {problem.name!r} is not one")
        self.version = 0
        self.problem = problem
        self.device = choose_device(device)
        try:
            self.module = torch.jit.load(io.BytesIO(content), map_location=self.device)
        except RuntimeError as cause:
            raise ArtifactError(
                f"{path}: torch {torch.__version__} cannot load it ({cause}); train it again"
            ) from cause
        self.module.eval()
        pixels = problem.grid[0] * problem.grid[1]
        self._chunk = max(1, CHUNK_PIXELS // pixels) if self.device.type == "cpu" else 1024
        self._points: Points | None = None
        self._parameters: tuple[Tensor, Tensor] | None = None
        self._phase = torch.zeros((0, *problem.grid), dtype=torch.uint8, device=self.device)
        self._modes = ModesCache(0, MODES_MB)
        self._workers = Workers()

    @property
    def rungs(self) -> tuple[Source, ...]:
        """Both rungs, cheapest first."""
        return (Source.SURROGATE_COARSE, Source.SURROGATE_FINE)

    def attach(self, points: Points) -> None:
        """Encode the micro structures of the points this rank owns and keep the coarse rung's parameters.

        The same points are encoded once. Raises: MicrostructureError.
        """
        if points is self._points:
            return
        self.problem.check_parameters(dict(points.parameters))
        phase = np.ascontiguousarray(points.parameters["phase"], dtype=np.uint8)
        self._phase = torch.from_numpy(phase).to(self.device)
        self._modes = ModesCache(len(points), MODES_MB)
        with torch.inference_mode():
            one = self.module.encode(torch.zeros((1, *self.problem.grid), device=self.device))
            base, code = (tensor.new_empty((len(points), *tensor.shape[1:])) for tensor in one)

        def encode(part: slice) -> None:
            with torch.inference_mode():
                base[part], code[part] = self.module.encode(self._phase[part].to(torch.float32))

        self._workers.run(encode, _parts(len(points), self._chunk))
        self._parameters, self._points = (base, code), points

    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        """Answer the points `rows` on one rung; NaN in, NaN out."""
        self._check(rows, inputs)
        d, k = self.problem.outputs.size, self.problem.inputs.size
        outputs, tangent, score = np.empty((len(rows), d)), np.empty((len(rows), d, k)), np.empty(len(rows))
        size = COARSE_CHUNK if rung is Source.SURROGATE_COARSE else self._chunk
        answer = self._coarse if rung is Source.SURROGATE_COARSE else self._fine
        index = torch.from_numpy(rows).to(self.device)
        given = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).to(self.device)

        def work(part: slice) -> None:
            with torch.inference_mode():
                for target, value in zip((outputs, tangent, score), answer(index[part], given[part]), strict=True):
                    target[part] = value.cpu().numpy()

        self._workers.run(work, _parts(len(rows), size))
        drive = self.problem.driving
        block = tangent[:, :, drive]
        tangent[:, :, drive] = 0.5 * (block + np.swapaxes(block, 1, 2))
        return Prediction(rows, outputs, tangent, score)

    def fields(self, rows: I64, inputs: F64) -> npt.NDArray[Any] | None:
        """Predicted total gradient fields, float32 [m, c, y, x], to start the fine solver from."""
        self._check(rows, inputs)
        index = torch.from_numpy(rows).to(self.device)
        given = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).to(self.device)
        fields = np.empty((len(rows), self.problem.to_grid.shape[0], *self.problem.grid), dtype=np.float32)

        def work(part: slice) -> None:
            with torch.inference_mode():
                modes, phase = self._modes_of(index[part])
                fields[part] = self.module.field(modes, phase, given[part]).cpu().numpy()

        self._workers.run(work, _parts(len(rows), self._chunk))
        return fields

    def _coarse(self, index: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self._parameters is not None
        base, code = (parameters[index] for parameters in self._parameters)
        outputs, tangent, score = self.module.coarse(base, code, inputs)
        return outputs, tangent, score

    def _fine(self, index: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        modes, phase = self._modes_of(index)
        outputs, tangent, score = self.module.fine(modes, phase, inputs)
        return outputs, tangent, score

    def _modes_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        phase = self._phase[index].to(torch.float32)
        return self._modes.get(index, lambda missing: self.module.modes(phase[missing])), phase

    def _check(self, rows: I64, inputs: F64) -> None:
        if self._parameters is None:
            raise RuntimeError("attach the surrogate to its points before it predicts")
        expected = (len(rows), self.problem.inputs.size)
        if inputs.shape != expected:
            raise ValueError(f"surrogate: got inputs of shape {inputs.shape}, expected {expected}")
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self._phase)):
            raise IndexError(f"surrogate: rows {rows.min()} .. {rows.max()} lie outside its {len(self._phase)} points")


def _parts(n: int, size: int) -> list[slice]:
    """Parts of at most `size` rows."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


class ModesCache:
    """Field modes of the points that were asked for, up to a limit of memory; several threads may ask.

    points: number of points; megabytes: of memory, points beyond it are computed on every call
    """

    def __init__(self, points: int, megabytes: float) -> None:
        self._bytes = megabytes * 2**20
        self._slot = torch.full((points,), -1, dtype=torch.int64)
        self._used = 0
        self._store: Tensor | None = None
        self._lock = Lock()

    def get(self, index: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Modes of the points `index` int64 [m]; compute(positions [k]) makes those that are missing."""
        slot = self._slot.to(index.device)[index]
        missing = torch.nonzero(slot < 0)[:, 0]
        if not len(missing):
            assert self._store is not None
            return self._store[slot]
        made = compute(missing)
        found = made
        if len(missing) < len(index):
            assert self._store is not None
            found = made.new_empty((len(index), *made.shape[1:]))
            known = torch.nonzero(slot >= 0)[:, 0]
            found[known] = self._store[slot[known]]
            found[missing] = made
        with self._lock:
            self._keep(index[missing], made)
        return found

    def _keep(self, points: Tensor, made: Tensor) -> None:
        room = int(self._bytes // max(made[:1].nbytes, 1))
        count = min(len(points), room - self._used)
        if count <= 0:
            return
        if self._store is None or self._used + count > len(self._store):
            larger = made.new_empty((min(room, 2 * (self._used + count)), *made.shape[1:]))
            if self._store is not None:
                larger[: self._used] = self._store[: self._used]
            self._store = larger
        self._store[self._used : self._used + count] = made[:count]
        self._slot[points[:count].to(self._slot.device)] = torch.arange(self._used, self._used + count)
        self._used += count
