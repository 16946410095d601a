"""From fine answers to a calibrated artifact."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.operator.export import archive, to_torchscript
from neuroscale_couple.operator.neuroscale import NeuroScale, Sizes
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.base import CellProblem, MicroProblem
from neuroscale_couple.surrogate import artifact
from neuroscale_couple.training.consistency import consistency_data
from neuroscale_couple.training.dataset import Dataset, Progress, generate_data, load_ranges
from neuroscale_couple.training.evidence import calibrate, fit_score, make_card
from neuroscale_couple.training.model import (
    load_weights,
    make_model,
    make_physics,
    one_thread,
    save_weights,
    set_statistics,
)
from neuroscale_couple.training.trainer import BATCH, Budget, CoarseTrainer, Table, train_fine_head
from neuroscale_couple.values import F64

LEAST_STRUCTURES = 8
STRETCH = 1.25
"""Loads of a run without probes are stretched by this factor, as far as the configured range."""
RATE, RATE_AGAIN = 4e-3, 1e-3
"""Learning rate of a new model and of one that is trained further."""


@dataclass(frozen=True)
class Plan:
    """How a training uses its budget.

    steps, seconds: of the coarse head; fine_steps, fine_seconds: of the fine head
    consistent: structures with consistency loads; fine_pairs: calibration pairs of the fine rung
    """

    steps: int
    seconds: float | None
    fine_steps: int
    fine_seconds: float | None
    consistent: int
    fine_pairs: int


def fit(
    problem: MicroProblem,
    data: Dataset,
    settings: schema.Training,
    out: Path,
    *,
    seconds: float | None = None,
    max_steps: int | None = None,
    start: Path | None = None,
    expected: F64 | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train on fine answers and write a calibrated artifact to `out`, its weights beside it as safetensors.

    seconds, max_steps: budget, whichever ends first; without either `settings.epochs` passes over the data
    start: artifact to go on from (its weights lie beside it)
    expected: float64 [k, n_in], loads that a run may meet, for the consistency term
    Raises: ArtifactError, ValueError if the data are too few.
    """
    begun = time.perf_counter()
    if not isinstance(problem, CellProblem):
        raise ConfigError(f"training: {problem.name!r} is not a periodic cell; only those can be trained")
    training, held = split(data, settings)
    stretch = STRETCH if expected is None else 1.0
    ranges = ranges_of(problem, settings, training, offline=seconds is None and max_steps is None, stretch=stretch)
    model, sizes, parent = _model(problem, settings, ranges, start)
    if start is not None:
        known = np.asarray(artifact.read(start)[1].input_range)
        ranges = np.stack([np.minimum(ranges[:, 0], known[:, 0]), np.maximum(ranges[:, 1], known[:, 1])], axis=1)
    scripted = to_torchscript(model)
    rng = np.random.default_rng(settings.seed)
    structures = np.unique(training.structure)
    plan = _plan(settings, len(structures), seconds, max_steps, start is not None)
    extra = consistency_data(model, problem, training, structures[: plan.consistent], ranges, settings.seed, expected)
    both = _together(training, extra)
    table = Table(model, both)
    if start is None:
        set_statistics(model, table.scalars)
    if seconds is not None:
        table.freeze_pyramid(model)
        reserve = 0.15 * seconds + 1.5
        plan = _shorten(plan, max(seconds - (time.perf_counter() - begun) - reserve, 0.2 * seconds))
    checkpoint = out.with_name(out.name + ".training") if seconds is None else None
    identity = f"{data.sha256} {json.dumps(problem.signature)} {settings.model_dump_json()} {parent}"
    trainer = CoarseTrainer(model, table, settings.seed, RATE if start is None else RATE_AGAIN, checkpoint, identity)
    tick = _ticker(progress)
    with one_thread():
        trainer.run(Budget(plan.steps, plan.seconds), tick)
        train_fine_head(model, training, Budget(plan.fine_steps, plan.fine_seconds), settings.seed)
    scoring, calibration = halves(held)
    fit_score(model, scoring, problem.output_floor())
    evidence = calibrate(model, calibration, problem.output_floor(), plan.fine_pairs, rng)
    card = make_card(problem, training, (both.inputs, ranges), evidence, parent)
    artifact.write(out, archive(scripted, {artifact.CARD: card.model_dump_json()}))
    save_weights(model, sizes, out.with_suffix(".safetensors"))
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return out


def train_case(config: schema.Neuroscale, folder: Path, progress: Progress | None = None) -> Path:
    """Make the data of a case (or what is missing of it) and train its model; returns the artifact's path.

    folder: of the config file. Raises: ConfigError.
    """
    problem = make_problem(config.problem)
    if not isinstance(problem, CellProblem):
        raise ConfigError(f"problem.name: {problem.name!r} is not a periodic cell; only those can be trained")
    if config.model is None:
        raise ConfigError("neuroscale.model names no file for the trained model, e.g. model: model.pt")
    data = generate_data(config, problem, folder, progress)
    return fit(problem, data, config.training, folder / config.model, progress=progress)


