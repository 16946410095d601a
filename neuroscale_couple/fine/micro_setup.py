"""What the configuration says of a user's micro simulations: what workers load, and how many there are."""

from __future__ import annotations

import os
from pathlib import Path

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine.jobs import Spec
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.values import Layout


def spec_of(settings: schema.Fine, problem: MicroProblem) -> Spec:
    """What workers load. Raises: ConfigError"""
    if settings.micro.file is None:
        raise ConfigError("fine.micro.file is missing; it is the Python file of the class MicroSimulation")
    if not isinstance(problem, OpaqueProblem):
        raise ConfigError(f"fine.solver: micro_manager solves problem.name: opaque, not {problem.name!r}")
    file = Path(settings.micro.file)
    folder = Path(settings.micro.folder or ".").resolve()
    module = ".".join(file.with_suffix("").parts if file.suffix == ".py" else Path(str(file).replace(".", "/")).parts)
    return Spec(module, (str(folder), os.getcwd()), sizes(problem.inputs), sizes(problem.outputs))


def sizes(layout: Layout) -> tuple[tuple[str, int], ...]:
    """Name and size of each field; 0: a scalar."""
    return tuple((f.name, 0 if f.components == ("",) else len(f.components)) for f in layout.fields)
