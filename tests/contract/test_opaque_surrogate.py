"""The surrogate contract for opaque micro problems: no fields, no tangent, else as `test_surrogate.py` has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.errors import ArtifactError
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate import load
from neuroscale_couple.surrogate.opaque import OpaqueSurrogate
from neuroscale_couple.training.opaque import Block, fit
from neuroscale_couple.values import F64, FieldSpec

N = 80


def problem(history: bool, unit: str = "1") -> OpaqueProblem:
    return OpaqueProblem(
        (FieldSpec("x", ("a", "b"), "1"),), (FieldSpec("y", ("",), unit), FieldSpec("z", ("a", "b"), "1")), history
    )


def answers(question: F64) -> F64:
    a, b = question[:, 0], question[:, 1]
    return np.column_stack([np.sin(3.0 * a) + b, 1.0 + a * b, np.exp(a)])


def questions(history: bool, seed: int = 1) -> F64:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (N, problem(history).question.size))


@pytest.fixture(params=[True, False], ids=["history", "no history"])
def history(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def surrogate(history: bool, tmp_path: Path) -> OpaqueSurrogate:
    question = questions(history)
    fit(problem(history), [Block(question, answers(question))], tmp_path / "model.pt", np.zeros((0, 2)))
    made = load(tmp_path / "model.pt", problem(history))
    assert isinstance(made, OpaqueSurrogate)
    return made


def test_one_rung_with_evidence_and_no_fields(surrogate: OpaqueSurrogate, history: bool) -> None:
    assert surrogate.rungs == (Source.SURROGATE_COARSE,)
    assert len(surrogate.card.input_range) == problem(history).question.size
    known = surrogate.card.calibration["surrogate_coarse"]
    assert len(known.score) == len(known.error) > 0
    assert np.isfinite(known.score).all() and min(known.error) >= 0.0 and min(known.score) >= 0.0
    assert surrogate.fields(np.arange(2), questions(history)[:2]) is None
    with pytest.raises(ValueError, match="no rung surrogate_fine"):
        surrogate.predict(Source.SURROGATE_FINE, np.arange(2), questions(history)[:2])


def test_what_is_known_is_answered_and_sure(surrogate: OpaqueSurrogate, history: bool) -> None:
    question = questions(history)
    answer = surrogate.predict(Source.SURROGATE_COARSE, np.arange(N), question)
    np.testing.assert_allclose(answer.outputs, answers(question), atol=2e-2)
    far = surrogate.predict(Source.SURROGATE_COARSE, np.arange(N), question + 50.0)
    assert answer.score.max() < far.score.min()
    assert answer.tangent.shape == (N, 3, 0)


def test_rows_are_independent_and_nan_spoils_its_own(surrogate: OpaqueSurrogate, history: bool) -> None:
    question = questions(history, seed=2)
    whole = surrogate.predict(Source.SURROGATE_COARSE, np.arange(N), question)
    order = np.random.default_rng(3).permutation(N)[:20]
    part = surrogate.predict(Source.SURROGATE_COARSE, order, question[order])
    np.testing.assert_allclose(part.outputs, whole.outputs[order], rtol=1e-9)
    question[2] = np.nan
    spoiled = surrogate.predict(Source.SURROGATE_COARSE, np.arange(N), question)
    assert np.isnan(spoiled.outputs[2]).all() and np.isnan(spoiled.score[2])
    keep = np.setdiff1d(np.arange(N), [2])
    np.testing.assert_allclose(spoiled.outputs[keep], whole.outputs[keep], rtol=1e-9)


def test_leaders_cover_the_points_and_do_not_depend_on_their_order(surrogate: OpaqueSurrogate, history: bool) -> None:
    question = questions(history, seed=4)
    fresh = np.ones(N, dtype=np.bool_)
    limit = 0.05
    rows = surrogate.lead(question, fresh, limit)
    assert 0 < len(rows) <= N
    surrogate.condition(rows, question[rows], answers(question[rows]))
    answer = surrogate.predict(Source.SURROGATE_COARSE, rows, question[rows])
    np.testing.assert_allclose(answer.outputs, answers(question[rows]), atol=1e-3)
    order = np.random.default_rng(6).permutation(N)
    other = load(surrogate.path, problem(history)).lead(question[order], fresh, limit)
    assert sorted(order[other]) == rows.tolist()
    assert not len(surrogate.lead(question, fresh, -np.inf))  # nothing would be accepted


def test_further_leaders_bring_all_scores_to_the_limit(surrogate: OpaqueSurrogate, history: bool) -> None:
    question, fresh, limit = questions(history, seed=4), np.ones(N, dtype=np.bool_), 0.05
    assert not len(surrogate.lead_on(question, fresh, limit))  # nobody leads
    rows = surrogate.lead(question, fresh, limit)[:3]
    surrogate.condition(rows, question[rows], answers(question[rows]))
    for _ in range(N):
        doubted = np.flatnonzero(surrogate.predict(Source.SURROGATE_COARSE, np.arange(N), question).score > limit)
        more = surrogate.lead_on(question, fresh, limit)
        assert set(more) <= set(doubted) - set(rows)
        if not len(more):
            break
        rows = np.union1d(rows, more)
        surrogate.condition(rows, question[rows], answers(question[rows]))
    assert set(doubted) <= set(rows)
    assert not len(surrogate.lead_on(question, fresh, -np.inf))


def test_leaders_survive_a_promotion_and_a_checkpoint(surrogate: OpaqueSurrogate, history: bool) -> None:
    question = questions(history, seed=5)
    rows = surrogate.lead(question, np.ones(N, dtype=np.bool_), 0.05)
    surrogate.condition(rows, question[rows], answers(question[rows]))
    expected = surrogate.predict(Source.SURROGATE_COARSE, np.arange(N), question)
    restored = load(surrogate.path, problem(history))
    restored.set_state(surrogate.get_state())
    got = restored.predict(Source.SURROGATE_COARSE, np.arange(N), question)
    np.testing.assert_array_equal(got.outputs, expected.outputs)
    if history:
        heir = load(surrogate.path, problem(history))
        heir.inherit(surrogate)
        np.testing.assert_array_equal(
            heir.predict(Source.SURROGATE_COARSE, np.arange(N), question).outputs, expected.outputs
        )


def test_an_artifact_of_another_problem_is_refused(surrogate: OpaqueSurrogate, history: bool) -> None:
    with pytest.raises(ArtifactError, match=r"belongs to another micro problem: outputs: expected"):
        load(surrogate.path, problem(history, unit="Pa"))
    with pytest.raises(ValueError, match="expected"):
        surrogate.predict(Source.SURROGATE_COARSE, np.arange(2), np.zeros((2, 1)))


def test_a_changed_artifact_is_refused(surrogate: OpaqueSurrogate, history: bool) -> None:
    content = bytearray(surrogate.path.read_bytes())
    content[len(content) // 2] ^= 1
    surrogate.path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="is damaged"):
        load(surrogate.path, problem(history))


def test_too_few_samples_are_refused(history: bool, tmp_path: Path) -> None:
    question = questions(history)[:5]
    with pytest.raises(ValueError, match="5 samples are too few"):
        fit(problem(history), [Block(question, answers(question))], tmp_path / "model.pt", np.zeros((0, 2)))
