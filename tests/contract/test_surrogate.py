"""Every surrogate: rows are independent, tangents are derivatives, NaN stays NaN, errors are plain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate import load
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.training.dataset import Dataset
from neuroscale_couple.values import Points, relative_error
from tests import small_models


@dataclass
class Case:
    """An implementation under test. Add your own to CASES."""

    make: Callable[[], Surrogate]
    problem: CellProblem
    data: Dataset
    accuracy: float


CASES = {
    name: lambda name=name: Case(
        lambda: load(small_models.artifact(name), small_models.problem(name), "cpu"),
        small_models.problem(name),
        small_models.data(name),
        0.2,
    )
    for name in ("composite", "conduction")
}


@pytest.fixture(params=sorted(CASES), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture
def surrogate(case: Case) -> Surrogate:
    made = case.make()
    made.attach(points_of(case))
    return made


def points_of(case: Case) -> Points:
    n = len(case.data.phase)
    return Points(np.arange(n), np.zeros((n, 2)), np.ones(n), {"phase": case.data.phase})


def rungs() -> list[Source]:
    return [Source.SURROGATE_COARSE, Source.SURROGATE_FINE]


def test_rungs_come_cheapest_first(surrogate: Surrogate) -> None:
    assert list(surrogate.rungs) == sorted(surrogate.rungs)
    assert set(surrogate.rungs) <= set(rungs())


def test_card_belongs_to_the_problem_and_has_evidence_for_every_rung(surrogate: Surrogate, case: Case) -> None:
    assert surrogate.card.problem["name"] == case.problem.name
    assert len(surrogate.card.input_range) == case.problem.inputs.size
    for rung in surrogate.rungs:
        known = surrogate.card.calibration[rung.name.lower()]
        assert len(known.score) == len(known.error) > 0
        assert np.isfinite(known.score).all() and np.isfinite(known.error).all()
        assert min(known.error) >= 0.0 and min(known.score) >= 0.0


@pytest.mark.parametrize("rung", rungs())
def test_answers_are_near_the_fine_ones(surrogate: Surrogate, case: Case, rung: Source) -> None:
    answer = surrogate.predict(rung, case.data.structure, case.data.inputs)
    error = relative_error(answer.outputs, case.data.outputs, case.problem.output_floor())
    assert np.median(error) < case.accuracy
    assert answer.outputs.dtype == answer.tangent.dtype == answer.score.dtype == np.float64
    assert (answer.score >= 0.0).all()
    np.testing.assert_array_equal(answer.rows, case.data.structure)


@pytest.mark.parametrize("rung", rungs())
def test_answers_do_not_depend_on_the_other_rows(surrogate: Surrogate, case: Case, rung: Source) -> None:
    rows, inputs = case.data.structure, case.data.inputs
    order = np.random.default_rng(3).permutation(len(rows))[:30]
    whole = surrogate.predict(rung, rows, inputs)
    part = surrogate.predict(rung, rows[order], inputs[order])
    size = np.abs(whole.outputs).max()
    np.testing.assert_allclose(part.outputs, whole.outputs[order], atol=2e-5 * size)
    np.testing.assert_allclose(part.tangent, whole.tangent[order], atol=2e-5 * np.abs(whole.tangent).max())


@pytest.mark.parametrize("rung", rungs())
def test_answers_follow_permuted_points(case: Case, rung: Source) -> None:
    order = np.random.default_rng(4).permutation(len(case.data.phase))
    straight, permuted = case.make(), case.make()
    straight.attach(points_of(case))
    permuted.attach(points_of(case).take(order))
    rows = np.arange(len(order), dtype=np.int64)
    inputs = case.data.inputs[np.searchsorted(case.data.structure, rows) % len(case.data)]
    one = straight.predict(rung, order, inputs[order])
    other = permuted.predict(rung, rows, inputs[order])
    np.testing.assert_allclose(other.outputs, one.outputs, atol=2e-5 * np.abs(one.outputs).max())


def test_coarse_tangent_is_the_derivative_of_the_outputs(surrogate: Surrogate, case: Case) -> None:
    rows, inputs = case.data.structure, case.data.inputs
    answer = surrogate.predict(Source.SURROGATE_COARSE, rows, inputs)
    spans = np.ptp(np.asarray(surrogate.card.input_range), axis=1)
    for column, span in enumerate(spans):
        step = 3e-3 * span
        moved = [inputs.copy(), inputs.copy()]
        moved[0][:, column] -= step
        moved[1][:, column] += step
        low, high = (surrogate.predict(Source.SURROGATE_COARSE, rows, m).outputs for m in moved)
        slope = (high - low) / (2.0 * step)
        size = np.abs(answer.tangent[:, :, column]).max()
        np.testing.assert_allclose(answer.tangent[:, :, column], slope, atol=5e-3 * size)


@pytest.mark.parametrize("rung", rungs())
def test_driving_tangent_is_symmetric_positive_definite(surrogate: Surrogate, case: Case, rung: Source) -> None:
    block = surrogate.predict(rung, case.data.structure, case.data.inputs).tangent[:, :, case.problem.driving]
    np.testing.assert_array_equal(block, np.swapaxes(block, 1, 2))
    assert np.linalg.eigvalsh(block).min() > 0.0


@pytest.mark.parametrize("rung", rungs())
def test_no_load_gives_no_output(surrogate: Surrogate, case: Case, rung: Source) -> None:
    inputs = case.data.inputs[:5].copy()
    inputs[:, case.problem.driving] = 0.0
    answer = surrogate.predict(rung, np.arange(5), inputs)
    np.testing.assert_allclose(answer.outputs, 0.0, atol=1e-6 * np.abs(case.data.outputs).max())
    assert np.isfinite(answer.tangent).all() and np.isfinite(answer.score).all()


@pytest.mark.parametrize("rung", rungs())
def test_nan_spoils_its_own_row_alone(surrogate: Surrogate, case: Case, rung: Source) -> None:
    inputs = case.data.inputs[:6].copy()
    clean = surrogate.predict(rung, np.arange(6), inputs)
    inputs[2] = np.nan
    answer = surrogate.predict(rung, np.arange(6), inputs)
    assert np.isnan(answer.outputs[2]).all()
    keep = np.array([0, 1, 3, 4, 5])
    np.testing.assert_allclose(answer.outputs[keep], clean.outputs[keep], rtol=1e-5)


@pytest.mark.parametrize("rung", rungs())
def test_no_rows_are_no_trouble(surrogate: Surrogate, case: Case, rung: Source) -> None:
    none = np.zeros(0, dtype=np.int64)
    answer = surrogate.predict(rung, none, np.zeros((0, case.problem.inputs.size)))
    assert answer.outputs.shape == (0, case.problem.outputs.size)
    fields = surrogate.fields(none, np.zeros((0, case.problem.inputs.size)))
    assert fields is None or len(fields) == 0


def test_attaching_no_points_is_no_trouble(case: Case) -> None:
    made = case.make()
    made.attach(points_of(case).take(np.zeros(0, dtype=np.int64)))
    for rung in made.rungs:
        answer = made.predict(rung, np.zeros(0, dtype=np.int64), np.zeros((0, case.problem.inputs.size)))
        assert len(answer.score) == 0


def test_wrong_shapes_and_rows_are_refused(surrogate: Surrogate, case: Case) -> None:
    k = case.problem.inputs.size
    with pytest.raises(ValueError, match=rf"got inputs of shape \(2, {k + 1}\), expected \(2, {k}\)"):
        surrogate.predict(Source.SURROGATE_COARSE, np.arange(2), np.zeros((2, k + 1)))
    far = np.array([0, 10**6])
    with pytest.raises(IndexError, match=r"rows 0 \.\. 1000000 lie outside its \d+ points"):
        surrogate.predict(Source.SURROGATE_COARSE, far, np.zeros((2, k)))


def test_fields_have_the_load_as_mean_and_a_small_residual(surrogate: Surrogate, case: Case) -> None:
    import torch

    rows, inputs = case.data.structure[:20], case.data.inputs[:20]
    fields = surrogate.fields(rows, inputs)
    if fields is None:
        pytest.skip("this surrogate has no fine head")
    field = torch.from_numpy(fields).double()
    x = torch.from_numpy(inputs)
    mean = x[:, case.problem.driving] @ case.problem.to_grid.T
    np.testing.assert_allclose(field.mean(dim=(2, 3)), mean, atol=1e-5 * float(mean.abs().max()))
    phase = torch.from_numpy(case.data.phase[rows]).double()
    uniform = mean[:, :, None, None].expand_as(field)
    size = [case.problem.residual(f, phase, x, 0).flatten(1).norm(dim=1) for f in (field, uniform)]
    assert float((size[0] / size[1]).median()) < 0.2
