"""Micro simulations in worker processes: order of calls, exact states, replay, failures, hangs and crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config.schema import Fine, Micro
from neuroscale_couple.errors import FineSolverError
from neuroscale_couple.fine.micro_manager import MicroManager
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.values import F64, Batch, FieldSpec, FineAnswer, Points

N, DT = 5, 0.25
INPUTS = (FieldSpec("a", ("",), "1"), FieldSpec("v", ("x", "y"), "1"))
OUTPUTS = (FieldSpec("b", ("",), "1"), FieldSpec("w", ("x", "y"), "1"))
RECORDING = """
import json
from pathlib import Path
from micro_manager import MicroSimulationInterface

class MicroSimulation(MicroSimulationInterface):
    def __init__(self, sim_id):
        self.sim_id, self.s = sim_id, 0.0
        self.told("init")
    def told(self, *what):
        with (Path(__file__).parent / f"calls-{self.sim_id}.txt").open("a") as file:
            file.write(json.dumps(what) + "\\n")
    def initialize(self, initial_data=None):
        self.told("initialize", float(initial_data["a"]), initial_data["v"].tolist())
    def solve(self, data, dt):
        self.told("solve", float(data["a"]), dt)
        self.s = 0.5 * self.s + dt * data["a"]
        return {"b": self.s, "w": data["v"] * self.s}
    def get_state(self):
        self.told("get_state")
        return self.s
    def set_state(self, state):
        self.told("set_state")
        self.s = state
    def get_global_id(self):  # an installed Micro Manager wants both
        return self.sim_id
    def set_global_id(self, global_id):
        self.sim_id = global_id
    def output(self): self.told("output")
