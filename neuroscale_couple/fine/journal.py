"""What the points were asked in every step of a run, in a file: to bring a micro simulation up to date."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neuroscale_couple.errors import CheckpointError
from neuroscale_couple.values import F64, I64


class Journal:
    """Inputs float64 [points, n_in] and the length of every step."""

    def __init__(self, points: int, columns: int, path: Path | None = None) -> None:
        """path: the file that a resumed run reads again; None: a temporary one"""
        self._shape = (points, columns)
        self._path = path
        self._file = tempfile.TemporaryFile() if path is None else _opened(path)  # noqa: SIM115 - open as long as this
        self._dts: list[float] = []
        self._sums = [0]  # checksum of all steps before each one, where the file is kept

    def __len__(self) -> int:
        return len(self._dts)

    def append(self, inputs: F64, dt: float) -> None:
        """One more step. inputs: float64 [points, n_in]"""
        data = np.ascontiguousarray(inputs).reshape(-1).view(np.uint8).data
        start, written = len(self._dts) * len(data), 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], start + written)
        self._dts.append(dt)
        if self._path is not None:
            self._sums.append(zlib.crc32(data, self._sums[-1]))

    def truncate(self, steps: int) -> None:
        """Forget all but the first steps."""
        del self._dts[steps:], self._sums[steps + 1 :]

    def read(self, first: int, rows: I64) -> tuple[F64, F64]:
        """Inputs float64 [steps, m, n_in] of some points and lengths float64 [steps], from step `first` on."""
        dts = np.array(self._dts[first:])
        if not len(dts) or not len(rows):
            return np.zeros((len(dts), len(rows), self._shape[1])), dts
        self._file.flush()
        stored = np.memmap(self._file, dtype=np.float64, mode="r", shape=(len(self._dts), *self._shape))
        return np.array(stored[first:, rows]), dts

    def get_state(self) -> Mapping[str, Any]:
        """For a checkpoint: lengths of the steps, and the checksum of the file, which is on the disk then."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"dts": np.array(self._dts), "sum": np.int64(self._sums[-1])}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps of a checkpoint, whose inputs are in the file. Raises: CheckpointError"""
        dts = np.asarray(state["dts"], dtype=np.float64)
        bytes_of = 8 * self._shape[0] * self._shape[1]
        self._dts, self._sums = dts.tolist(), [0]
        self._file.seek(0)
        for _ in range(len(dts)):
            self._sums.append(zlib.crc32(self._file.read(bytes_of), self._sums[-1]))
        if self._sums[-1] != int(np.asarray(state["sum"])):
            raise CheckpointError(
                f"{self._path}: this file should hold what the micro simulations were asked in the {len(dts)} steps "
                "before the checkpoint, but it holds something else; start without --resume"
            )

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _opened(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
