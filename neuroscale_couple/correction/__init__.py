"""What makes the mixed answer fit for the macro solver: admissible tangents, then conservation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroscale_couple.config import schema
    from neuroscale_couple.correction.base import Correction
    from neuroscale_couple.physics.base import MicroProblem


def make_corrections(settings: schema.Correction, problem: MicroProblem, comm: Any = None) -> tuple[Correction, ...]:
    """The configured corrections in the order they are applied; conservation comes last.

    comm: mpi4py communicator of the service ranks, or None
    Raises: ConfigError if a balance names an unknown output column.
    """
    made: list[Correction] = []
    if settings.admissible:
        from neuroscale_couple.correction.admissible import Admissible

        made.append(Admissible(problem))
    if settings.conserve:
        from neuroscale_couple.correction.conserve import Conserve

        made.append(Conserve(settings.conserve, problem, comm, settings.groups))
    return tuple(made)


__all__ = ["make_corrections"]
