"""Training: data from the fine solver, losses, and calibrated artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from neuroscale_couple.config import schema
    from neuroscale_couple.physics.base import MicroProblem
    from neuroscale_couple.training.dataset import Dataset, Progress


def fit(
    problem: MicroProblem,
    data: Dataset,
    settings: schema.Training,
    out: Path,
    *,
    seconds: float | None = None,
    max_steps: int | None = None,
    start: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train on fine answers and write a calibrated artifact to `out`, its weights beside it as safetensors.

    seconds, max_steps: budget, whichever ends first; without either `settings.epochs` passes over the data
    start: artifact to go on from (its weights lie beside it)
    Raises: ArtifactError, ValueError if the data are too few.
    """
    from neuroscale_couple.training.fitting import fit as run

    return run(problem, data, settings, out, seconds=seconds, max_steps=max_steps, start=start, progress=progress)


def train_from_config(config: schema.Config, folder: Path, progress: Any = None) -> Path:
    """Make the data of a case (or what is missing of it) and train its model; returns the artifact's path.

    folder: of the config file. Raises: ConfigError.
    """
    from neuroscale_couple.training.fitting import train_case

    return train_case(config.neuroscale, folder, progress)


__all__ = ["fit", "train_from_config"]
