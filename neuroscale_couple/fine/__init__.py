"""Fine solvers: the trusted answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroscale_couple.config.named import make

if TYPE_CHECKING:
    from neuroscale_couple.config.schema import Fine, Gate
    from neuroscale_couple.fine.base import FineSolver
    from neuroscale_couple.physics.base import MicroProblem

_KNOWN = {
    "fft_cell": "neuroscale_couple.fine.fft_cell:FftCell",
    "micro_manager": "neuroscale_couple.fine.micro_manager:MicroManager",
}


def make_fine_solver(settings: Fine, problem: MicroProblem) -> FineSolver:
    """The fine solver that the config names: one of ours, or `package.module:Class` of the user.

    A class is called with the fine section of the config and the micro problem.

    Raises: ConfigError if the name is unknown, cannot be imported or does not fit the problem.
    """
    from neuroscale_couple.fine.base import FineSolver

    solver: FineSolver = make("fine.solver", settings.solver, _KNOWN, FineSolver, settings, problem)
    return solver


def share_answers(solver: FineSolver, settings: Fine, problem: MicroProblem, gate: Gate) -> FineSolver:
    """The solver, wrapped so that alike points are solved once where the config says so; never with a closed gate."""
    wanted = settings.alike == "on" or (settings.alike == "auto" and not problem.has_tangent)
    if not wanted or not gate.open:
        return solver
    from neuroscale_couple.fine.alike import Alike

    return Alike(solver, problem, gate.tolerance)
