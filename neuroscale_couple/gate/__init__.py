"""Who may answer a point: stages that refuse inputs or answers, run in order by `chain.Gate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroscale_couple.config import schema
    from neuroscale_couple.gate.chain import Gate
    from neuroscale_couple.physics.base import MicroProblem


def make_gate(settings: schema.Gate, problem: MicroProblem, comm: Any = None) -> Gate:
    """The gate of a run: the stages named in the configuration, in that order.

    comm: mpi4py communicator of the service ranks, or None
    Raises: ConfigError if a stage is unknown or cannot be built.
    """
    from neuroscale_couple.gate.chain import Gate

    return Gate(settings, problem, comm)


__all__ = ["make_gate"]
