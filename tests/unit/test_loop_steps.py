"""Iterating on a window and stepping inside it: who answers, from which state, and what is not learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.gate import make_gate
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.values import F64, I64, Batch, FineAnswer, Points, Prediction
from tests.stand_ins import CoarseOnly, card

N = 6


class Memory(FineSolver):
    """outputs = committed state + inputs; the state is the sum of all committed inputs."""

    def __init__(self) -> None:
        self.state = self.last = np.zeros((N, 3))
        self.solved = 0

    def attach(self, points: Points) -> None:
        return None

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        self.solved += len(rows)
        self.last = self.last.copy()
        self.last[rows] = self.state[rows] + inputs
        m = len(rows)
        tangent = np.broadcast_to(np.eye(3), (m, 3, 3)).copy()
        return FineAnswer(rows, self.last[rows], tangent, np.ones(m, bool), np.ones(m, np.int64), np.zeros(m))

    def commit(self) -> None:
        self.state = self.last

    def rollback(self) -> None:
        self.last = self.state

    def diagnosis(self, row: int) -> str:
        return ""

    def get_state(self) -> dict[str, Any]:
        return {"sum": self.state}

    def set_state(self, state: Any) -> None:
        self.state = self.last = np.array(state["sum"])


class Doubtful(CoarseOnly):
    """Answers zero; its score is that of the script for each call."""

    version = 5

    def __init__(self, problem: Any, scores: list[F64]) -> None:
        self.scores, self.asked = scores, []
        score = np.linspace(0, 0.05, 2000)
        self.card = card(problem.signature, score, score, reach=9.0)

    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        score = self.scores[len(self.asked)][rows]
        self.asked.append(rows.tolist())
        return Prediction(rows, np.zeros((len(rows), 3)), np.broadcast_to(np.eye(3), (len(rows), 3, 3)), score)


class Observer:
    """A learner that counts what it is shown."""

    def __init__(self) -> None:
        self.seen = 0
        self.proposed: list[int] = []

    def attach(self, points: Points) -> None:
        return None

    def observe(self, window: int, inputs: F64, answer: FineAnswer) -> None:
        self.seen += len(answer.rows)

    def ask(self, window: int, current: Any, inputs: F64, source: Any) -> tuple[()]:
        return ()

    def propose(self, window: int, current: Any) -> None:
        self.proposed.append(window)

    def get_state(self) -> dict[str, Any]:
        return {}


def build(surrogate: bool = False, scores: list[F64] | None = None, **gate: Any) -> tuple[Loop, Memory, Observer]:
    """A loop over N points whose fine solver remembers."""
    problem = make_problem(schema.Problem(name="composite", grid=8))
    phase = generate(schema.Microstructure(size=(0.3, 0.5)), np.arange(N), 8, Path())
    points = Points(np.arange(N), np.zeros((N, 2)), np.ones(N), {"phase": phase})
    fine, learner = Memory(), Observer()
    settings = schema.Gate(**{"audit": 0.0, "stages": ("uncertainty", "audit"), **gate})
    model = Doubtful(problem, scores or []) if surrogate else None
    parts = Parts(
        problem=problem,
        fine=fine,
        gate=make_gate(settings, problem, None),
        surrogate=model,
        learner=learner,  # type: ignore[arg-type]
    )
    return Loop(parts, points), fine, learner


def ask(loop: Loop, value: float, iteration: int = 0, blank: bool = False) -> Any:
    return loop.evaluate(Batch(loop.window, iteration, 0.0, 1.0, np.full((N, 3), value), {}, blank))


def test_every_iteration_starts_from_the_committed_state() -> None:
    loop, fine, _ = build()
    for value in (1.0, 5.0, 2.0):
        assert ask(loop, value).outputs[0, 0] == value
        if value != 2.0:
            loop.repeat()
    loop.commit()
    assert fine.state[0, 0] == 2.0
    assert ask(loop, 1.0).outputs[0, 0] == 3.0


def test_steps_of_a_window_follow_each_other_and_are_undone_when_it_repeats() -> None:
    loop, fine, _ = build()
    ask(loop, 1.0)
    loop.commit()
    for _ in range(2):
        assert ask(loop, 10.0).outputs[0, 0] == 11.0
        loop.next_step()
        assert ask(loop, 100.0).outputs[0, 0] == 111.0
        loop.repeat()
    assert ask(loop, 20.0).outputs[0, 0] == 21.0
    loop.next_step()
    assert ask(loop, 200.0).outputs[0, 0] == 221.0
    loop.commit()
    assert fine.state[0, 0] == 221.0


def test_rollback_undoes_steps_too() -> None:
    loop, _, _ = build()
    ask(loop, 1.0)
    loop.next_step()
    ask(loop, 1.0)
    loop.rollback()
    assert ask(loop, 3.0).outputs[0, 0] == 3.0


def test_points_only_move_towards_the_fine_solver_while_a_window_iterates() -> None:
    sure, unsure = np.zeros(N), np.ones(N)
    scores = [np.where(np.arange(N) < k, unsure, sure) for k in (1, 3, 0, 0)]
    loop, fine, _ = build(surrogate=True, scores=scores)
    fallen = []
    for iteration in range(3):
        reply = ask(loop, 1.0, iteration)
        fallen.append(np.flatnonzero(reply.source == Source.FINE).tolist())
        if iteration < 2:
            loop.repeat()
    assert fallen == [[0], [0, 1, 2], [0, 1, 2]]
    assert fine.solved == 1 + 3 + 3
    assert (reply.reason[:3] == Reason.HELD).all()
    loop.commit()
    assert (ask(loop, 1.0).source == Source.SURROGATE_COARSE).all()


def test_rollback_lets_the_surrogate_answer_again() -> None:
    loop, _, _ = build(surrogate=True, scores=[np.ones(N), np.zeros(N)])
    assert (ask(loop, 1.0).source == Source.FINE).all()
    loop.rollback()
    assert (ask(loop, 1.0).source == Source.SURROGATE_COARSE).all()


def test_blank_inputs_are_answered_but_neither_learned_from_nor_audited() -> None:
    loop, _, learner = build()
    ask(loop, 0.0, blank=True)
    assert learner.seen == 0
    ask(loop, 1.0, 1)
    assert learner.seen == N
    loop, fine, learner = build(surrogate=True, scores=[np.zeros(N), np.zeros(N)], audit=1.0)
    ask(loop, 0.0, blank=True)
    loop.commit()
    assert (fine.solved, learner.seen) == (0, 0)
    ask(loop, 1.0)
    loop.commit()
    assert (fine.solved, learner.seen) == (N, N)


def test_promotion_is_proposed_once_a_converged_window() -> None:
    loop, _, learner = build()
    for _ in range(3):
        ask(loop, 1.0)
        loop.repeat()
    ask(loop, 1.0)
    assert learner.proposed == []
    loop.commit()
    assert learner.proposed == [0]
    assert loop.model_version == -1
