"""What the points were asked in every step of a run, in a temporary file: to bring a micro simulation up to date."""

from __future__ import annotations

import tempfile

import numpy as np

from neuroscale_couple.values import F64, I64


class Journal:
    """Inputs float64 [points, n_in] and the length of every step."""

    def __init__(self, points: int, columns: int) -> None:
        self._shape = (points, columns)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the journal
        self._dts: list[float] = []

    def __len__(self) -> int:
        return len(self._dts)

    def append(self, inputs: F64, dt: float) -> None:
        """One more step. inputs: float64 [points, n_in]"""
        self._file.seek(len(self._dts) * inputs.nbytes)
        self._file.write(np.ascontiguousarray(inputs).data)
        self._dts.append(dt)

    def truncate(self, steps: int) -> None:
        """Forget all but the first steps."""
        del self._dts[steps:]

    def read(self, first: int, rows: I64) -> tuple[F64, F64]:
        """Inputs float64 [steps, m, n_in] of some points and lengths float64 [steps], from step `first` on."""
        dts = np.array(self._dts[first:])
        if not len(dts) or not len(rows):
            return np.zeros((len(dts), len(rows), self._shape[1])), dts
        self._file.flush()
        stored = np.memmap(self._file, dtype=np.float64, mode="r", shape=(len(self._dts), *self._shape))
        return np.array(stored[first:, rows]), dts

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