"""
STATELESS = RECORDING.replace("def get_state", "def other").replace("(MicroSimulationInterface):", ":")
Make = Callable[..., MicroManager]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    solvers: list[MicroManager] = []

    def build(text: str = RECORDING, history: bool = True, points: int = N, **micro: Any) -> MicroManager:
        (tmp_path / "micro.py").write_text(text)
        settings = {"file": "micro.py", "folder": str(tmp_path), "workers": 2, "timeout": 30.0} | micro
        solver = MicroManager(Fine(solver="micro_manager", micro=Micro(**settings)), problem(history))
        solvers.append(solver)
        solver.attach(Points(10 + np.arange(points), np.zeros((points, 2)), np.ones(points)))
        return solver

    yield build
    for solver in solvers:
        solver.close()


def problem(history: bool = True) -> OpaqueProblem:
    return OpaqueProblem(INPUTS, OUTPUTS, history)


def asked(window: int, iteration: int = 0, points: int = N) -> F64:
    rng = np.random.default_rng([window, iteration])
    return np.asarray(rng.uniform(1.0, 2.0, (points, 3)))


def step(solver: MicroManager, window: int, rows: Any = slice(None), iteration: int = 0) -> FineAnswer:
    inputs = asked(window, iteration, len(solver.points))
    solver.begin(Batch(window, iteration, (window + 1) * DT, DT, inputs))
    rows = np.arange(len(solver.points))[rows]
    return solver.solve(rows, inputs[rows])


def direct(windows: list[F64]) -> F64:
    """Outputs of the last window where every simulation has seen all of them."""
    s = np.zeros(len(windows[0]))
    for inputs in windows:
        s = 0.5 * s + DT * inputs[:, 0]
    return np.column_stack([s, windows[-1][:, 1:] * s[:, None]])


def calls(folder: Path, point: int) -> list[str]:
    lines = (folder / f"calls-{point}.txt").read_text().splitlines()
    return [json.loads(line)[0] for line in lines]


def test_answers_equal_direct_calls_bit_for_bit(make: Make) -> None:
    solver = make()
    for window in range(4):
        answer = step(solver, window)
        solver.commit()
    assert np.array_equal(answer.outputs, direct([asked(w) for w in range(4)]))
    assert answer.tangent.shape == (N, 3, 0) and answer.converged.all() and (answer.iterations == 1).all()


def test_calls_come_in_the_order_of_the_contract(make: Make, tmp_path: Path) -> None:
    solver = make(output_every=2)
    for window in range(2):
        for iteration in range(2):
            step(solver, window, iteration=iteration)
        solver.commit()
    once = ["get_state", "solve", "set_state", "solve"]
    assert calls(tmp_path, 12) == ["init", "initialize", *once, *once, "output"]


def test_states_are_left_alone_where_windows_do_not_repeat(make: Make, tmp_path: Path) -> None:
    solver = make(rollback=False, output_every=0)
    for window in range(3):
        step(solver, window)
        solver.commit()
    assert calls(tmp_path, 10) == ["init", "initialize", "solve", "solve", "solve"]


def test_an_iteration_starts_from_the_state_of_the_windows_start(make: Make) -> None:
    solver = make()
    step(solver, 0)
    solver.commit()
    for iteration in range(3):
        answer = step(solver, 1, iteration=iteration)
    assert np.array_equal(answer.outputs, direct([asked(0), asked(1, 2)]))
    solver.rollback()
    assert np.array_equal(step(solver, 1).outputs, direct([asked(0), asked(1)]))


def test_steps_inside_a_repeated_window_start_from_each_other(make: Make) -> None:
    solver = make()
    step(solver, 0)
    solver.commit()
    for _ in range(2):
        start = solver.snapshot()
        step(solver, 1, rows=slice(3))
        solver.next_step()
        answer = step(solver, 2)  # the last two points are first solved in the second step
        solver.restore(start)
    assert np.array_equal(answer.outputs, direct([asked(w) for w in range(3)]))
    assert answer.iterations.tolist() == [1, 1, 1, 2, 2]


def test_a_point_that_others_answered_is_brought_up_to_date_by_replay(make: Make, tmp_path: Path) -> None:
    solver = make()
    for window in range(6):
        step(solver, window, rows=slice(0, N, 2) if window < 5 else slice(None))
        solver.commit()
    answer = step(solver, 6)
    assert np.array_equal(answer.outputs, direct([asked(w) for w in range(7)]))
    told = [json.loads(line) for line in (tmp_path / "calls-11.txt").read_text().splitlines()]
    once = ["get_state", "solve"]
    assert [c[0] for c in told] == ["init", "initialize", *["solve"] * 5, *once, "output", *once]
    assert told[1][1] == asked(0)[1, 0] and told[4][1:] == [asked(2)[1, 0], DT]


def test_replays_are_counted(make: Make) -> None:
    solver = make()
    for window in range(3):
        step(solver, window, rows=[0])
        solver.commit()
    assert step(solver, 3).iterations.tolist() == [1, 4, 4, 4, 4]


def test_a_replay_is_done_once_in_a_window(make: Make) -> None:
    solver = make()
    for window in range(3):
        step(solver, window, rows=[0])
        solver.commit()
    assert step(solver, 3, rows=[4]).iterations.tolist() == [4]
    assert step(solver, 3, rows=[4], iteration=1).iterations.tolist() == [1]


def test_without_history_nothing_is_replayed_nor_saved(make: Make, tmp_path: Path) -> None:
    solver = make(history=False, output_every=0)
    for window in range(3):
        step(solver, window, rows=[0])
        solver.commit()
    assert step(solver, 3).iterations.tolist() == [1] * N
    step(solver, 3, iteration=1)
    assert calls(tmp_path, 13) == ["init", "initialize", "solve", "solve"]


def test_simulations_are_built_when_first_needed(make: Make, tmp_path: Path) -> None:
    solver = make()
    step(solver, 0, rows=[3])
    assert [path.name for path in tmp_path.glob("calls-*")] == ["calls-13.txt"]


def test_points_are_spread_over_the_workers(make: Make) -> None:
    solver = make(points=100, workers=3)
    step(solver, 0, rows=slice(10))
    step(solver, 0, rows=slice(10, None))
    assert np.ptp(np.bincount(solver.home)) <= 2 and len(np.bincount(solver.home)) == 3


def test_repeating_without_states_is_refused(make: Make) -> None:
    solver = make(STATELESS)
    step(solver, 0)
    with pytest.raises(FineSolverError, match=r"point 10: the window is repeated, but the state .* was not saved"):
        step(solver, 0, iteration=1)


FAILING = """
import os, signal, time
from pathlib import Path
class MicroSimulation:
    def __init__(self, sim_id):
        self.sim_id, self.s = sim_id, 0.0
    def solve(self, data, dt):
        self.s = 0.5 * self.s + dt * data["a"]
        if self.sim_id == 12 and abs(data["a"] - {a}) < 1e-12:
            {what}
        return {{"b": self.s, "w": data["v"] * self.s}}
