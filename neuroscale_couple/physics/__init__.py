"""Micro problems: the single source of the physics at a point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroscale_couple.config.named import make

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
    from neuroscale_couple.physics.base import MicroProblem

    problem: MicroProblem = make("problem.name", settings.name, _KNOWN, MicroProblem, settings)
    return problem
