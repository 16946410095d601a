"""Stage `physical`: exact answers pass, impossible ones never."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.gate.physical import Physical
from neuroscale_couple.kernels.definite import positive_definite
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.values import F64, I64, U8, FieldSpec, Layout, Points, Prediction
from tests.stand_ins import Solved

N = 12


class Setting(Solved):
    """A micro problem, its points, random inputs and their exact answers, and the stage."""

    def __init__(self, name: str, size: float) -> None:
        super().__init__(name, size, N, 1e-8)
        self.stage = Physical(schema.Gate(tolerance=0.02), self.problem)
        self.stage.attach(self.points, None)

    def judge(self, outputs: F64, tangent: F64, rows: I64 | None = None) -> list[int]:
        rows = np.arange(N) if rows is None else rows
        reason: U8 = np.zeros(len(rows), dtype=np.uint8)
        prediction = Prediction(rows, outputs, tangent, np.zeros(len(rows)))
        self.stage.accept(Source.SURROGATE_COARSE, self.inputs[rows], prediction, np.zeros(len(rows)), reason)
        return [int(r) for r in reason]


@pytest.fixture(scope="module", params=[("composite", 0.01), ("composite", 0.05), ("conduction", 10.0)])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(*request.param)


def test_exact_answers_pass(setting: Setting) -> None:
    assert not any(setting.judge(setting.answer.outputs, setting.answer.tangent))


def test_answers_within_the_tolerance_are_not_refused_for_their_energy(setting: Setting) -> None:
    exact = setting.answer.outputs
    rng = np.random.default_rng(2)
    for _ in range(20):
        direction = rng.normal(size=exact.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wrong = exact + 0.02 * direction * np.linalg.norm(exact, axis=1, keepdims=True)
        assert not any(setting.judge(wrong, setting.answer.tangent))


@pytest.mark.parametrize("factor", [-1.0, 0.02, 50.0])
def test_answers_beyond_voigt_and_reuss_are_refused(setting: Setting, factor: float) -> None:
    large = np.linalg.norm(setting.answer.outputs, axis=1) > 10 * setting.problem.output_floor()
    assert large.any()
    outputs = setting.answer.outputs.copy()
    outputs[large] *= factor
    expected = np.where(large, Reason.OUT_OF_BOUNDS, 0).tolist()
    assert setting.judge(outputs, setting.answer.tangent) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["outputs", "tangent"])
def test_an_answer_that_is_not_finite_is_refused_alone(setting: Setting, value: float, where: str) -> None:
    arrays = {"outputs": setting.answer.outputs.copy(), "tangent": setting.answer.tangent.copy()}
    arrays[where][(4, *[0] * (arrays[where].ndim - 1))] = value
    expected = [0] * N
    expected[4] = Reason.NOT_FINITE
    assert setting.judge(arrays["outputs"], arrays["tangent"]) == expected


def test_a_tangent_that_is_not_positive_definite_is_refused_alone(setting: Setting) -> None:
    tangent = setting.answer.tangent.copy()
    tangent[7, :, 0] *= -1.0
    expected = [0] * N
    expected[7] = Reason.NOT_POSITIVE_DEFINITE
    assert setting.judge(setting.answer.outputs, tangent) == expected


def test_rows_are_matched_with_their_own_micro_structure(setting: Setting) -> None:
    rows = np.array([9, 2, 5])
    assert setting.judge(setting.answer.outputs[rows], setting.answer.tangent[rows], rows) == [0, 0, 0]
    outputs = setting.answer.outputs[rows] * [[1.0], [50.0], [1.0]]
    assert setting.judge(outputs, setting.answer.tangent[rows], rows)[0::2] == [0, 0]


def test_a_problem_without_bounds_is_checked_for_the_rest() -> None:
    class Opaque:
        inputs = Layout((FieldSpec("in", ("a", "b", "c"), "1"),))
        outputs = Layout((FieldSpec("out", ("a", "b"), "1"),))

        def output_floor(self) -> float:
            return 1.0

    problem: Any = Opaque()
    stage = Physical(schema.Gate(), problem)
    stage.attach(Points(np.arange(3), np.zeros((3, 2)), np.ones(3)), None)
    reason = np.zeros(3, dtype=np.uint8)
    outputs, tangent = np.ones((3, 2)), np.tile(np.eye(2, 3), (3, 1, 1))
    outputs[0, 0], tangent[2, 1, 1] = np.nan, -1.0
    stage.accept(
        Source.SURROGATE_COARSE,
        np.ones((3, 3)),
        Prediction(np.arange(3), outputs, tangent, np.zeros(3)),
        np.zeros(3),
        reason,
    )
    assert reason.tolist() == [Reason.NOT_FINITE, 0, Reason.NOT_POSITIVE_DEFINITE]


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_definiteness_by_minors_is_definiteness_by_eigenvalues(d: int) -> None:
    rng = np.random.default_rng(d)
    matrix = rng.normal(size=(4000, d, d)) + rng.uniform(0, 3, (4000, 1, 1)) * np.eye(d)
    lowest = np.linalg.eigvalsh(0.5 * (matrix + matrix.transpose(0, 2, 1)))[:, 0]
    assert np.array_equal(positive_definite(matrix), lowest > 0.0)
    assert 0.1 < np.mean(lowest > 0.0) < 0.9
    assert not positive_definite(np.full((1, d, d), np.nan)).any()
