"""Opaque micro problems: what is known of them, what the surrogate is asked with, and the loop without a tangent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.gate import make_gate
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.memory import Memory
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, I64, Batch, FieldSpec, FineAnswer, Points, Reply

INPUTS = (FieldSpec("strain", ("x", "y"), "1"),)
OUTPUTS = (FieldSpec("stress", ("x", "y"), "Pa"), FieldSpec("damage", ("",), "1"))
N = 5


def problem(**changes: Any) -> OpaqueProblem:
    return OpaqueProblem(INPUTS, OUTPUTS, **changes)


def batch(inputs: F64, dt: float = 0.5, window: int = 0) -> Batch:
    return Batch(window, 0, window * dt, dt, inputs)


def reply(outputs: F64, source: Source = Source.FINE) -> Reply:
    n = len(outputs)
    return Reply(outputs, np.empty((n, 3, 0)), np.full(n, source, np.uint8), np.zeros(n, np.uint8), np.zeros(n))


class Adding(FineSolver):
    """Outputs are the inputs and their sum; nothing else is known of it."""

    def attach(self, points: Points) -> None:
        self.solves = 0

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        m = len(rows)
        self.solves += m
        outputs = np.column_stack([inputs, inputs.sum(axis=1)])
        return FineAnswer(rows, outputs, np.empty((m, 3, 0)), np.ones(m, bool), np.ones(m, np.int64), np.zeros(m))

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def diagnosis(self, row: int) -> str:
        return ""

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: Any) -> None:
        pass


def test_the_question_has_what_was_last_asked_and_answered() -> None:
    assert problem().question.columns == (
        "strain.x", "strain.y", "dt", "last strain.x", "last strain.y",
        "last stress.x", "last stress.y", "last damage", "doubt",
    )  # fmt: skip
    assert problem(history=False).question.columns == ("strain.x", "strain.y")


def test_config_describes_an_opaque_problem() -> None:
    made = make_problem(
        schema.Problem.model_validate({
            "name": "opaque", "history": False, "inputs": {"t": {"unit": "K"}},
            "outputs": {"k": {"unit": "W/(m K)", "components": ["xx", "yy"], "floor": 0.5}},
        })
    )  # fmt: skip
    assert isinstance(made, OpaqueProblem)
    assert made.outputs.columns == ("k.xx", "k.yy") and made.inputs.columns == ("t",)
    assert made.output_floor() == 0.5 and not made.remembers and not made.has_tangent


def test_a_field_may_not_take_a_name_of_the_question() -> None:
    with pytest.raises(ConfigError, match=r"problem\.inputs: 'dt' is a name of the question"):
        OpaqueProblem((FieldSpec("dt", ("",), "s"),), OUTPUTS)
    with pytest.raises(ConfigError, match="a name appears twice"):
        OpaqueProblem((*INPUTS, *INPUTS), OUTPUTS)
    with pytest.raises(ConfigError, match="as many floors"):
        problem(floors=[1.0])


def test_the_error_is_that_of_the_worst_field() -> None:
    made = problem(floors=[1.0, 0.01])
    truth = np.array([[300.0, 400.0, 0.1], [0.0, 0.0, 0.001]])
    got = truth + np.array([[0.0, 5.0, 0.02], [0.5, 0.0, 0.001]])
    np.testing.assert_allclose(made.relative_error(got, truth), [0.2, 0.5])


def test_memory_follows_time_steps_and_goes_back() -> None:
    memory = Memory(problem(), N)
    inputs, outputs = np.ones((N, 2)), np.full((N, 3), 7.0)
    assert np.isnan(memory.question(batch(inputs))[:, 3:]).all()
    memory.step(batch(inputs), reply(outputs), np.ones(N))
    memory.commit()
    first = memory.question(batch(2.0 * inputs))
    np.testing.assert_array_equal(first[0], [2, 2, 0.5, 1, 1, 7, 7, 7, 0])
    memory.step(batch(2.0 * inputs), reply(outputs, Source.SURROGATE_COARSE), np.full(N, 0.25))
    assert memory.question(batch(inputs))[0, -1] == 0.25  # the doubt of a surrogate's answer
    memory.rewind()
    np.testing.assert_array_equal(memory.question(batch(2.0 * inputs)), first)
    other = Memory(problem(), N)
    other.set_state(memory.get_state())
    np.testing.assert_array_equal(other.question(batch(2.0 * inputs)), first)


def test_memory_of_a_problem_without_history_is_nothing() -> None:
    memory = Memory(problem(history=False), N)
    inputs = np.ones((N, 2))
    memory.step(batch(inputs), reply(np.ones((N, 3))), np.ones(N))
    assert memory.question(one := batch(inputs)) is one.inputs
    assert memory.get_state() == {}


@pytest.mark.parametrize("stages", [("domain", "uncertainty", "physical", "audit"), ("physical",)])
def test_the_loop_answers_without_a_tangent(stages: tuple[str, ...]) -> None:
    made = problem()
    fine = Adding()
    loop = Loop(
        Parts(problem=made, fine=fine, gate=make_gate(schema.Gate(stages=stages), made)),
        Points(np.arange(N), np.zeros((N, 2)), np.ones(N)),
    )
    inputs = np.arange(2.0 * N).reshape(N, 2)
    answer = loop.evaluate(batch(inputs))
    assert answer.tangent.shape == (N, 3, 0)
    np.testing.assert_array_equal(answer.outputs[:, 2], inputs.sum(axis=1))
    loop.commit()
    np.testing.assert_array_equal(loop.memory.question(batch(inputs, window=1))[:, 3:8], answer_row(inputs))
    assert fine.solves == N


def answer_row(inputs: F64) -> F64:
    return np.column_stack([inputs, inputs, inputs.sum(axis=1)])
