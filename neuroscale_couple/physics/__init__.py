"""Micro problems: the single source of the physics at a point."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from neuroscale_couple.errors import ConfigError

if TYPE_CHECKING:
    from neuroscale_couple.config.schema import Problem
    from neuroscale_couple.physics.base import MicroProblem

_KNOWN = {
    "composite": "neuroscale_couple.physics.composite:Composite",
    "conduction": "neuroscale_couple.physics.conduction:Conduction",
    "opaque": "neuroscale_couple.physics.opaque:from_settings",
}


def make_problem(settings: Problem) -> MicroProblem:
    """The micro problem that the config names: one of ours, or `package.module:Class` of the user.

    A class is called with the problem section of the config.

    Raises: ConfigError if the name is unknown, cannot be imported or its settings are wrong.
    """
    path = _KNOWN.get(settings.name, settings.name)
    module, _, name = path.partition(":")
    if not name:
        raise ConfigError(
            f"problem.name: {settings.name!r} is unknown; use one of {sorted(_KNOWN)}"
            " or package.module:Class of your own"
        )
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as cause:
        raise ConfigError(
            f"problem.name: cannot load {settings.name!r} ({cause}); is it on the Python path?"
        ) from cause
    problem: MicroProblem = factory(settings)
    return problem
