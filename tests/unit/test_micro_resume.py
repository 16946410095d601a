"""Micro simulations of a run that is resumed: their states where they can be kept, replay where not, exact in all."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neuroscale_couple.checkpoint import pack_arrays, read_arrays
from neuroscale_couple.cli import main
from neuroscale_couple.config.load import load as load_config
from neuroscale_couple.config.schema import Fine, Micro
from neuroscale_couple.errors import CheckpointError
from neuroscale_couple.evaluation.check import check
from neuroscale_couple.fine.micro_manager import JOURNAL, MicroManager
from neuroscale_couple.ledger import read_table
from neuroscale_couple.values import Points
from tests.killing import killed_after
from tests.unit.test_micro_manager import RECORDING, STATELESS, N, asked, calls, direct, failing, problem, step

Make = Callable[..., MicroManager]
PICKY = RECORDING.replace("        return self.s\n    def set", "        return lambda: 1\n    def set")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    solvers: list[MicroManager] = []

    def build(text: str = RECORDING, history: bool = True, **micro: Any) -> MicroManager:
        (tmp_path / "micro.py").write_text(text)
        settings = {"file": "micro.py", "folder": str(tmp_path), "workers": 2, "timeout": 30.0, "output_every": 0}
        solver = MicroManager(Fine(solver="micro_manager", micro=Micro(**(settings | micro))), problem(history))
        solver.keep_in(tmp_path / "kept")
        solvers.append(solver)
        solver.attach(Points(10 + np.arange(N), np.zeros((N, 2)), np.ones(N)))
        return solver

    yield build
    for solver in solvers:
        solver.close()


def run(solver: MicroManager, windows: range, rows: Any = slice(None)) -> None:
    for window in windows:
        step(solver, window, rows)
        solver.commit()


def written(solver: MicroManager, folder: Path) -> dict[str, Any]:
    """The solver's state as a checkpoint on the disk gives it back."""
    (folder / "state").write_bytes(pack_arrays(solver.get_state()))
    return read_arrays(folder / "state")[0]


def resumed(make: Make, state: dict[str, Any], folder: Path, text: str = RECORDING, **micro: Any) -> MicroManager:
    for path in folder.glob("calls-*"):
        path.unlink()
    solver = make(text, **micro)
    solver.set_state(state)
    return solver


@pytest.mark.parametrize("text", [RECORDING, STATELESS, PICKY], ids=["states", "no states", "no pickle"])
def test_a_resumed_solver_answers_bit_for_bit(make: Make, tmp_path: Path, text: str) -> None:
    solver = make(text, rollback=False)
    run(solver, range(3))
    state = written(solver, tmp_path)
    run(solver, range(3, 5))  # goes on, and is then lost
    solver.close()
    other = resumed(make, state, tmp_path, text, rollback=False)
    for window in (3, 4):
        answer = step(other, window)
        other.commit()
        assert np.array_equal(answer.outputs, direct([asked(w) for w in range(window + 1)]))
    taken = calls(tmp_path, 12)
    once = ["set_state", "solve"] if text == RECORDING else ["solve"] * 4
    assert taken == ["init", "initialize", *once, "solve"]
    first = json.loads((tmp_path / "calls-12.txt").read_text().splitlines()[1])
    assert first[1] == asked(0)[2, 0]  # initialised with what was asked first


def test_points_that_lag_behind_keep_their_last_exact_state(make: Make, tmp_path: Path) -> None:
    solver = make(rollback=False)
    run(solver, range(2))
    solver.get_state()
    run(solver, range(2, 4), rows=[0])
    state = written(solver, tmp_path)
    assert state["kept/at"].tolist() == [4, 2, 2, 2, 2]
    solver.close()
    answer = step(resumed(make, state, tmp_path, rollback=False), 4)
    assert np.array_equal(answer.outputs, direct([asked(w) for w in range(5)]))
    assert answer.iterations.tolist() == [1, 3, 3, 3, 3]


def test_windows_repeat_after_a_resume(make: Make, tmp_path: Path) -> None:
    solver = make()
    run(solver, range(2))
    state = written(solver, tmp_path)
    solver.close()
    other = resumed(make, state, tmp_path)
    for iteration in range(3):
        answer = step(other, 2, iteration=iteration)
    assert np.array_equal(answer.outputs, direct([asked(0), asked(1), asked(2, 2)]))
    assert calls(tmp_path, 11) == [
        "init",
        "initialize",
        "set_state",
        *["get_state", "solve"],
        *["set_state", "solve"] * 2,
    ]


def test_without_history_nothing_is_kept(make: Make, tmp_path: Path) -> None:
    solver = make(history=False)
    run(solver, range(2))
    state = written(solver, tmp_path)
    assert sorted(state) == ["first", "windows"] and not (tmp_path / "kept").exists()
    solver.close()
    step(resumed(make, state, tmp_path, history=False), 2)
    assert calls(tmp_path, 13) == ["init", "initialize", "solve"]


