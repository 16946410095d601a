"""The contract of `correction.base.Correction`; add your own to CORRECTIONS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.correction.admissible import Admissible
from neuroscale_couple.correction.base import Correction
from neuroscale_couple.correction.conserve import Conserve
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, I64, U8, Batch, Points

PROBLEM = make_problem(schema.Problem(name="composite", grid=8))
COLUMNS = ("stress.xx", "stress.xy")

CORRECTIONS: dict[str, Callable[[], Correction]] = {
    "admissible": lambda: Admissible(PROBLEM),
    "conserve": lambda: Conserve(tuple(schema.Conserve(output=name) for name in COLUMNS), PROBLEM),
}
"""Every implementation."""

N = 60


class Answers:
    """A mixed answer that violates everything a correction may care about."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.inputs = rng.normal(0.0, 0.01, (N, 3))
        self.outputs = rng.normal(0.0, 100.0, (N, 3))
        self.tangent = rng.normal(0.0, 5e3, (N, 3, 3)) + np.diag([4e3, 4e3, 1e3])
        self.source: U8 = rng.choice(np.array([0, 1, 2], dtype=np.uint8), N)
        self.error = np.where(self.source == Source.FINE, 0.0, rng.uniform(0.001, 0.05, N))
        phase = generate(schema.Microstructure(size=(0.3, 0.5)), np.arange(N), 8, None)
        self.points = Points(np.arange(N), np.zeros((N, 2)), rng.uniform(0.5, 1.5, N), {"phase": phase})

    def corrected(self, correction: Correction, rows: I64 | None = None) -> tuple[F64, F64]:
        rows = np.arange(N) if rows is None else rows
        correction.attach(self.points.take(rows))
        outputs, tangent = self.outputs[rows], self.tangent[rows]
        batch = Batch(0, 0, 0.0, 1.0, self.inputs[rows], {"stress.xx": 100.0, "stress.xy": -30.0})
        correction.apply(batch, outputs, tangent, self.error[rows], self.source[rows])
        return outputs, tangent


@pytest.fixture(params=sorted(CORRECTIONS))
def correction(request: pytest.FixtureRequest) -> Correction:
    return CORRECTIONS[request.param]()


def test_fine_answers_stay_as_they_are_to_the_bit(correction: Correction) -> None:
    answers = Answers()
    fine = answers.source == Source.FINE
    outputs, tangent = answers.corrected(correction)
    assert np.array_equal(outputs[fine], answers.outputs[fine])
    assert np.array_equal(tangent[fine], answers.tangent[fine])
    assert not (np.array_equal(outputs, answers.outputs) and np.array_equal(tangent, answers.tangent))


def test_if_all_answers_are_fine_nothing_changes(correction: Correction) -> None:
    answers = Answers()
    answers.source[:], answers.error[:] = Source.FINE, 0.0
    outputs, tangent = answers.corrected(correction)
    assert np.array_equal(outputs, answers.outputs) and np.array_equal(tangent, answers.tangent)


def test_what_is_corrected_is_finite_and_correcting_again_changes_nothing_more(correction: Correction) -> None:
    answers = Answers()
    answers.outputs, answers.tangent = answers.corrected(correction)
    assert np.isfinite(answers.outputs).all() and np.isfinite(answers.tangent).all()
    outputs, tangent = answers.corrected(correction)
    np.testing.assert_allclose(outputs, answers.outputs, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(tangent, answers.tangent, rtol=1e-7, atol=1e-3)


def test_permuting_the_points_permutes_the_answers(correction: Correction) -> None:
    answers = Answers()
    order = np.random.default_rng(1).permutation(N)
    outputs, tangent = answers.corrected(correction)
    other_outputs, other_tangent = answers.corrected(correction, order)
    np.testing.assert_allclose(other_outputs, outputs[order], rtol=1e-10)
    np.testing.assert_allclose(other_tangent, tangent[order], rtol=1e-10)


def test_inputs_error_and_source_are_not_changed(correction: Correction) -> None:
    answers = Answers()
    kept = answers.inputs.copy(), answers.error.copy(), answers.source.copy()
    answers.corrected(correction)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (answers.inputs, answers.error, answers.source), strict=True))


def test_a_rank_without_points_is_no_problem(correction: Correction) -> None:
    outputs, tangent = Answers().corrected(correction, np.zeros(0, dtype=np.int64))
    assert outputs.shape == (0, 3) and tangent.shape == (0, 3, 3)
