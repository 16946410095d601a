"""Fine answers on disk, crash-safe: safetensors shards that are whole or not there.

    samples/rank_0_parameters_000.safetensors       ids and micro structures of points, once per point
    samples/rank_0_window_000003_000.safetensors    ids, inputs, outputs, tangents of a window's fine answers

Answers are kept in memory within a window and written when it is committed; a crash loses at most the window that
was not committed, and that one is computed again when the run is resumed. Names depend on rank and window alone,
so the repeated window replaces what a crashed run may have left of it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.checkpoint import DamagedFileError, pack_arrays, read_arrays, write_atomically
from neuroscale_couple.values import F64, I64, FineAnswer, Points

FORMAT = "neuroscale-couple samples 1"
SPILL = 64 * 2**20
"""Bytes kept in memory within a window before they are written."""

log = logging.getLogger("neuroscale_couple.learning")


@dataclass(frozen=True, slots=True)
class Samples:
    """Stored fine answers of all ranks, in the order of windows.

    ids, window: int64 [m]; inputs: float64 [m, n_in]; outputs: float64 [m, n_out]; tangent: float64 [m, n_out, n_in]
    point_ids: int64 [S] ascending; parameters: name -> array [S, ...]; structure: int64 [m], index into both
    """

    ids: I64
    window: I64
    inputs: F64
    outputs: F64
    tangent: F64
    point_ids: I64
    parameters: Mapping[str, npt.NDArray[Any]]
    structure: I64

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: I64) -> Samples:
        """These samples, with the micro structures that they need. rows: int64 [m]."""
        used, structure = np.unique(self.structure[rows], return_inverse=True)
        return Samples(
            self.ids[rows],
            self.window[rows],
            self.inputs[rows],
            self.outputs[rows],
            self.tangent[rows],
            self.point_ids[used],
            {name: array[used] for name, array in self.parameters.items()},
            structure.astype(np.int64),
        )


class SampleStore:
    """One rank's writer, and the reader of all ranks' shards.

    folder: of the samples; rank: of this process among the service ranks
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self._rank = rank
        self._points: Points | None = None
        self._known: I64 = np.zeros(0, dtype=np.int64)  # ids whose micro structures this rank has written
        self._buffer: list[tuple[I64, F64, F64, F64]] = []
        self._bytes = 0
        self._parts: dict[int, int] = {}  # window -> shards written
        self.open = False

    def attach(self, points: Points) -> None:
        """Take the points of this rank."""
        self._points = points

    def begin(self) -> None:
        """Allow writing; micro structures in the shards that are there are not written again."""
        self.open = True
        for rest in self.folder.glob(f".rank_{self._rank}_*.tmp"):  # of a run that was killed
            rest.unlink()
        known = [arrays["ids"] for arrays, _ in self._shards(f"rank_{self._rank}_parameters_*.safetensors")]
        self._known = np.unique(np.concatenate([self._known, *known]))

    def append(self, window: int, inputs: F64, answer: FineAnswer) -> int:
        """Keep converged fine answers until the window is committed; returns how many. Raises: OSError (spill only).

        inputs: float64 [m, n_in] of answer.rows
        """
        assert self._points is not None
        good = np.flatnonzero(answer.converged)
        if not len(good):
            return 0
        ids = self._points.ids[answer.rows[good]]
        kept = (ids, inputs[good], answer.outputs[good], answer.tangent[good])
        self._buffer.append(kept)
        self._bytes += sum(array.nbytes for array in kept)
        if self.open and self._bytes > SPILL:
            self.flush(window)
        return len(good)

    def flush(self, window: int) -> None:
        """Write what was kept; small files, one per window. Raises: OSError."""
        if not self._buffer:
            return
        ids, inputs, outputs, tangent = (np.concatenate(arrays) for arrays in zip(*self._buffer, strict=True))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_parameters(np.unique(ids))
        part = self._parts.get(window, 0)
        arrays = {"ids": ids, "inputs": inputs, "outputs": outputs, "tangent": tangent}
        self._write(f"rank_{self._rank}_window_{window:06d}_{part:03d}", arrays, window)
        self._parts = {window: part + 1}
        self.discard()

    def discard(self) -> None:
        """Forget what is kept in memory."""
        self._buffer, self._bytes = [], 0

    def _write_parameters(self, ids: I64) -> None:
        assert self._points is not None
        new = np.setdiff1d(ids, self._known, assume_unique=True)
        if not len(new):
            return
        order = np.argsort(self._points.ids)
        rows = order[np.searchsorted(self._points.ids, new, sorter=order)]
        arrays = {f"parameter/{name}": array[rows] for name, array in self._points.parameters.items()}
        number = _next_number(self.folder, f"rank_{self._rank}_parameters_")
        self._write(f"rank_{self._rank}_parameters_{number:03d}", {"ids": new, **arrays}, -1)
        self._known = np.union1d(self._known, new)

    def _write(self, name: str, arrays: Mapping[str, npt.NDArray[Any]], window: int) -> None:
        metadata = {"format": FORMAT, "window": str(window)}
        write_atomically(self.folder / f"{name}.safetensors", pack_arrays(arrays, metadata))

    def read(self, since: int = 0) -> Samples | None:
        """All ranks' stored samples; None if there are none. Damaged shards are skipped with a warning.

        since: leave out earlier windows
        """
        points = [arrays for arrays, _ in self._shards("rank_*_parameters_*.safetensors")]
        shards = sorted(self._shards("rank_*_window_*.safetensors", since), key=lambda shard: shard[1])
        if not points or not shards:
            return None
        point_ids, first = np.unique(np.concatenate([p["ids"] for p in points]), return_index=True)
        names = [key for key in points[0] if key.startswith("parameter/")]
        parameters = {n.removeprefix("parameter/"): np.concatenate([p[n] for p in points])[first] for n in names}
        window = np.concatenate([np.full(len(a["ids"]), w, dtype=np.int64) for a, w in shards])
        ids, inputs, outputs, tangent = (
            np.concatenate([arrays[key] for arrays, _ in shards]) for key in ("ids", "inputs", "outputs", "tangent")
        )
        at = np.minimum(np.searchsorted(point_ids, ids), len(point_ids) - 1)
        known = np.flatnonzero(point_ids[at] == ids)
        if len(known) < len(ids):
            log.warning(
                "%s: %d samples are left out: their micro structures are lost", self.folder, len(ids) - len(known)
            )
        everything = Samples(ids, window, inputs, outputs, tangent, point_ids, parameters, at)
        return everything if len(known) == len(ids) else everything.take(known)

    def _shards(self, pattern: str, since: int = 0) -> list[tuple[dict[str, npt.NDArray[Any]], int]]:
        """Arrays and window of every whole shard of a pattern, by name."""
        found = []
        for path in sorted(self.folder.glob(pattern)):
            of = re.search(r"_window_(\d+)_", path.name)
            if of is not None and int(of[1]) < since:
                continue
            try:
                arrays, metadata = read_arrays(path)
                if metadata.get("format") != FORMAT:
                    raise DamagedFileError(f"{path} is not a shard of samples")
                found.append((arrays, int(metadata["window"])))
            except DamagedFileError as error:
                log.warning("samples: a shard is skipped: %s", error)
        return found


def set_aside(folder: Path) -> Path | None:
    """Rename a folder of samples of an earlier run, so that nothing of it is lost; returns its new name.

    Raises: OSError
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = _next_number(folder.parent, f"{folder.name}_before_")
    target = folder.with_name(f"{folder.name}_before_{number:03d}")
    folder.rename(target)
    return target


def _next_number(folder: Path, prefix: str) -> int:
    numbers = [int(m[1]) for p in folder.glob(f"{prefix}*") if (m := re.match(re.escape(prefix) + r"(\d+)", p.name))]
    return max(numbers, default=-1) + 1
