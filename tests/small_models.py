"""Small trained artifacts for tests: a few micro structures, a few steps, made once per session."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from neuroscale_couple.config import schema
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.training import fit
from neuroscale_couple.training.dataset import Dataset, generate_data

RANGES = {
    "composite": {"strain.xx": (-0.03, 0.03), "strain.yy": (-0.03, 0.03), "strain.xy": (-0.03, 0.03)},
    "conduction": {"gradient.x": (-1.0, 1.0), "gradient.y": (-1.0, 1.0), "temperature": (250.0, 350.0)},
}


def settings(name: str, grid: int = 16, structures: int = 24) -> schema.Neuroscale:
    """Configuration of a small training."""
    return schema.Neuroscale(
        problem=schema.Problem(name=name, grid=grid),
        microstructure=schema.Microstructure(size=(0.2, 0.4)),
        model="model.pt",
        training=schema.Training(
            structures=structures, loads=4, load_range=RANGES[name], epochs=150, members=2, width=8
        ),
    )


@lru_cache
def problem(name: str, grid: int = 16) -> CellProblem:
    """The micro problem of that configuration."""
    made = make_problem(settings(name, grid).problem)
    assert isinstance(made, CellProblem)
    return made


@lru_cache
def data(name: str) -> Dataset:
    """Fine answers on 24 micro structures."""
    return generate_data(settings(name), problem(name), Path(mkdtemp()))


@lru_cache
def artifact(name: str) -> Path:
    """A trained artifact."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    path = fit(problem(name), data(name), settings(name).training, Path(mkdtemp()) / "model.pt")
    torch.set_num_threads(before)
    return path
