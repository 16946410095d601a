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
from neuroscale_couple.physics.opaque import MEMORIES, OpaqueProblem
from neuroscale_couple.values import F64, I64, Batch, FieldSpec, FineAnswer, Points

INPUTS = (FieldSpec("strain", ("x", "y"), "1"),)
OUTPUTS = (FieldSpec("stress", ("x", "y"), "Pa"), FieldSpec("damage", ("",), "1"))
N = 5


def problem(**changes: Any) -> OpaqueProblem:
    return OpaqueProblem(INPUTS, OUTPUTS, **changes)


def batch(inputs: F64, dt: float = 0.5, window: int = 0) -> Batch:
    return Batch(window, 0, window * dt, dt, inputs)


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


def test_the_question_has_the_inputs_and_how_they_have_changed_lately() -> None:
    question = problem().question
    assert question.columns[:2] == ("strain.x", "strain.y")
    assert question.columns[2:4] == ("change of strain in 1.5 steps.x", "change of strain in 1.5 steps.y")
    assert question.columns[-2:] == ("mean of strain.x", "mean of strain.y")
    assert question.size == 2 * (2 + len(MEMORIES))
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


def test_a_name_that_appears_twice_and_a_wrong_number_of_floors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"problem\.inputs: a name appears twice"):
        OpaqueProblem((*INPUTS, *INPUTS), OUTPUTS)
    with pytest.raises(ConfigError, match="as many floors"):
        problem(floors=[1.0])


def test_the_error_is_that_of_the_worst_field() -> None:
    made = problem(floors=[1.0, 0.01])
    truth = np.array([[300.0, 400.0, 0.1], [0.0, 0.0, 0.001]])
    got = truth + np.array([[0.0, 5.0, 0.02], [0.5, 0.0, 0.001]])
    np.testing.assert_allclose(made.relative_error(got, truth), [0.2, 0.5])


def test_memories_fade_with_their_lengths_and_go_back() -> None:
    memory = Memory(problem(), N)
    one = np.ones((N, 2))
    np.testing.assert_array_equal(memory.question(batch(one)), np.hstack([one, np.zeros((N, 8)), one]))
    memory.step(batch(one))
    memory.commit()
    expected = [2.0 - (1.0 + (1.0 - np.exp(-1.0 / tau))) for tau in MEMORIES]  # the input has jumped from 1 to 2
    first = memory.question(batch(2.0 * one))
    np.testing.assert_allclose(first[0, 2::2], [*expected, 1.5])
    half = memory.question(batch(2.0 * one, dt=0.25))  # half a step fades less
    assert (half[0, 2:-2] > first[0, 2:-2]).all()
    np.testing.assert_allclose(half[0, -2:], (1.0 * 0.5 + 2.0 * 0.25) / 0.75)
    memory.step(batch(2.0 * one))
    memory.step(batch(2.0 * one))
    assert (memory.question(batch(2.0 * one))[0, 2:-2] < first[0, 2:-2]).all()
    memory.rewind()
    np.testing.assert_array_equal(memory.question(batch(2.0 * one)), first)
    other = Memory(problem(), N)
    other.set_state(memory.get_state())
    np.testing.assert_array_equal(other.question(batch(2.0 * one)), first)


def test_two_half_steps_fade_like_a_whole_one() -> None:
    whole, halves = Memory(problem(), 1), Memory(problem(), 1)
    for memory in (whole, halves):
        memory.step(batch(np.zeros((1, 2))))
        memory.commit()
    whole.step(batch(np.ones((1, 2))))
    for _ in range(2):
        halves.step(batch(np.ones((1, 2)), dt=0.25))
    np.testing.assert_allclose(
        whole.question(batch(np.ones((1, 2)))), halves.question(batch(np.ones((1, 2)))), atol=1e-15
    )


def test_memory_of_a_problem_without_history_is_nothing() -> None:
    memory = Memory(problem(history=False), N)
    inputs = np.ones((N, 2))
    memory.step(batch(inputs))
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
    np.testing.assert_array_equal(
        loop.memory.question(batch(inputs, window=1))[:, 2:], np.hstack([np.zeros((N, 8)), inputs])
    )
    assert fine.solves == N