"""


def failing(window: int, what: str) -> str:
    """Point 12 does something bad in a window."""
    return FAILING.format(a=repr(float(asked(window)[2, 0])), what=what)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise ValueError('too hot')", r"ValueError: too hot \(.*micro.py, line 10\)"),
        ("return {'b': 1.0}", "gave no 'w', which the configuration writes; it gave 'b'"),
        ("return {'b': float('nan'), 'w': [0, 0]}", r"'b' is nan, not finite"),
        ("return {'b': 1.0, 'w': [0, 0, 0]}", r"'w' has 3 value\(s\), expected 2 values"),
        ("return {'b': [1, 2], 'w': [0, 0]}", r"'b' has 2 value\(s\), expected one value"),
        ("return {'b': 'hot', 'w': [0, 0]}", "'b' is 'hot', expected numbers"),
        ("return [1, 2]", r"solve\(\) gave list, expected a dict of b, w"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its process has ended: signal SIGSEGV; twice"),
        ("os._exit(3)", "its process has ended: exit status 3; twice"),
        ("time.sleep(60)", r"one call took longer than 0.7 s \(fine.micro.timeout\) and was ended; twice"),
    ],
)  # fmt: skip
def test_a_failing_point_is_told_and_leaves_the_others_alone(make: Make, what: str, said: str) -> None:
    timeout = 0.7 if "sleep" in what else 30.0
    solver = make(failing(1, what), rollback=False, timeout=timeout)
    step(solver, 0)
    solver.commit()
    answer = step(solver, 1)
    assert answer.converged.tolist() == [True, True, False, True, True]
    others = answer.converged
    assert np.array_equal(answer.outputs[others], direct([asked(0), asked(1)])[others])
    assert solver.diagnosis(2).startswith("micro simulation 12: ")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(solver.diagnosis(2))


def test_a_crash_is_retried_once_with_the_state_brought_back(make: Make, tmp_path: Path) -> None:
    once = f"(Path({str(tmp_path)!r}) / 'flag').exists() or [(Path({str(tmp_path)!r}) / 'flag').touch(), os._exit(1)]"
    solver = make(failing(2, once), rollback=False)
    for window in range(4):
        answer = step(solver, window)
        assert answer.converged.all()
        solver.commit()
    assert (tmp_path / "flag").exists()
    assert np.array_equal(answer.outputs, direct([asked(w) for w in range(4)]))


def test_a_failed_point_is_built_anew(make: Make) -> None:
    solver = make(failing(0, "raise ValueError('once')").replace("== 12", "== 12 and not os.environ.get('X')"))
    assert not step(solver, 0).converged[2]
    inputs = asked(5)
    assert np.array_equal(solver.solve(np.array([2]), inputs[[2]]).outputs, direct([inputs])[[2]])


def test_an_input_that_is_not_finite_does_not_reach_the_simulation(make: Make, tmp_path: Path) -> None:
    solver = make()
    inputs = asked(0)
    inputs[1, 2] = np.nan
    answer = solver.solve(np.arange(N), inputs)
    assert answer.converged.tolist() == [True, False, True, True, True]
    assert "an input is not finite" in solver.diagnosis(1) and not (tmp_path / "calls-11.txt").exists()


def test_what_output_does_wrong_stops_the_run(make: Make) -> None:
    solver = make(RECORDING.replace('self.told("output")', "raise OSError('disk full')"))
    step(solver, 0)
    with pytest.raises(FineSolverError, match="window 0: point 10: output: OSError: disk full"):
        solver.commit()


@pytest.mark.parametrize("rows", [[1, 2, 1], [0, 1, 2, 3, 4, 0]])
def test_a_point_is_asked_once_in_a_call(make: Make, rows: list[int]) -> None:
    with pytest.raises(ValueError, match=r"each (point|of which) is asked once"):
        make().solve(np.array(rows), asked(0)[rows])


@pytest.mark.parametrize(
    "answer", ["collections.OrderedDict(b=[s], w=tuple(w))", "collections.UserDict(b=np.float32(s), w=w[:, None])"]
)
def test_answers_in_other_forms_are_taken(make: Make, answer: str) -> None:
    text = f"""
import collections
import numpy as np
class MicroSimulation:
    def solve(self, data, dt):
        s, w = 2.0, 3.0 * data["v"]
        return {answer}
"""
    got = step(make(text, rollback=False), 0)
    assert got.converged.all() and np.array_equal(
        got.outputs, np.column_stack([np.full(N, 2.0), 3.0 * asked(0)[:, 1:]])
    )


def test_every_simulation_is_destroyed_at_the_end(make: Make, tmp_path: Path, capfd: Any) -> None:
    text = (
        RECORDING
        + """
    def destroy(self):
        self.told("destroy")
        raise OSError("gone already")
"""
    )
    solver = make(text, rollback=False)
    step(solver, 0)
    solver.close()
    assert [calls(tmp_path, 10 + i)[-1] for i in range(N)] == ["destroy"] * N
    assert "destroy: OSError: gone already" in capfd.readouterr().err


def test_no_points_need_no_workers(make: Make) -> None:
    solver = make(points=0)
    assert solver.pool is None
    assert step(solver, 0).outputs.shape == (0, 3)
    solver.commit()


def test_workers_are_gone_after_close(make: Make) -> None:
    solver = make()
    assert solver.pool is not None
    pids = [process._process.pid for process in solver.pool._processes]
    solver.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with their parent")
def test_workers_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "micro.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "class MicroSimulation:\n"
        "    def solve(self, data, dt):\n"
        "        (Path(__file__).parent / 'pid').write_text(str(os.getpid()))\n"
        "        time.sleep(100)\n"
    )
    program = f"""
import numpy as np
from tests.unit.test_micro_manager import Fine, Micro, MicroManager, Points, problem
solver = MicroManager(Fine(micro=Micro(file="micro", folder={str(tmp_path)!r}, workers=1)), problem())
solver.attach(Points(np.arange(1), np.zeros((1, 2)), np.ones(1)))
solver.solve(np.arange(1), np.ones((1, 3)))
"""
    run = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    run.kill()
    run.wait()
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
