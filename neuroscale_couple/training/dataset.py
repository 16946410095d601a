"""Training data: fine answers on micro structures that no run uses, made once and kept in shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import F64, I64, U8, Points

SHARD = 100
FIRST_ID = 1_000_000_000
"""Ids of training structures start here, far from any point of a run."""
ACCURACY = 1e-5
"""Fine answers for training need not be more accurate than this."""


class Progress(Protocol):
    """What we need of a progress bar (`rich.progress.Progress` has it)."""

    def add_task(self, description: str, *, total: float | None = ...) -> Any:
        """A new bar; returns its handle."""

    def advance(self, task_id: Any, advance: float = ...) -> None:
        """Move a bar on."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Fine answers by micro structure.

    phase: uint8 [s, y, x]; structure: int64 [m] index into phase; inputs: float64 [m, n_in]
    outputs: float64 [m, n_out]; tangent: float64 [m, n_out, n_in]
    """

    phase: U8
    structure: I64
    inputs: F64
    outputs: F64
    tangent: F64

    def __post_init__(self) -> None:
        m = len(self.structure)
        for name, array in (("inputs", self.inputs), ("outputs", self.outputs), ("tangent", self.tangent)):
            if len(array) != m:
                raise ValueError(f"data set: {name} has {len(array)} rows, structure has {m}")
        if m and (self.structure.min() < 0 or self.structure.max() >= len(self.phase)):
            raise ValueError(f"data set: structure indices lie outside 0 .. {len(self.phase) - 1}")

    def __len__(self) -> int:
        return len(self.structure)

    def take_structures(self, chosen: I64) -> Dataset:
        """The samples of some micro structures, renumbered in the given order. chosen: int64 [k]."""
        new = np.full(len(self.phase), -1, dtype=np.int64)
        new[chosen] = np.arange(len(chosen))
        rows = np.flatnonzero(new[self.structure] >= 0)
        return Dataset(
            self.phase[chosen], new[self.structure[rows]], self.inputs[rows], self.outputs[rows], self.tangent[rows]
        )

    @property
    def sha256(self) -> str:
        """Digest of all arrays."""
        digest = hashlib.sha256()
        for array in (self.phase, self.structure, self.inputs, self.outputs, self.tangent):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_ranges(problem: CellProblem, settings: schema.Training) -> F64:
    """Range of each input column, float64 [n_in, 2]. Raises: ConfigError naming the column without one."""
    columns = problem.inputs.columns
    if unknown := sorted(set(settings.load_range) - set(columns)):
        raise ConfigError(f"training.load_range: unknown column {unknown[0]!r}; {problem.name} takes {list(columns)}")
    for column in columns:
        if column not in settings.load_range:
            raise ConfigError(
                f"training.load_range: column {column!r} of {problem.name} has no range, e.g. {column}: [-1, 1]"
            )
        low, high = settings.load_range[column]
        if not low < high:
            raise ConfigError(f"training.load_range: {column}: got [{low:g}, {high:g}], expected low < high")
    return np.asarray([settings.load_range[column] for column in columns], dtype=np.float64)


def load_paths(ranges: F64, problem: CellProblem, loads: int, rng: np.random.Generator, n: int) -> F64:
    """Random proportional load paths, float64 [loads, n, n_in], amplitudes rising along each path.

    Half of the paths end on the border of the box of ranges, the others inside it; there are two paths for eight
    loads. Conditions are uniform in their range and constant along a path.
    """
    paths = max(1, loads // 4)
    steps = -(-loads // paths)
    drive = problem.driving
    states = []
    for _ in range(paths):
        end = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * rng.random((n, len(ranges)))
        limit = np.where(end[:, drive] < 0.0, ranges[drive, 0], ranges[drive, 1])
        reach = np.max(np.abs(end[:, drive]) / np.maximum(np.abs(limit), 1e-300), axis=1, keepdims=True)
        end[:, drive] /= np.where(rng.random((n, 1)) < 0.5, reach, 1.0)
        for j in range(steps):
            state = end.copy()
            state[:, drive] *= (j + rng.random((n, 1))) / steps
            states.append(state)
    return np.stack(states[:loads])


def generate_data(
    config: schema.Neuroscale, problem: CellProblem, folder: Path, progress: Progress | None = None
) -> Dataset:
    """Make the training data of a case, or the part of it that is not there yet.

    Finished shards in `folder/training_data/<digest of the settings>` are kept; a damaged one is made again.
    """
    settings = config.training
    ranges = load_ranges(problem, settings)
    where = folder / "training_data" / _digest(config, problem, folder)
    where.mkdir(parents=True, exist_ok=True)
    fine = config.fine.model_copy(update={"tolerance": max(config.fine.tolerance, ACCURACY)})
    solver = make_fine_solver(fine, problem)
    starts = range(0, settings.structures, SHARD)
    task = progress.add_task("fine answers", total=settings.structures) if progress is not None else None
    shards = []
    for index, first in enumerate(starts):
        path = where / f"shard_{index:04d}.safetensors"
        count = min(SHARD, settings.structures - first)
        shard = _read_shard(path)
        if shard is None or len(shard.phase) != count:  # of a data set of another size: its last shard was shorter
            rng = np.random.default_rng([settings.seed, index])
            ids = FIRST_ID + first + np.arange(count, dtype=np.int64)
            phase = generate(config.microstructure, ids, problem.grid[0], folder)
            shard = _solve_shard(solver, problem, phase, load_paths(ranges, problem, settings.loads, rng, count))
            _write_shard(path, shard)
        shards.append(shard)
        if progress is not None:
            progress.advance(task, count)
    return join(shards)


def join(parts: list[Dataset]) -> Dataset:
    """One data set of several with structures of their own."""
    offsets = np.cumsum([0] + [len(part.phase) for part in parts[:-1]])
    return Dataset(
        np.concatenate([part.phase for part in parts]),
        np.concatenate([part.structure + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.outputs for part in parts]),
        np.concatenate([part.tangent for part in parts]),
    )


def _solve_shard(solver: FineSolver, problem: CellProblem, phase: U8, states: F64) -> Dataset:
    n = len(phase)
    rows = np.arange(n, dtype=np.int64)
    solver.attach(Points(rows, np.zeros((n, 2)), np.ones(n), {"phase": phase}))
    kept: list[Dataset] = []
    for inputs in states:
        answer = solver.solve(rows, inputs)
        solver.commit()
        good = np.flatnonzero(answer.converged)
        kept.append(Dataset(phase, good, inputs[good], answer.outputs[good], answer.tangent[good]))
    return Dataset(
        phase,
        np.concatenate([part.structure for part in kept]),
        np.concatenate([part.inputs for part in kept]),
        np.concatenate([part.outputs for part in kept]),
        np.concatenate([part.tangent for part in kept]),
    )


def _digest(config: schema.Neuroscale, problem: CellProblem, folder: Path) -> str:
    """Names what the data depend on; an image counts with its content."""
    settings = config.training
    known = {
        "problem": problem.signature,
        "grid": problem.grid,
        "microstructure": config.microstructure.model_dump(mode="json"),
        "loads": [
            settings.loads,
            sorted(settings.load_range.items()),
            settings.seed,
            max(config.fine.tolerance, ACCURACY),
        ],
    }
    path = config.microstructure.path
    if config.microstructure.kind == "image" and path is not None and (folder / path).is_file():
        known["image"] = hashlib.sha256((folder / path).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _arrays(data: Dataset) -> Iterator[tuple[str, Any]]:
    for name in ("phase", "structure", "inputs", "outputs", "tangent"):
        yield name, np.ascontiguousarray(getattr(data, name))


def _write_shard(path: Path, data: Dataset) -> None:
    temporary = path.with_suffix(".tmp")
    save_file(dict(_arrays(data)), temporary)
    os.replace(temporary, path)


def _read_shard(path: Path) -> Dataset | None:
    if not path.exists():
        return None
    try:
        return Dataset(**load_file(path))
    except (SafetensorError, TypeError, ValueError, OSError):
        return None