def test_states_are_taken_once_a_window_and_a_crash_goes_on_from_them(make: Make, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    crash = f"(Path({str(flag)!r}).exists()) or [Path({str(flag)!r}).touch(), os._exit(1)]"
    text = failing(2, crash) + (
        "    def get_state(self):\n        return self.s\n    def set_state(self, s):\n        self.s = s\n"
    )
    solver = make(text, rollback=False)
    for window in range(2):
        step(solver, window)
        solver.commit()
        solver.get_state()
    answer = step(solver, 2)
    assert flag.exists() and np.array_equal(answer.outputs, direct([asked(w) for w in range(3)]))
    assert answer.iterations.tolist() == [1] * N  # no step was taken again


def test_a_state_that_cannot_be_pickled_is_said_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    solver = make(PICKY, rollback=False)
    with caplog.at_level(logging.WARNING):
        for window in range(2):
            step(solver, window)
            solver.commit()
            solver.get_state()
    assert len(caplog.records) == 1
    assert "micro simulation 10: get_state: " in caplog.text
    assert "--resume will replay all its steps" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_journal_is_refused(make: Make, tmp_path: Path, damage: str) -> None:
    solver = make(rollback=False)
    run(solver, range(3))
    state = written(solver, tmp_path)
    solver.close()
    path = tmp_path / "kept" / JOURNAL
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(bytes(data) if damage == "changed" else path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"micro_inputs.f64: this file should hold .* 3 steps .* without --resume"
    ):
        resumed(make, state, tmp_path)


# -- the whole program --------------------------------------------------------------------------------------------

MACRO = """
import sys, time
import numpy as np
from neuroscale_couple import connect
from neuroscale_couple.values import Points

n = 40
closure = connect(sys.argv[1], None, Points(np.arange(n), np.zeros((n, 2)), np.ones(n)))
found = closure.resumed()
start = 0 if found is None else found[0]
heard = [] if found is None else list(found[1]["heard"])
for window in range(start, 10):
    a = 1.0 + 0.3 * np.sin(0.4 * window + np.arange(n) / n)
    outputs = closure.evaluate({"a": a, "v": np.stack([a, 2 * a], axis=1)}, 0.25 * (window + 1), 0.25)
    heard.append(np.column_stack([outputs["b"], outputs["w"]]))
    closure.commit({"heard": np.array(heard)})
    time.sleep(0.05)
np.save(sys.argv[2], np.array(heard))
closure.close()
"""
SLOW = """
class MicroSimulation:
    def __init__(self, sim_id):
        self.s = 0.1 * sim_id
    def solve(self, data, dt):
        self.s = 0.5 * self.s + dt * data["a"]
        return {"b": self.s, "w": data["v"] * self.s}
    def get_state(self):
        return self.s
    def set_state(self, state):
        self.s = state
"""


def case(folder: Path, micro: str, more: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "micro.py").write_text(micro)
    (folder / "macro.py").write_text(MACRO)
    fields = {
        "inputs": {"a": {}, "v": {"components": ["x", "y"]}},
        "outputs": {"b": {}, "w": {"components": ["x", "y"]}},
    }
    config = {
        "transport": "embedded",
        "problem": {"name": "opaque", **fields},
        "fine": {"solver": "micro_manager", "micro": {"file": "micro.py", "folder": str(folder), "workers": 1}},
        "correction": {"admissible": False},
        "output": {"checkpoint": True, "every": 0, "folder": str(folder / "runs")},
        **more,
    }
    (folder / "neuroscale.yaml").write_text(yaml.safe_dump({"neuroscale": config}))
    return folder / "neuroscale.yaml"


PROGRAM = """
import sys
from pathlib import Path
import runpy
from neuroscale_couple import assemble
assemble.run_options = assemble.RunOptions(resume=sys.argv[3] == "resume")
sys.argv = ["macro.py", *sys.argv[1:3]]
runpy.run_path(str(Path(sys.argv[1]).parent / "macro.py"))
"""
"""The macro program with `--resume` or without."""


def test_resuming_without_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = case(tmp_path / "c", SLOW, {"macro": "macro.py"})
    assert main(["run", str(config), "--resume", "--set", "output.checkpoint=false"]) == 1
    assert "--resume needs the checkpoints of the earlier run, but neuroscale.output.checkpoint is false" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("micro", "history", "said"),
    [
        (SLOW, True, "--resume goes on from the states that get_state gives"),
        (SLOW.replace("get_state", "other"), True, "--resume lets each simulation take all its earlier steps again"),
        (SLOW, False, "--resume builds the simulations anew"),
    ],
)
def test_check_says_how_simulations_come_back(tmp_path: Path, micro: str, history: bool, said: str) -> None:
    config = case(tmp_path / "c", micro, {})
    given = {"problem.history": history, "fine.micro.rollback": False}
    found = {f.what: f for f in check(load_config(config, given), tmp_path / "runs")}
    assert found["checkpoint"].good
    assert said in found["checkpoint"].said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fine only", "learning"])
def test_a_run_that_was_killed_goes_on_to_the_same_answers(tmp_path: Path, how: str) -> None:
    closed = {"gate": {"open": False}, "learning": {"mode": "off"}}
    learning = {"gate": {"tolerance": 0.05, "confidence": 0.9}, "learning": {"mode": "online"}}
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    heard = {}
    for name in ("whole", "killed"):
        config = case(tmp_path / name / "c", SLOW, closed if how == "fine only" else learning)
        command = [sys.executable, "-c", PROGRAM, str(config), str(tmp_path / f"{name}.npy")]
        ledger = config.parent / "runs" / "c" / "run" / "ledger.csv"
        if name == "killed":
            killed_after([*command, "start"], ledger, 5, env)
            before = read_table(ledger)
        subprocess.run([*command, "start" if name == "whole" else "resume"], env=env, check=True, timeout=100)
        heard[name] = np.load(tmp_path / f"{name}.npy")
        rows = read_table(ledger)
    assert np.array_equal(heard["killed"], heard["whole"])
    assert 5 <= len(before["window"]) < 10 and rows["window"] == list(range(10))
    if how == "learning":
        assert max(before["model_version"]) >= 0.0 and sum(rows["answered_surrogate_coarse"][5:]) > 0.0
