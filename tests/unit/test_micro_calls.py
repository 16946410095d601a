"""Calls of micro simulations: the compiled loop and the one in Python ask the same and take the same."""

from __future__ import annotations

import collections
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.fine import micro_calls
from neuroscale_couple.fine.micro_calls import solve_each_in_python

compiled = importlib.import_module("neuroscale_couple.fine._calls").solve_each
Solve = Callable[[dict[str, Any], float], Any]
BOTH = pytest.mark.parametrize("loop", [compiled, solve_each_in_python], ids=["compiled", "python"])
INPUTS = np.arange(12.0).reshape(4, 3) + 0.1
ROWS = np.array([2, 0, 3])
PLACES = np.array([5, 7, 9])


class Run:
    """Three calls with a scalar and an array in and out."""

    def __init__(self, loop: Any, solve: Solve, inputs: Any = INPUTS) -> None:
        self.outputs = np.full((4, 3), -1.0)
        self.progress = np.zeros(2, dtype=np.int64)
        self.unusual: list[tuple[int, Any]] = []
        self.asked: list[dict[str, Any]] = []
        asked = [("a", 0, None), ("v", 2, np.array(inputs[ROWS, 1:]))]
        answered = [("b", 0), ("w", 2)]
        self.error: Exception | None = None
        try:
            loop([solve] * 3, PLACES, ROWS, asked, inputs, 0.5, answered, self.outputs, self.progress, self.unusual)
        except Exception as error:
            self.error = error


@BOTH
def test_a_simulation_gets_numpy_scalars_and_rows_of_its_own(loop: Any) -> None:
    kept: list[tuple[dict[str, Any], float]] = []

    def solve(data: dict[str, Any], dt: float) -> Any:
        kept.append((data, dt))
        return {"b": data["a"], "w": data["v"]}

    run = Run(loop, solve)
    assert [type(value) for value in kept[0][0].values()] == [np.float64, np.ndarray] and list(kept[0][0]) == ["a", "v"]
    assert [type(dt) for _, dt in kept] == [float] * 3 and {dt for _, dt in kept} == {0.5}
    assert [float(data["a"]) for data, _ in kept] == INPUTS[ROWS, 0].tolist()
    assert np.array_equal([data["v"] for data, _ in kept], INPUTS[ROWS, 1:])
    assert np.array_equal(run.outputs[ROWS], INPUTS[ROWS]) and (run.outputs[1] == -1.0).all()
    assert run.unusual == [] and run.progress[0] == 9


@BOTH
@pytest.mark.parametrize("what", ["number", "dictionary", "moved", "emptied", "added", "replaced", "nothing"])
def test_what_a_simulation_keeps_or_changes_stays_its_own(loop: Any, what: str) -> None:
    kept: list[Any] = []
    seen: list[list[str]] = []

    def solve(data: dict[str, Any], dt: float) -> Any:
        seen.append(list(data))
        a = float(data["a"])
        if what == "number":
            kept.append(data["a"])
        elif what == "dictionary":
            kept.append(data)
        elif what == "moved":
            kept.append(data.pop("a"))
            data["c"] = 0.0
        elif what == "emptied":
            data.clear()
        elif what == "added":
            data["more"] = 1.0
        elif what == "replaced":
            kept.append(data["a"])
            data["a"] = 17.0
        return {"b": a, "w": [a, a]}

    run = Run(loop, solve)
    assert seen == [["a", "v"]] * 3
    assert run.outputs[ROWS, 0].tolist() == INPUTS[ROWS, 0].tolist()
    values = [float(value["a"] if isinstance(value, dict) else value) for value in kept]
    assert values == (INPUTS[ROWS, 0].tolist() if kept else [])


class Whole(int):
    pass