def split(data: Dataset, settings: schema.Training) -> tuple[Dataset, Dataset]:
    """Structures to train on and held-out ones. Raises: ValueError if there are too few."""
    structures = np.unique(data.structure)
    held = min(len(structures) - 1, max(2, round(settings.hold_out * len(structures))))
    if len(structures) < LEAST_STRUCTURES:
        raise ValueError(
            f"{len(structures)} micro structures are too few to train on, at least {LEAST_STRUCTURES} are needed"
        )
    order = np.random.default_rng(settings.seed).permutation(structures)
    return data.take_structures(np.sort(order[held:])), data.take_structures(np.sort(order[:held]))


def halves(held: Dataset) -> tuple[Dataset, Dataset]:
    """Held-out structures for the score (a third) and for its calibration (the rest), at least one each."""
    structures = np.arange(len(held.phase))
    first = max(1, len(structures) // 3)
    return held.take_structures(structures[:first]), held.take_structures(structures[first:])


def ranges_of(
    problem: CellProblem, settings: schema.Training, data: Dataset, offline: bool, stretch: float = STRETCH
) -> F64:
    """Loads that the model is trained for, float64 [n_in, 2].

    Offline: the configured range. In a run: the loads met so far, stretched about zero but not beyond the
    configured range; conditions are not stretched.
    """
    configured = load_ranges(problem, settings) if settings.load_range else None
    if offline and configured is not None:
        return configured
    low, high = data.inputs.min(axis=0), data.inputs.max(axis=0)
    drive = problem.driving
    low[drive], high[drive] = stretch * np.minimum(low[drive], 0.0), stretch * np.maximum(high[drive], 0.0)
    met = np.stack([low, high], axis=1)
    met[:, 1] += 1e-9 + 1e-3 * np.abs(met).max(axis=1)
    if configured is None:
        return met
    inside = np.stack([np.maximum(met[:, 0], configured[:, 0]), np.minimum(met[:, 1], configured[:, 1])], axis=1)
    wider = np.stack([data.inputs.min(axis=0), data.inputs.max(axis=0)], axis=1)
    return np.stack([np.minimum(inside[:, 0], wider[:, 0]), np.maximum(inside[:, 1], wider[:, 1])], axis=1)


def _model(
    problem: CellProblem, settings: schema.Training, ranges: F64, start: Path | None
) -> tuple[NeuroScale, Sizes, str | None]:
    """A new model, or the one to go on from; with the SHA-256 of the latter's artifact."""
    if start is None:
        sizes = Sizes(members=settings.members, width=settings.width)
        full = load_ranges(problem, settings) if settings.load_range else ranges
        return make_model(make_physics(problem, full), sizes, settings.seed), sizes, None
    _, _, digest = artifact.read(start)
    full = load_ranges(problem, settings) if settings.load_range else ranges
    model, sizes = load_weights(start.with_suffix(".safetensors"), problem, make_physics(problem, full).conditions)
    return model, sizes, digest


def _plan(
    settings: schema.Training, structures: int, seconds: float | None, max_steps: int | None, again: bool
) -> Plan:
    offline = seconds is None and max_steps is None
    if offline:
        steps = settings.epochs * -(-structures // BATCH)
        return Plan(steps, None, 200, None, structures, 2000)
    time = seconds if seconds is not None else 20.0
    steps = max_steps if max_steps is not None else 10**9
    return Plan(steps, seconds, 0 if again else 20, 0.1 * time, min(structures, round(25.0 * time)), 400)


def _shorten(plan: Plan, seconds: float) -> Plan:
    fine = 0.0 if plan.fine_steps == 0 else 0.1 * seconds
    return Plan(plan.steps, seconds - fine, plan.fine_steps, fine, plan.consistent, plan.fine_pairs)


def _together(first: Dataset, second: Dataset) -> Dataset:
    """Samples of both data sets on the same structures."""
    return Dataset(
        first.phase,
        np.concatenate([first.structure, second.structure]),
        np.concatenate([first.inputs, second.inputs]),
        np.concatenate([first.outputs, second.outputs]),
        np.concatenate([first.tangent, second.tangent]),
    )


def _ticker(progress: Progress | None) -> Callable[[float], None] | None:
    """Moves a bar of 100 parts with the share of the budget."""
    if progress is None:
        return None
    bar: Progress = progress
    task = bar.add_task("training", total=100.0)
    done = 0.0

    def tick(share: float) -> None:
        nonlocal done
        bar.advance(task, 100.0 * (share - done))
        done = share

    return tick
