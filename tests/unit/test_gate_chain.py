"""The gate as a whole: order of the stages, closing, audits that bite, and state."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.gate import make_gate
from neuroscale_couple.gate.base import GateStage, refuse
from neuroscale_couple.gate.chain import Gate, gather
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.values import F64, U8, Audit, Points, Prediction

N = 50
PROBLEM = make_problem(schema.Problem(name="composite", grid=8))
POINTS = Points(np.arange(N), np.zeros((N, 2)), np.ones(N))


def card(quality: float = 1.0) -> Card:
    rng = np.random.default_rng(0)
    score = rng.uniform(0.0, 0.05, 3000)
    error = quality * score * rng.uniform(0.5, 1.0, 3000)
    return Card(
        problem={}, input_range=[(-1, 1)] * 3, output_floor=1.0, domain={},
        calibration={"surrogate_coarse": Calibration(score=score.tolist(), error=error.tolist())},
        metrics={}, versions={}, data_sha256="",
    )  # fmt: skip


def gate(**settings: Any) -> Gate:
    made = make_gate(schema.Gate(**settings), PROBLEM)
    made.attach(POINTS, card())
    return made


def admitted(made: Gate, inputs: F64 | None = None) -> U8:
    reason = np.zeros(N, dtype=np.uint8)
    made.admit(np.zeros((N, 3)) if inputs is None else inputs, reason)
    return reason


def accepted(made: Gate, score: F64) -> U8:
    n = len(score)
    prediction = Prediction(np.arange(n), np.ones((n, 3)), np.tile(np.eye(3), (n, 1, 1)), score)
    reason = np.zeros(n, dtype=np.uint8)
    made.accept(Source.SURROGATE_COARSE, np.zeros((n, 3)), prediction, np.zeros(n), reason)
    return reason


def audits(error: F64, score: F64 | float = 0.01) -> Audit:
    n = len(error)
    return Audit(np.arange(n), np.zeros(n, np.uint8), np.broadcast_to(score, n).astype(float), np.full(n, 0.02), error)


def test_a_closed_gate_refuses_everything_at_once() -> None:
    for made, why in (
        (gate(open=False), Reason.GATE_CLOSED),
        (make_gate(schema.Gate(), PROBLEM), Reason.NO_MODEL),
        (make_gate(schema.Gate(open=False), PROBLEM), Reason.GATE_CLOSED),
    ):
        assert made.closed
        assert (admitted(made) == why).all()
        assert len(made.select_audits(0, np.arange(N), np.zeros(N, np.uint8))) == 0


def test_a_closed_gate_keeps_the_reason_of_points_already_held() -> None:
    reason = np.array([0, Reason.HELD, 0], dtype=np.uint8)
    gate(open=False).admit(np.zeros((3, 3)), reason)
    assert reason.tolist() == [Reason.GATE_CLOSED, Reason.HELD, Reason.GATE_CLOSED]


def test_an_open_gate_admits_and_accepts() -> None:
    made = gate()
    assert not made.closed and made.message is None
    assert not admitted(made).any()
    assert accepted(made, np.array([0.001, 0.05])).tolist() == [0, Reason.UNCERTAIN]


def test_from_the_given_iteration_on_every_point_is_solved() -> None:
    def limited(iteration: int, **settings: Any) -> U8:
        reason = np.zeros(N, dtype=np.uint8)
        reason[0] = Reason.HELD
        gate(**settings).limit(iteration, reason)
        return reason

    assert not limited(3, iterations=4)[1:].any() and not limited(99)[1:].any()
    assert (limited(4, iterations=4)[1:] == Reason.SLOW).all() and limited(4, iterations=4)[0] == Reason.HELD
    assert not limited(9, iterations=4, open=False)[1:].any()  # closed: that is the reason then


def test_the_first_stage_that_refuses_gives_the_reason() -> None:
    def reason(stages: tuple[str, ...]) -> int:
        made = gate(stages=stages)
        out = np.zeros(1, dtype=np.uint8)
        prediction = Prediction(np.arange(1), np.ones((1, 3)), -np.eye(3)[None], np.array([0.05]))
        made.accept(Source.SURROGATE_COARSE, np.zeros((1, 3)), prediction, np.zeros(1), out)
        return int(out[0])

    assert reason(("uncertainty", "physical")) == Reason.UNCERTAIN
    assert reason(("physical", "uncertainty")) == Reason.NOT_POSITIVE_DEFINITE


def test_without_an_estimate_an_accepted_answer_counts_as_wrong_by_the_tolerance() -> None:
    made = gate(stages=("domain", "physical"), tolerance=0.03)
    error = np.zeros(2)
    prediction = Prediction(np.arange(2), np.ones((2, 3)), np.tile(np.eye(3), (2, 1, 1)), np.ones(2))
    made.accept(Source.SURROGATE_COARSE, np.zeros((2, 3)), prediction, error, np.zeros(2, np.uint8))
    assert error.tolist() == [0.03, 0.03]


def test_honest_audits_leave_the_gate_alone(caplog: pytest.LogCaptureFixture) -> None:
    made = gate()
    before = made.get_state()["uncertainty/pairs_0"]
    rng = np.random.default_rng(1)
    for _ in range(30):
        made.learn(audits(np.where(rng.uniform(size=20) < 0.02, 0.03, 0.01)))
    assert not made.closed and not caplog.records
    assert np.array_equal(made.get_state()["uncertainty/pairs_0"], before)


def test_bad_audits_at_high_scores_lower_the_threshold(caplog: pytest.LogCaptureFixture) -> None:
    """The run drives the material where the calibration is too optimistic: at high scores answers are bad."""
    made = gate()
    assert accepted(made, np.array([0.005, 0.019])).tolist() == [0, 0]
    score = np.linspace(0.001, 0.02, 200)
    bad = np.count_nonzero(score > 0.012)
    with caplog.at_level(logging.WARNING):
        made.learn(audits(np.where(score > 0.012, 0.04, 0.005), score))
    assert not made.closed
    assert accepted(made, np.array([0.005, 0.019])).tolist() == [0, Reason.UNCERTAIN]
    assert f"{bad} of the last 200 audits exceed the tolerance of 0.02" in (made.message or "")
    assert len(caplog.records) == 1 and "fewer answers are accepted from now on" in caplog.text


def test_bad_audits_everywhere_close_the_gate_until_a_promotion(caplog: pytest.LogCaptureFixture) -> None:
    made = gate()
    with caplog.at_level(logging.WARNING):
        made.learn(audits(np.full(40, 0.5), np.linspace(0.001, 0.02, 40)))
        made.learn(audits(np.full(40, 0.5)))
    assert made.closed and (admitted(made) == Reason.GATE_CLOSED).all()
    closing = [r.message for r in caplog.records if "the gate is closed until" in r.message]
    assert len(closing) == 1
    assert closing[0].startswith(
        "gate: 40 of the last 40 audits exceed the tolerance of 0.02, more than a confidence of 95%"
    )
    made.attach(POINTS, card())
    assert not made.closed and made.message is None and not admitted(made).any()


def test_each_audit_is_evidence_once() -> None:
    """A second alarm must not add those of the first again: the calibration would take them for more than they are."""
    made = gate()
    held = len(made.get_state()["uncertainty/pairs_0"])
    score = np.linspace(0.001, 0.02, 200)
    for bad in (0.012, 0.006):
        made.learn(audits(np.where(score > bad, 0.04, 0.005), score))
    assert len(made.get_state()["uncertainty/pairs_0"]) == held + 400


def test_audits_close_a_gate_that_has_no_uncertainty_stage() -> None:
    made = gate(stages=("physical", "audit"))
    made.learn(audits(np.full(10, 0.5)))
    assert made.closed


def test_no_audits_change_nothing() -> None:
    made = gate()
    made.learn(audits(np.zeros(0)))
    assert not made.closed and made.message is None


def test_state_survives_a_checkpoint() -> None:
    score = np.linspace(0.001, 0.02, 200)
    for error in (np.where(score > 0.012, 0.04, 0.005), np.full(200, 0.5)):
        made, again = gate(), gate()
        made.learn(audits(error, score))
        again.set_state({key: np.asarray(value) for key, value in made.get_state().items()})
        assert again.closed == made.closed
        probe = np.linspace(0, 0.03, 300)
        assert np.array_equal(accepted(again, probe), accepted(made, probe))
        assert np.array_equal(admitted(again), admitted(made))


def test_audits_of_all_ranks_are_taken_in_the_same_order_on_every_rank() -> None:
    class Ranks:
        size, rank = 2, 0

        def __init__(self, parts: list[Audit]) -> None:
            self.parts = parts

        def allgather(self, mine: Audit) -> list[Audit]:
            assert mine is self.parts[0]
            return self.parts

    rng = np.random.default_rng(3)
    whole = audits(rng.uniform(size=30), rng.uniform(size=30))
    halves = [
        Audit(*(getattr(whole, f)[part] for f in Audit.__dataclass_fields__)) for part in (slice(0, 9), slice(9, 30))
    ]
    joined, alone = gather(halves[0], Ranks(halves)), gather(whole, None)
    assert np.array_equal(joined.error, alone.error) and np.array_equal(joined.score, alone.score)


class Friday(GateStage):
    """A stage of one's own: refuses every third point."""

    def admit(self, inputs: F64, reason: U8) -> None:
        refuse(reason, np.arange(len(reason)) % 3 == 0, Reason.OUT_OF_DOMAIN)


def test_a_stage_of_ones_own_is_named_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("my_gate")
    module.Friday = Friday  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_gate", module)
    made = gate(stages=("my_gate:Friday", "uncertainty"))
    assert np.flatnonzero(admitted(made)).tolist() == list(range(0, N, 3))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("domian", "gate.stages: 'domian' is unknown; use one of ['audit', 'domain', 'physical', 'uncertainty']"),
        ("no_such_package:Stage", "gate.stages: cannot load 'no_such_package:Stage' (No module named"),
        ("json:Missing", "gate.stages: cannot load 'json:Missing' (module 'json' has no attribute 'Missing'"),
        ("json:loads", "gate.stages: 'json:loads' cannot be made (TypeError: "),
        ("json:JSONDecoder", "gate.stages: 'json:JSONDecoder' is not a GateStage; derive it from"),
    ],
)
def test_a_stage_that_cannot_be_used_is_said(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_gate(schema.Gate(stages=(name,)), PROBLEM)
    assert str(caught.value).startswith(text)