USUAL = [
    {"b": 1.5, "w": [1, 2.5], "more": None},
    {"b": np.float64(1.5), "w": (np.float32(1.0), np.int64(2))},
    {"b": True, "w": np.array([1.0, 2.0, 3.0])[::2]},
    {"b": Whole(3), "w": np.array([1.0, 2.0])},
]
UNUSUAL = [
    None, [1.0, 2.0], {"b": 1.0}, {"b": float("nan"), "w": [0.0, 0.0]}, {"b": 1.0, "w": [0.0, float("inf")]},
    {"b": 1.0, "w": [0.0]}, {"b": [1.0], "w": [0.0, 0.0]}, {"b": "1.5", "w": [0.0, 0.0]}, {"b": 1j, "w": [0.0, 0.0]},
    {"b": 1.0, "w": np.zeros((2, 1))}, {"b": 1.0, "w": np.zeros(2, dtype=np.float32)}, {"b": 10**400, "w": [0.0, 0.0]},
    {"b": np.zeros(1), "w": [0.0, 0.0]}, collections.OrderedDict(b=1.0, w=[0.0, 0.0]), {"b": 1.0, "w": "ab"},
]  # fmt: skip


@BOTH
@pytest.mark.parametrize("answer", USUAL, ids=repr)
def test_usual_answers_are_taken(loop: Any, answer: Any) -> None:
    run = Run(loop, lambda data, dt: answer)
    expected = [float(answer["b"]), *(float(value) for value in answer["w"])]
    assert run.unusual == [] and run.outputs[ROWS].tolist() == [expected] * 3


@BOTH
@pytest.mark.parametrize("answer", UNUSUAL, ids=repr)
def test_unusual_answers_are_handed_back(loop: Any, answer: Any) -> None:
    run = Run(loop, lambda data, dt: answer if data["a"] == INPUTS[0, 0] else {"b": 1.0, "w": [2.0, 3.0]})
    assert run.error is None and [call for call, _ in run.unusual] == [1] and run.unusual[0][1] is answer
    assert run.outputs[[2, 3]].tolist() == [[1.0, 2.0, 3.0]] * 2


@BOTH
def test_an_error_passes_and_progress_says_where(loop: Any) -> None:
    def solve(data: dict[str, Any], dt: float) -> Any:
        if data["a"] == INPUTS[0, 0]:
            raise ArithmeticError("too hot")
        return {"b": 1.0, "w": [2.0, 3.0]}

    run = Run(loop, solve)
    assert isinstance(run.error, ArithmeticError) and run.progress[0] == 7
    assert run.outputs[2].tolist() == [1.0, 2.0, 3.0] and run.outputs[3].tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": INPUTS[:, ::2]}, "not C-contiguous"),
        ({"inputs": INPUTS.astype(np.float32)}, "inputs: got format f, expected 'd' in 2 dimension"),
        ({"rows": np.array([0, 1, 4])}, "row 4 is outside of inputs or outputs"),
        ({"rows": np.array([0, 1])}, "do not fit the calls"),
        ({"outputs": np.zeros((4, 2))}, "do not fit the calls"),
    ],
)
def test_the_compiled_loop_refuses_what_does_not_fit(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {
        "solves": [lambda data, dt: {}] * 3, "places": PLACES, "rows": ROWS, "asked": [("a", 0, None)],
        "inputs": INPUTS, "dt": 1.0, "answered": [("b", 0), ("w", 2)], "outputs": np.zeros((4, 3)),
        "progress": np.zeros(2, dtype=np.int64), "unusual": [],
    }  # fmt: skip
    with pytest.raises((ValueError, IndexError, BufferError), match=said):
        compiled(**(given | change))


def test_the_compiled_loop_is_chosen() -> None:
    assert micro_calls.solve_each is compiled


def test_references_are_given_back() -> None:
    row = np.zeros((1, 1))
    answer = {"b": 1.0}
    asked, answered = [("a", 0, None)], [("b", 0)]
    progress, one = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)

    def solve(data: dict[str, Any], dt: float) -> Any:
        return answer

    before = sys.getrefcount(answer), sys.getrefcount(solve), sys.getrefcount(None)
    for _ in range(1000):
        compiled([solve], one, one, asked, row, 1.0, answered, np.zeros((1, 1)), progress, [])
    after = sys.getrefcount(answer), sys.getrefcount(solve), sys.getrefcount(None)
    assert after[:2] == before[:2] and abs(after[2] - before[2]) < 100
