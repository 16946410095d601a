"""What several test files stand in for or start from: surrogates with one rung, cell problems with exact answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, I64, Points


class CoarseOnly(Surrogate):
    """A surrogate with a coarse head alone; a test says what it predicts."""

    version = 0

    @property
    def rungs(self) -> tuple[Source, ...]:
        return (Source.SURROGATE_COARSE,)

    def attach(self, points: Points) -> None:
        self.points = points

    def fields(self, rows: I64, inputs: F64) -> None:
        return None


def card(problem: Any, score: F64, error: F64, reach: float = 1.0, floor: float = 1.0) -> Card:
    """The card of such a surrogate. score, error: float64 [k], its calibration; reach: inputs from -reach to reach."""
    table = Calibration(score=score.tolist(), error=error.tolist())
    return Card(
        problem=problem, input_range=[(-reach, reach)] * 3, output_floor=floor, domain={},
        calibration={"surrogate_coarse": table}, metrics={}, versions={}, data_sha256="",
    )  # fmt: skip


class Solved:
    """A cell problem on 8 x 8 pixels at some points, random inputs, and the fine solver's answers."""

    def __init__(self, name: str, size: float, points: int, tolerance: float) -> None:
        """size: of the inputs; tolerance: of the fine solver."""
        n = np.arange(points)
        self.problem = make_problem(schema.Problem(name=name, grid=8))
        self.phase = generate(schema.Microstructure(size=(0.3, 0.5)), n, 8, None)
        self.points = Points(n, np.zeros((points, 2)), np.ones(points), {"phase": self.phase})
        self.inputs = np.random.default_rng(1).normal(0.0, size, (points, self.problem.inputs.size))
        if name == "conduction":
            self.inputs[:, 2] = 300.0
        fine = make_fine_solver(schema.Fine(tolerance=tolerance), self.problem)
        fine.attach(self.points)
        self.answer = fine.solve(n, self.inputs)
