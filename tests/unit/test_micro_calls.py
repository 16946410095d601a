"""Calls of micro simulations: the compiled loop and the one in Python ask the same and take the same."""

from __future__ import annotations

import collections
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.fine import micro_calls
from neuroscale_couple.fine.board import Board, board_file
from neuroscale_couple.fine.jobs import NONE, Job, Spec
from neuroscale_couple.fine.micro_calls import solve_each_in_python
from neuroscale_couple.fine.micro_worker import Worker

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


MICRO = """
class MicroSimulation:
    def __init__(self, sim_id):
        self.sim_id, self.s = sim_id, 0.0
    def solve(self, data, dt):
        self.s = 0.5 * self.s + dt * data["a"]
        if self.sim_id in (1, 3):
            {what}
        return {{"b": self.s, "w": data["v"] * self.s}}
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero ("),
        ("return {'b': 1.0}", "solve() gave no 'w'"),
        ("return {'b': 1.0, 'w': [0, float('nan')]}", "'w' is [0.0, nan], not finite"),
        ("return {'b': [2.0], 'w': ['1', 2]}", ""),
        ("return 7", "solve() gave int, expected a dict"),
    ],
)
def test_workers_say_and_answer_the_same_with_both_loops(
    tmp_path: Path, monkeypatch: Any, what: str, said: str
) -> None:
    module = f"micro_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MICRO.format(what=what))
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = Spec(module, (str(tmp_path),), (("a", 0), ("v", 2)), (("b", 0), ("w", 2)), 5)
    rows, first = np.array([4, 1, 3, 0]), np.zeros((4, 3))
    results = []
    for loop in (compiled, solve_each_in_python):
        monkeypatch.setattr(micro_calls, "solve_each", loop)
        with board_file(1, 5, 6) as file:
            board = Board(file.fileno(), 1, 5, 3, 3)
            board.inputs[:] = np.arange(15.0).reshape(5, 3) + 0.1
            worker = Worker(spec, board, 0)
            done = worker.run(Job(rows, 0.5, np.arange(4), rows, first, NONE, NONE))
            good = np.setdiff1d(rows, rows[list(done.failed)])
            results.append((done.failed, board.outputs[good].tolist()))
    assert results[0] == results[1]
    assert sorted(results[0][0]) == ([1, 2] if said else [])
    assert all(text.startswith(said) for text in results[0][0].values())


def test_without_the_extension_the_loop_in_python_is_taken_after_a_warning() -> None:
    program = """
import sys, warnings
sys.modules["neuroscale_couple.fine._calls"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from neuroscale_couple.fine import micro_calls
print(micro_calls.solve_each is micro_calls.solve_each_in_python, caught[0].message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.startswith("True the compiled loop over micro simulations is not there")
