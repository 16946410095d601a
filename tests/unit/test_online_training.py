"""Learning from nothing with the real fine solver, the real operator and the real artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.learning import make_learner
from neuroscale_couple.learning.select import held_out
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import Points, relative_error

N, GRID = 200, 8  # a fifth of them calibrates; fewer could certify nothing


@pytest.mark.slow
def test_a_first_surrogate_is_learnt_and_trained_further(tmp_path: Path) -> None:
    problem = make_problem(schema.Problem(name="composite", grid=GRID))
    ids = np.arange(N)
    phase = generate(schema.Microstructure(size=(0.3, 0.5)), ids, GRID, None)
    points = Points(ids, np.zeros((N, 2)), np.ones(N), {"phase": phase})
    fine = make_fine_solver(schema.Fine(tolerance=1e-5), problem)
    fine.attach(points)
    settings = schema.Learning(mode="online", seconds=3.0, min_samples=100, first_samples=100, max_trainings=2)
    learner = make_learner(settings, schema.Training(members=2, width=8), problem, tmp_path)
    assert learner is not None
    learner.attach(points)

    rng = np.random.default_rng(0)
    surrogate = None
    for window in range(2):
        for _ in range(8):
            inputs = rng.normal(0.0, 0.005, (N, 3))
            learner.observe(window, inputs, fine.solve(ids, inputs))
        surrogate = learner.propose(window, surrogate) or surrogate
        assert surrogate is not None

    history = [json.loads(line) for line in (tmp_path / "models" / "history.jsonl").read_text().splitlines()]
    assert history[0]["decision"] == "promoted" and history[0]["start"] is None
    assert history[1]["decision"] in ("promoted", "rejected") and history[1]["start"].endswith("v001.pt")

    rows = np.flatnonzero(held_out(ids, settings.hold_out))
    inputs = rng.normal(0.0, 0.004, (len(rows), 3))
    best = surrogate.predict(Source.SURROGATE_FINE, rows, inputs)
    error = relative_error(best.outputs, fine.solve(rows, inputs).outputs, problem.output_floor())
    assert np.median(error) < 0.02
