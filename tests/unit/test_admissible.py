"""Correction `admissible`: a projection that only touches what violates, and never a fine answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.correction.admissible import Admissible
from neuroscale_couple.kernels.admissible import clip_between
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, U8, Batch, FieldSpec, Layout, Points
from tests.stand_ins import Solved

N = 30


class Setting(Solved):
    """A micro problem with points, inputs, and exact tangents."""

    def __init__(self, name: str, size: float) -> None:
        super().__init__(name, size, N, 1e-10)
        self.outputs, self.tangent = self.answer.outputs, self.answer.tangent
        self.driving = self.problem.driving
        shares = self.phase.mean(axis=(1, 2))[:, None, None]
        self.lower, self.upper = self.problem.tangent_bounds(self.inputs, shares)
        self.correction = Admissible(self.problem)
        self.correction.attach(self.points)

    def corrected(self, tangent: F64, source: U8 | None = None) -> F64:
        tangent, outputs = tangent.copy(), self.outputs.copy()
        source = np.zeros(N, np.uint8) if source is None else source
        self.correction.apply(Batch(0, 0, 0.0, 1.0, self.inputs), outputs, tangent, np.zeros(N), source)
        assert np.array_equal(outputs, self.outputs)
        return tangent

    def noisy(self, size: float) -> F64:
        noise = np.random.default_rng(5).normal(size=self.tangent.shape)
        return self.tangent + size * noise * np.abs(self.tangent).max(axis=(1, 2), keepdims=True)


@pytest.fixture(scope="module", params=[("composite", 0.01), ("conduction", 10.0)])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(*request.param)


def lowest(matrix: F64) -> F64:
    return np.asarray(np.linalg.eigvalsh(0.5 * (matrix + matrix.transpose(0, 2, 1)))[:, 0])


def test_an_exact_tangent_stays_as_it_is(setting: Setting) -> None:
    exact = setting.tangent.copy()
    block = exact[:, :, setting.driving]
    block[:] = 0.5 * (block + block.transpose(0, 2, 1))
    assert np.array_equal(setting.corrected(exact), exact)


@pytest.mark.parametrize("size", [1e-6, 0.05, 1.0])
def test_the_corrected_tangent_is_symmetric_and_between_its_bounds(setting: Setting, size: float) -> None:
    block = setting.corrected(setting.noisy(size))[:, :, setting.driving]
    assert np.array_equal(block, block.transpose(0, 2, 1))
    slack = 1e-8 * np.trace(setting.upper, axis1=1, axis2=2)
    assert (lowest(block - setting.lower) >= -slack).all()
    assert (lowest(setting.upper - block) >= -slack).all()


def test_correcting_twice_changes_nothing_more(setting: Setting) -> None:
    once = setting.corrected(setting.noisy(0.5))
    np.testing.assert_allclose(setting.corrected(once), once, rtol=1e-7, atol=1e-8 * np.abs(once).max())


def test_fine_answers_stay_as_they_are_to_the_bit(setting: Setting) -> None:
    tangent = setting.noisy(0.5)
    source = np.where(np.arange(N) % 2 == 0, Source.FINE, Source.SURROGATE_FINE).astype(np.uint8)
    result = setting.corrected(tangent, source)
    assert np.array_equal(result[::2], tangent[::2])
    assert np.array_equal(result[1::2], setting.corrected(tangent)[1::2])
    assert not np.array_equal(result[1::2], tangent[1::2])


def test_columns_of_inputs_that_do_not_drive_the_field_are_not_touched(setting: Setting) -> None:
    tangent = setting.noisy(0.5)
    rest = slice(setting.driving.stop, None)
    assert np.array_equal(setting.corrected(tangent)[:, :, rest], tangent[:, :, rest])


def test_only_violating_rows_are_moved(setting: Setting) -> None:
    tangent = setting.corrected(setting.noisy(0.2))
    broken = tangent.copy()
    broken[3, :, setting.driving] *= 1e3
    result = setting.corrected(broken)
    others = np.arange(N) != 3
    assert np.array_equal(result[others], tangent[others])
    assert not np.array_equal(result[3], broken[3])


def test_clipping_is_a_projection_onto_the_interval() -> None:
    rng = np.random.default_rng(2)
    root = rng.normal(size=(200, 3, 3))
    lower = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(3)
    gap = rng.normal(size=(200, 3, 3))
    upper = lower + gap @ gap.transpose(0, 2, 1)
    inside = lower + 0.3 * (upper - lower)
    np.testing.assert_allclose(clip_between(inside, lower, upper), inside, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(clip_between(lower - np.eye(3), lower, upper), lower, atol=1e-10)
    np.testing.assert_allclose(clip_between(upper + np.eye(3), lower, upper), upper, atol=1e-9)


def test_bounds_that_coincide_leave_one_answer() -> None:
    only = np.diag([2.0, 3.0])[None]
    np.testing.assert_allclose(clip_between(np.array([[[7.0, 1.0], [1.0, -4.0]]]), only, only), only, atol=1e-10)


def test_without_bounds_an_indefinite_tangent_becomes_definite_and_others_stay() -> None:
    class Opaque:
        inputs = Layout((FieldSpec("in", ("a", "b", "c"), "1"),))
        outputs = Layout((FieldSpec("out", ("a", "b", "c"), "1"),))

    problem: Any = Opaque()
    correction = Admissible(problem)
    correction.attach(Points(np.arange(3), np.zeros((3, 2)), np.ones(3)))
    tangent = np.stack([np.diag([1.0, 2.0, 3.0]), np.diag([-1.0, 2.0, 4.0]), np.diag([-1.0, 2.0, 4.0])])
    before = tangent.copy()
    source = np.array([0, 0, Source.FINE], dtype=np.uint8)
    correction.apply(Batch(0, 0, 0.0, 1.0, np.zeros((3, 3))), np.zeros((3, 3)), tangent, np.zeros(3), source)
    assert np.array_equal(tangent[[0, 2]], before[[0, 2]])
    np.testing.assert_allclose(tangent[1], np.diag([4e-6, 2.0, 4.0]), atol=1e-12)


def test_a_problem_whose_tangent_is_not_square_is_left_alone() -> None:
    class Wide:
        inputs = Layout((FieldSpec("in", ("a", "b", "c"), "1"),))
        outputs = Layout((FieldSpec("out", ("a",), "1"),))
        driving = slice(0, 3)

    problem: Any = Wide()
    correction = Admissible(problem)
    correction.attach(Points(np.arange(2), np.zeros((2, 2)), np.ones(2)))
    tangent = np.full((2, 1, 3), -1.0)
    correction.apply(
        Batch(0, 0, 0.0, 1.0, np.zeros((2, 3))), np.zeros((2, 1)), tangent, np.zeros(2), np.zeros(2, np.uint8)
    )
    assert (tangent == -1.0).all()
