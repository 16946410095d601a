"""Builds the operator for a micro problem: scales, comparison media, weights from and to disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuroscale_couple.errors import ArtifactError
from neuroscale_couple.operator.neuroscale import NeuroScale, Physics, Sizes
from neuroscale_couple.physics.base import CellLaw, CellProblem
from neuroscale_couple.values import F64
from neuroscale_couple.workers import Workers

DIRECTIONS = 256
"""Load directions over which the law's moduli are averaged to get a comparison medium."""
QUADRATURE = 8


def make_physics(problem: CellProblem, ranges: F64) -> Physics:
    """Scales and comparison media for the operator, from the law and the range of each input column [n_in, 2].

    There are two media: the law's secant moduli at vanishing load, averaged over load directions, and those at the
    usual load. Conditions (e.g. temperature) are at their lowest in the first and at their highest in the second.
    """
    to_grid = problem.to_grid.double()
    largest = torch.from_numpy(abs(ranges[problem.driving]).max(axis=1))
    load_scale = 0.5 * float(torch.linalg.vector_norm(to_grid @ largest))
    conditions = [(0.5 * (low + high), 0.5 * (high - low)) for low, high in ranges[problem.condition].tolist()]
    soft = _secant(problem.law, to_grid.shape[0], 0.0, [c - h for c, h in conditions])
    hard = _secant(problem.law, to_grid.shape[0], load_scale, [c + h for c, h in conditions])
    stiffness = float(torch.diagonal(soft[0]).mean())
    return Physics(
        law=problem.law,
        green=problem.green,
        to_grid=to_grid.float(),
        media=(torch.stack([soft, hard]) / stiffness).float(),
        load_scale=load_scale,
        flux_scale=stiffness * load_scale,
        floor=problem.output_floor(),
        conditions=tuple(conditions),
    )


def _secant(law: CellLaw, c: int, load: float, condition: list[float]) -> Tensor:
    """Secant moduli int_0^1 C(t e) dt of both phases at loads of one size, mean over directions; float64 [2, c, c]."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(DIRECTIONS, c, generator=generator, dtype=torch.float64)
    direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    direction = torch.cat([direction, _mirrored(direction)])
    given = torch.tensor(condition, dtype=torch.float64).expand(len(direction), len(condition))
    phases = []
    for phase in (0.0, 1.0):
        total = torch.zeros(c, c, dtype=torch.float64)
        for i in range(QUADRATURE):
            e = direction[:, :, None, None] * (load * (i + 0.5) / QUADRATURE)
            moduli = law.moduli(e, torch.full((len(e), 1, 1), phase, dtype=torch.float64), given)
            total += moduli[..., 0, 0].mean(dim=0) / QUADRATURE
        phases.append(0.5 * (total + total.T))
    return torch.stack(phases)


def _mirrored(direction: Tensor) -> Tensor:
    """Directions with the first two components exchanged and the last one negated: the grid's symmetries."""
    swapped = direction[:, [1, 0, *range(2, direction.shape[1])]].clone()
    swapped[:, -1] = -swapped[:, -1]
    return swapped


def make_model(physics: Physics, sizes: Sizes, seed: int) -> NeuroScale:
    """A new operator with reproducible initial weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NeuroScale(physics, sizes)


def save_weights(model: NeuroScale, sizes: Sizes, path: Path) -> None:
    """Weights as safetensors, sizes and scales in its header; written atomically."""
    header = {"sizes": json.dumps(asdict(sizes)), "scales": json.dumps(scales_of(model))}
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, temporary, metadata=header)
    os.replace(temporary, path)


def load_weights(
    path: Path, problem: CellProblem, conditions: tuple[tuple[float, float], ...]
) -> tuple[NeuroScale, Sizes]:
    """The operator that `save_weights` wrote. Raises: ArtifactError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = load_file(path)
        sizes = Sizes(**_tuples(json.loads(header["sizes"])))
        scales = json.loads(header["scales"])
        physics = Physics(
            law=problem.law,
            green=problem.green,
            to_grid=problem.to_grid.float(),
            media=tensors["lippmann.media"],
            load_scale=scales["load_scale"],
            flux_scale=scales["flux_scale"],
            floor=problem.output_floor(),
            conditions=conditions,
        )
        model = make_model(physics, sizes, 0)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as cause:
        raise ArtifactError(f"{path}: the weights cannot be read ({cause}); train from nothing instead") from cause
    return model, sizes


def scales_of(model: NeuroScale) -> dict[str, float]:
    """Scales that are not among the tensors."""
    return {"load_scale": model.load_scale, "flux_scale": model.flux_scale}


def features_of(model: NeuroScale, phase: Tensor, chunk: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Forms, scalars and image (float16) of many micro structures, uint8 [n, y, x]; see `NeuroScale.features`."""

    def work(part: slice) -> tuple[Tensor, ...]:
        forms, scalars, image = model.features(phase[part].float())
        return forms, scalars, image.half()

    forms, scalars, image = in_parts(len(phase), work, chunk)
    return forms, scalars, image


def in_parts(n: int, work: Callable[[slice], tuple[Tensor, ...]], chunk: int = 32) -> tuple[Tensor, ...]:
    """Tensors [n, ...] that `work` computes for parts of n rows, without gradients, in several threads."""
    slices = [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]
    found: dict[int, tuple[Tensor, ...]] = {}

    def run(part: slice) -> None:
        with torch.no_grad():
            found[part.start] = work(part)

    workers = Workers()
    workers.run(run, slices)
    workers.close()
    return tuple(torch.cat(tensors) for tensors in zip(*(found[part.start] for part in slices), strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Train with one torch thread: the operations are too short to be split, and barriers cost dearly on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_statistics(model: NeuroScale, scalars: Tensor) -> None:
    """Normalisation of the scalar features from the training structures. scalars: [structures, features]."""
    std, mean = torch.std_mean(scalars, dim=0, correction=0)
    model.scalar_mean.copy_(mean)
    model.scalar_std.copy_(torch.clamp_min(std, 1e-6 + 1e-3 * math.sqrt(float((std**2).mean()))))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
