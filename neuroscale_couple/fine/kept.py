"""States of micro simulations as bytes, for checkpoints: pickled and unpickled by the workers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroscale_couple.values import I64


class Kept:
    """The last state that was taken of each point. at: int64 [points], steps that it had taken; -1: none."""

    def __init__(self, points: int) -> None:
        self.at: I64 = np.full(points, -1, dtype=np.int64)
        self._states = [b""] * points

    def put(self, rows: I64, step: int, states: Sequence[bytes]) -> None:
        """States of these points (int64 [m]) after so many steps; none of one whose bytes are empty."""
        for row, state in zip(rows.tolist(), states, strict=True):
            self._states[row] = state
            self.at[row] = step if state else -1

    def of(self, rows: I64) -> list[bytes]:
        """States of points (int64 [m]) that have one."""
        return [self._states[row] for row in rows.tolist()]

    def get_state(self) -> Mapping[str, Any]:
        """For a checkpoint."""
        sizes = np.fromiter(map(len, self._states), dtype=np.int64, count=len(self._states))
        return {"at": self.at, "sizes": sizes, "states": np.frombuffer(b"".join(self._states), dtype=np.uint8)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave."""
        self.at = np.array(state["at"], dtype=np.int64)
        whole = np.asarray(state["states"], dtype=np.uint8).tobytes()
        ends = np.cumsum(np.asarray(state["sizes"], dtype=np.int64)).tolist()
        self._states = [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
