"""The contract of `gate.base.GateStage`; add your own stage to STAGES."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.gate.audit import Monitor
from neuroscale_couple.gate.base import GateStage
from neuroscale_couple.gate.chain import Gate
from neuroscale_couple.gate.domain import Domain
from neuroscale_couple.gate.physical import Physical
from neuroscale_couple.gate.uncertainty import Uncertainty
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.values import F64, I64, U8, Audit, Points, Prediction

STAGES: list[type[GateStage]] = [Domain, Uncertainty, Physical, Monitor, Gate]
"""Every implementation; built as `Class(settings, problem)`."""

N = 120
PROBLEM = make_problem(schema.Problem(name="composite", grid=8))
RUNGS = (Source.SURROGATE_COARSE, Source.SURROGATE_FINE)


def points() -> Points:
    phase = generate(schema.Microstructure(size=(0.3, 0.5)), np.arange(N), 8, None)
    return Points(np.arange(N) * 3, np.zeros((N, 2)), np.ones(N), {"phase": phase})


def card() -> Card:
    score = np.linspace(0.0, 0.05, 1000)
    table = Calibration(score=score.tolist(), error=(0.8 * score).tolist())
    return Card(
        problem={}, input_range=[(-0.02, 0.02)] * 3, output_floor=1.0,
        domain={
            "inputs_mean": [0.0] * 3, "inputs_cov_inv": (np.eye(3) * 1e4).tolist(), "inputs_max_distance": 2.5,
            "phase_mean_range": [0.1, 0.35],
        },
        calibration={rung.name.lower(): table for rung in RUNGS}, metrics={}, versions={}, data_sha256="",
    )  # fmt: skip


def questions() -> tuple[F64, Prediction]:
    """Inputs and answers of all sorts: good, uncertain, impossible, not finite."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(0.0, 0.01, (N, 3))
    tangent = np.tile(np.diag([6000.0, 6000.0, 2000.0]), (N, 1, 1)) * rng.uniform(-0.2, 3.0, (N, 1, 1))
    outputs = np.einsum("nij,nj->ni", tangent, inputs)
    score = rng.uniform(0.0, 0.06, N)
    inputs[5], outputs[11, 1], tangent[17, 2, 2], score[23] = np.nan, np.nan, np.inf, np.nan
    return inputs, Prediction(np.arange(N), outputs, tangent, score)


def take(prediction: Prediction, rows: I64) -> Prediction:
    return Prediction(rows, prediction.outputs[rows], prediction.tangent[rows], prediction.score[rows])


def audit(n: int = 40) -> Audit:
    rng = np.random.default_rng(1)
    score = rng.uniform(0.0, 0.02, n)
    return Audit(np.arange(n), np.zeros(n, np.uint8), score, score, rng.uniform(0.0, 0.1, n))


@pytest.fixture(params=STAGES, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[GateStage]:
    return request.param  # type: ignore[no-any-return]


def attached(kind: type[GateStage], with_card: bool = True) -> GateStage:
    stage = kind(schema.Gate(), PROBLEM)
    stage.attach(points(), card() if with_card else None)
    return stage


def judged(stage: GateStage, rows: I64 | None = None, before: U8 | None = None) -> tuple[U8, U8, F64]:
    """Reasons after admit, and reasons and errors after accept."""
    inputs, prediction = questions()
    first = np.zeros(N, dtype=np.uint8) if before is None else before.copy()
    stage.admit(inputs, first)
    rows = np.arange(N) if rows is None else rows
    second = np.zeros(len(rows), dtype=np.uint8) if before is None else before[rows].copy()
    error = np.zeros(len(rows))
    stage.accept(Source.SURROGATE_COARSE, inputs[rows], take(prediction, rows), error, second)
    return first, second, error


def test_a_stage_never_changes_what_it_is_asked(kind: type[GateStage]) -> None:
    inputs, prediction = questions()
    kept = (inputs.copy(), *(getattr(prediction, name).copy() for name in ("rows", "outputs", "tangent", "score")))
    stage = attached(kind)
    stage.admit(inputs, np.zeros(N, dtype=np.uint8))
    stage.accept(Source.SURROGATE_COARSE, inputs, prediction, np.zeros(N), np.zeros(N, dtype=np.uint8))
    now = (inputs, prediction.rows, prediction.outputs, prediction.tangent, prediction.score)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(kept, now, strict=True))


def test_a_stage_only_adds_refusals_with_known_reasons(kind: type[GateStage]) -> None:
    before = np.where(np.arange(N) % 4 == 0, Reason.HELD, 0).astype(np.uint8)
    for after in judged(attached(kind), before=before)[:2]:
        assert (after[before > 0] == Reason.HELD).all()
        assert set(after.tolist()) <= {int(r) for r in Reason}


def test_a_row_is_judged_by_itself(kind: type[GateStage]) -> None:
    stage = attached(kind)
    _, together, error = judged(stage)
    order = np.random.default_rng(2).permutation(N)[:70]
    _, some, some_error = judged(stage, order)
    assert np.array_equal(some, together[order])
    assert np.array_equal(some_error, error[order], equal_nan=True)


def test_asking_twice_gives_the_same_answer(kind: type[GateStage]) -> None:
    stage = attached(kind)
    for one, other in zip(judged(stage), judged(stage), strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def test_estimated_errors_are_never_negative_and_never_nan(kind: type[GateStage]) -> None:
    error = judged(attached(kind))[2]
    assert (error >= 0.0).all()


def test_no_rows_and_no_surrogate_are_no_problem(kind: type[GateStage]) -> None:
    stage = attached(kind)
    none = np.zeros(0, dtype=np.int64)
    empty = Prediction(none, np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros(0))
    stage.accept(Source.SURROGATE_COARSE, np.zeros((0, 3)), empty, np.zeros(0), np.zeros(0, dtype=np.uint8))
    stage.admit(np.zeros((0, 3)), np.zeros(0, dtype=np.uint8))
    attached(kind, with_card=False).admit(np.zeros((N, 3)), np.zeros(N, dtype=np.uint8))


def test_state_survives_a_checkpoint(kind: type[GateStage]) -> None:
    stage, again = attached(kind), attached(kind)
    stage.learn(audit())
    stage.learn(audit())
    state: dict[str, Any] = {key: np.asarray(value) for key, value in stage.get_state().items()}
    assert all(array.dtype != object for array in state.values())
    again.set_state(state)
    assert again.get_state().keys() == stage.get_state().keys()
    for key, array in state.items():
        assert np.array_equal(np.asarray(again.get_state()[key]), array)
    for one, other in zip(judged(stage), judged(again), strict=True):
        assert np.array_equal(one, other, equal_nan=True)
