"""Alike points: who is solved, who shares, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.fine import make_fine_solver, share_answers
from neuroscale_couple.fine.alike import Alike, label
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.gate import make_gate
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.values import F64, I64, Batch, FieldSpec, FineAnswer, Points

TOLERANCE = 0.1  # cells of a thousandth of the largest input


class Summing(FineSolver):
    """The output is the sum of all committed inputs and this one, times what the point is made of."""

    def __init__(self, made_of: F64) -> None:
        self.made_of, self.calls = made_of, []
        self.sum = np.zeros(len(made_of))

    def attach(self, points: Points) -> None:
        self.given = np.zeros(len(points))

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        self.calls.append(rows.copy())
        m = len(rows)
        outputs = (self.made_of[rows] * (1.0 + self.sum[rows] + inputs[:, 0]))[:, None]
        return FineAnswer(rows, outputs, np.empty((m, 1, 0)), np.ones(m, bool), np.ones(m, np.int64), np.zeros(m))

    def begin(self, batch: Batch) -> None:
        self.given = batch.inputs[:, 0]

    def commit(self) -> None:
        self.sum = self.sum + self.given

    def rollback(self) -> None:
        pass

    def diagnosis(self, row: int) -> str:
        return f"row {row}"

    def get_state(self) -> dict[str, Any]:
        return {"sum": self.sum}

    def set_state(self, state: Any) -> None:
        self.sum = np.array(state["sum"])


def problem(history: bool = True) -> OpaqueProblem:
    return OpaqueProblem((FieldSpec("x", ("",), "1"),), (FieldSpec("y", ("",), "1"),), history, [1.0])


def points(n: int, ids: I64 | None = None) -> Points:
    ids = np.arange(n) if ids is None else ids
    return Points(ids, np.zeros((n, 2)), np.ones(n))


def batch(values: Any, window: int = 0) -> Batch:
    return Batch(window, 0, 0.0, 1.0, np.asarray(values, dtype=np.float64)[:, None])


def solver(n: int, history: bool = True, made_of: F64 | None = None, ids: I64 | None = None) -> tuple[Alike, Summing]:
    inner = Summing(np.ones(n) if made_of is None else made_of)
    made = Alike(inner, problem(history), TOLERANCE)
    made.attach(points(n, ids))
    return made, inner


def window(made: Alike, given: Batch, rows: I64 | None = None) -> FineAnswer:
    made.begin(given)
    rows = np.arange(len(given)) if rows is None else rows
    answer = made.solve(rows, given.inputs[rows])
    made.commit()
    return answer


def test_every_point_is_solved_until_its_first_answer_is_known_then_one_of_each_group() -> None:
    made, inner = solver(6)
    values = [1.0, 1.0, 1.00001, 2.0, 2.0, 1.0]
    assert len(window(made, batch(values)).solved) == 6
    answer = window(made, batch(values, 1))
    assert inner.calls[-1].tolist() == [0, 3]
    assert answer.own is not None and answer.own.tolist() == [True, False, False, True, False, False]
    np.testing.assert_array_equal(answer.rows, np.arange(6))
    np.testing.assert_allclose(answer.outputs[:, 0], [3, 3, 3, 5, 5, 3], rtol=1e-4)
    assert answer.iterations.sum() == 2


def test_points_that_answer_differently_at_first_are_never_alike() -> None:
    made, inner = solver(4, made_of=np.array([1.0, 1.0, 2.0, 2.0]))
    for w in range(3):
        answer = window(made, batch(np.ones(4), w))
    assert inner.calls[-1].tolist() == [0, 2]
    np.testing.assert_allclose(answer.outputs[:, 0], [4, 4, 8, 8])


def test_equal_inputs_after_different_ones_are_not_alike() -> None:
    made, inner = solver(4)
    window(made, batch(np.ones(4)))
    window(made, batch([1.0, 1.0, 0.5, 0.5], 1))
    answer = window(made, batch(np.ones(4), 2))
    assert inner.calls[-1].tolist() == [0, 2]
    np.testing.assert_allclose(answer.outputs[:, 0], [4, 4, 3.5, 3.5])


def test_without_history_equal_inputs_are_enough() -> None:
    made, inner = solver(4, history=False)
    inner.commit = lambda: None  # type: ignore[method-assign]
    window(made, batch(np.ones(4)))
    window(made, batch([1.0, 1.0, 0.5, 0.5], 1))
    window(made, batch(np.ones(4), 2))
    assert inner.calls[-1].tolist() == [0]


def test_the_one_that_was_solved_last_is_solved_again() -> None:
    made, inner = solver(3)
    window(made, batch(np.ones(3)))
    window(made, batch(np.ones(3), 1), np.array([1, 2]))  # 0 is answered by somebody else
    assert inner.calls[-1].tolist() == [1]
    window(made, batch(np.ones(3), 2))
    assert inner.calls[-1].tolist() == [1]
    assert made.diagnosis(2) == "row 1"


def test_groups_do_not_depend_on_the_order_of_the_points() -> None:
    rng = np.random.default_rng(3)
    values = rng.choice([0.1, 0.2, 0.7, 1.0], 50)
    ids, order = rng.permutation(50), rng.permutation(50)
    straight, inner = solver(50, ids=ids)
    permuted, other = solver(50, ids=ids[order])
    for w in range(2):
        one = window(straight, batch(values, w))
        two = window(permuted, batch(values[order], w))
    np.testing.assert_array_equal(two.outputs, one.outputs[order])
    assert sorted(ids[inner.calls[-1]]) == sorted(ids[order][other.calls[-1]])
    assert len(inner.calls[-1]) == 4


def test_work_grows_as_n_log_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sorting looks at more than one row: count the rows that `unique` is given."""
    import neuroscale_couple.fine.alike as module

    seen = []
    unique = np.unique
    monkeypatch.setattr(module.np, "unique", lambda a, *args, **kw: (seen.append(len(a)), unique(a, *args, **kw))[1])
    for n in (1000, 4000):
        made, _ = solver(n)
        values = np.repeat(np.linspace(0.0, 1.0, 500), n // 500)
        window(made, batch(values))
        seen.clear()
        answer = window(made, batch(values, 1))
        assert sum(seen) <= 3 * n
        assert len(answer.solved) == 500


def test_other_questions_than_those_of_the_run_are_solved_one_by_one() -> None:
    made, inner = solver(3)
    window(made, batch(np.ones(3)))
    made.begin(batch(np.ones(3), 1))
    made.solve(np.arange(3), np.full((3, 1), 9.0))
    assert inner.calls[-1].tolist() == [0, 1, 2]
    made.solve_apart(np.arange(3), np.ones((3, 1)))
    assert inner.calls[-1].tolist() == [0, 1, 2]


def test_state_goes_on_after_a_checkpoint() -> None:
    made, _ = solver(4)
    window(made, batch([1.0, 1.0, 0.5, 0.5]))
    fresh, inner = solver(4)
    fresh.set_state(made.get_state())
    answer = window(fresh, batch(np.ones(4), 1))
    assert inner.calls[-1].tolist() == [0, 2]
    np.testing.assert_array_equal(answer.outputs, window(made, batch(np.ones(4), 1)).outputs)


def test_a_repeated_window_of_steps_starts_from_its_own_memory() -> None:
    made, inner = solver(2)
    window(made, batch([1.0, 1.0]))
    start = made.snapshot()
    made.begin(batch([1.0, 0.5], 1))
    made.solve(np.arange(2), np.array([[1.0], [0.5]]))
    made.next_step()
    made.restore(start)
    window(made, batch([1.0, 1.0], 1))
    assert inner.calls[-1].tolist() == [0]


def test_parameters_tell_points_apart() -> None:
    phase = np.zeros((4, 3, 3), dtype=np.uint8)
    phase[2:, 1, 1] = 1
    made = Points(np.arange(4), np.zeros((4, 2)), np.ones(4), {"phase": phase, "size": np.array([1.0, 1.0, 1.0, 2.0])})
    found = label(made)
    assert found[0] == found[1] and len(set(found.tolist())) == 3


@pytest.mark.parametrize(
    ("alike", "open_", "wrapped"), [("auto", True, False), ("on", True, True), ("on", False, False)]
)
def test_the_config_says_who_shares(alike: str, open_: bool, wrapped: bool) -> None:
    cell = make_problem(schema.Problem(name="composite", grid=4))
    settings, gate = schema.Fine(alike=alike), schema.Gate(open=open_)
    assert isinstance(share_answers(make_fine_solver(settings, cell), settings, cell, gate), Alike) is wrapped
    inner, opaque = Summing(np.ones(1)), problem()
    assert isinstance(share_answers(inner, schema.Fine(), opaque, schema.Gate()), Alike)
    assert share_answers(inner, schema.Fine(), opaque, schema.Gate(open=False)) is inner


def test_equal_cells_share_fft_solves_and_the_ledger_counts_them() -> None:
    cell = make_problem(schema.Problem(name="composite", grid=8))
    phase = np.repeat((np.random.default_rng(1).random((2, 8, 8)) < 0.3).astype(np.uint8), 3, axis=0)
    where = Points(np.arange(6), np.zeros((6, 2)), np.ones(6), {"phase": phase})
    strain = np.tile([0.01, 0.002, 0.003], (6, 1))
    strain[5] *= 1.5
    plain = make_fine_solver(schema.Fine(), cell)
    plain.attach(where)
    shared = Alike(make_fine_solver(schema.Fine(), cell), cell, TOLERANCE)
    loop = Loop(Parts(problem=cell, fine=shared, gate=make_gate(schema.Gate(), cell)), where)
    answer = loop.evaluate(Batch(0, 0, 0.0, 1.0, strain))
    assert loop.counts.fine_solves == 3  # two micro structures, and one load that differs
    expected = plain.solve(np.arange(6), strain).outputs
    np.testing.assert_allclose(answer.outputs, expected, rtol=1e-5)
