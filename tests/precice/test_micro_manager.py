"""Cases of the Micro Manager through preCICE, with the real command line, files as their users have them."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.ledger import read_table
from tests.precice.two_scale import Case

pytestmark = pytest.mark.needs("precice")
SCHEMES = ["serial-explicit", "parallel-explicit", "serial-implicit", "parallel-implicit"]


def alone(case: Case, point: int, asked: list[list[Any]], monkeypatch: Any) -> Any:
    """k_00 and turned [windows, 3] of a simulation that is called directly, outside of any coupling."""
    from neuroscale_couple.fine.micro_interface import stand_in

    for name in ("micro_manager", "micro_manager.micro_simulation"):
        monkeypatch.setitem(sys.modules, name, None)
    stand_in()
    monkeypatch.syspath_prepend(str(case.folder))
    monkeypatch.chdir(case.folder)
    sys.modules.pop("micro", None)
    kind = importlib.import_module("micro").MicroSimulation
    monkeypatch.setattr(kind, "told", lambda self, *what: None)
    simulation = kind(point)
    answers = []
    for dt, c, flux in asked:
        answer = simulation.solve({"concentration": np.float64(c), "flux": np.array(flux)}, dt)
        answers.append([answer["k_00"], *answer["turned"]])
    sys.modules.pop("micro", None)
    return np.array(answers)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_closed_gate_equals_direct_calls_bit_for_bit(tmp_path: Path, scheme: str, monkeypatch: Any) -> None:
    feedback = 0.1 if scheme.endswith("implicit") else 0.0
    case = Case(tmp_path, scheme, "new", windows=3, feedback=feedback).write()
    end = case.run("--fine-only")
    assert (end.status, end.macro_status) == (0, 0), end.said + end.macro_said
    for point in (0, 5):
        windows: list[list[list[Any]]] = [[]]
        for name, *values in case.calls(point):
            if name == "solve":
                windows[-1].append(values)
            if name == "output" or (not feedback and name == "solve"):
                windows.append([])
        if feedback:
            windows = by_window([c for c in case.calls(point) if c[0] != "output"])
        last = [solves[-1][:3] for solves in windows if solves]
        expected = alone(case, point, last, monkeypatch)
        heard = np.column_stack([end.heard["k"][:, point], end.heard["turned"][:, point]])
        assert np.array_equal(heard[-1], expected[-1]) and np.array_equal(heard, expected)


def by_window(calls: list[list[Any]]) -> list[list[list[Any]]]:
    """The solves of each window of an implicit coupling: a state is saved at its start."""
    windows: list[list[list[Any]]] = []
    for name, *values in calls:
        if name == "get_state":
            windows.append([])
        if name == "solve":
            windows[-1].append(values)
    return windows


WITHOUT = """
import sys
sys.modules["neuroscale_couple.transport._precice"] = None
"""


@pytest.mark.parametrize("scheme", ["serial-explicit", "parallel-implicit"])
def test_the_package_and_our_own_binding_pass_the_same(tmp_path: Path, scheme: str, monkeypatch: Any) -> None:
    heard = {}
    for name in ("own", "package"):
        (tmp_path / name).mkdir()
        if name == "package":
            (tmp_path / name / "sitecustomize.py").write_text(WITHOUT)
            monkeypatch.setenv("PYTHONPATH", str(tmp_path / name))
        feedback = 0.1 if scheme.endswith("implicit") else 0.0
        end = Case(tmp_path / name, scheme, "new", windows=3, feedback=feedback).write().run("--fine-only")
        assert (end.status, end.macro_status) == (0, 0), end.said + end.macro_said
        heard[name] = end.heard
    for field in ("k", "turned"):
        assert heard["own"][field].any() and np.array_equal(heard["own"][field], heard["package"][field])


REFUSED = """
import precice  # finds the library
import numpy as np
from neuroscale_couple.transport._precice import Participant

def refused(kind, said, call, *told):
    try:
        call(*told)
    except kind as error:
        assert said in str(error), error
    else:
        raise AssertionError(f"{told} was taken")

refused(RuntimeError, "nothing.xml", Participant, "Macro", "nothing.xml", 0, 1)
write = Participant("Macro", "precice-config.xml", 0, 1).write_data
ids, values, gaps = np.array([0, 1], dtype=np.int32), np.zeros(2), np.zeros(4, dtype=np.int32)[::2]
for wrong in (ids.astype(np.int64), [0, 1], gaps):
    refused(TypeError, "incompatible function arguments", write, "macro-mesh", "concentration", wrong, values)
refused(TypeError, "incompatible", write, "macro-mesh", "concentration", ids, values.astype(np.float32))
refused(ValueError, "ids: got 2 dimensions, expected 1", write, "macro-mesh", "concentration", ids[None], values)
refused(RuntimeError, "concentratoin", write, "macro-mesh", "concentratoin", ids, values)
"""


def test_our_own_binding_refuses_what_precice_cannot_take(tmp_path: Path) -> None:
    if importlib.util.find_spec("neuroscale_couple.transport._precice") is None:
        pytest.skip("built without preCICE")
    Case(tmp_path, "serial-explicit", "new").write()
    command = [sys.executable, "-c", REFUSED]  # preCICE starts MPI, which stays in a process of its own
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dialect", ["old", "new"])
def test_explicit_coupling_calls_what_the_contract_says(tmp_path: Path, dialect: str) -> None:
    case = Case(tmp_path, "serial-explicit", dialect, windows=4).write()
    end = case.run("--fine-only")
    assert end.status == 0, end.said
    expected = ["init", "initialize", "solve", "solve", "output", "solve", "solve", "output"]
    assert [c[0] for c in case.calls(3)] == expected
    if dialect == "old":  # data_from_micro_sims: seen in preCICE's export, not by the macro solver
        text = (tmp_path / "exported" / "macro-mesh-Micro-Manager.dt4.vtu").read_text()
        found = re.search(r'Name="size"[^>]*>([^<]*)<', text)
        assert found is not None
        sizes = end.heard["k"][-1] - np.exp(-end.heard["c"][-1])
        assert np.allclose(np.array(found[1].split(), float), sizes, rtol=1e-5)


def test_a_step_shorter_than_the_window_makes_several(tmp_path: Path) -> None:
    case = Case(tmp_path, "serial-implicit", "new", windows=2, micro_dt=0.1, feedback=0.1).write()
    end = case.run("--fine-only")
    assert end.status == 0, end.said
    solves = [c[1] for c in case.calls(2) if c[0] == "solve"]
    assert np.allclose(solves[:3], [0.1, 0.1, 0.05]) and len(solves) % 3 == 0
    assert [c[0] for c in case.calls(2)][2:8] == ["get_state", "solve", "solve", "solve", "set_state", "solve"]


def test_ranks_change_nothing(tmp_path: Path) -> None:
    """The decomposition of the JSON gives each rank its part of the domain."""
    case = Case(tmp_path, "serial-implicit", "new", feedback=0.1).write()
    one = case.run("--fine-only")
    case.decomposition = (2, 1)
    two = case.write().run("--fine-only", ranks=2)
    assert (two.status, two.macro_status) == (0, 0), two.said + two.macro_said
    assert np.array_equal(two.heard["k"], one.heard["k"]) and np.array_equal(two.heard["turned"], one.heard["turned"])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["serial-explicit", "serial-implicit"])
def test_a_coupling_that_was_killed_goes_on_to_the_same_answers(tmp_path: Path, scheme: str) -> None:
    options = ("--fine-only", "--set", "output.checkpoint=true")
    case = Case(tmp_path, scheme, "new", windows=60).write()
    case.killed(*options, windows=20)
    checkpoints = tmp_path / "runs" / tmp_path.name / "fine_only" / "checkpoint"
    case.done = json.loads((checkpoints / "manifest.json").read_text())["windows"][0]["window"]
    resumed = case.write().run(*options, "--resume")
    assert (resumed.status, resumed.macro_status) == (0, 0), resumed.said + resumed.macro_said
    assert 19 <= case.done < 60 and [c[0] for c in case.calls(3)][:3] == ["init", "initialize", "set_state"]
    case.done = 0
    whole = case.write().run("--fine-only", "--set", "output.folder=whole")
    assert whole.status == 0, whole.said
    left = len(resumed.heard["k"])
    assert np.array_equal(resumed.heard["k"], whole.heard["k"][-left:])
    assert np.array_equal(resumed.heard["turned"], whole.heard["turned"][-left:])


def profiles(folder: Path) -> list[Path]:
    """What preCICE writes from the moment on that our participant is made."""
    return list(folder.glob("precice-profiling/Micro-Manager*"))


@pytest.mark.parametrize(
    ("micro", "said"),
    [
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("class Simulation: pass", "has no class MicroSimulation"),
        ("class MicroSimulation:\n    def __init__(self, i): pass", "has no get_state and set_state"),
    ],
)
def test_what_cannot_run_is_said_before_precice_waits(tmp_path: Path, micro: str, said: str) -> None:
    case = Case(tmp_path, "serial-implicit", "new").write(micro)
    end = case.run(timeout=60.0)
    assert end.status == 1 and said in end.said
    assert not profiles(tmp_path), "no participant was made"


BAD = [
    ("raise ValueError('cracked')", "ValueError: cracked"),
    ("return {'k_00': 1.0}", "solve() gave no 'turned', which the configuration writes; it gave 'k_00'"),
    ("return {'k_00': float('nan'), 'turned': flux}", "'k_00' is nan, not finite"),
    ("import time; time.sleep(60)", "one call took longer than 1 s (fine.micro.timeout) and was ended; twice"),
]


@pytest.mark.parametrize(("what", "said"), BAD, ids=["raises", "too little", "nan", "hangs"])
def test_a_simulation_that_goes_wrong_ends_the_run(tmp_path: Path, what: str, said: str) -> None:
    text = (Path(__file__).parent / "programs" / "micro.py").read_text()
    start = "        self.s = (self.s + dt"
    assert start in text
    bad = text.replace(start, f"        if self.sim_id == 4:\n            {what}\n{start}")
    timeout = 1.0 if "sleep" in what else 300.0
    case = Case(tmp_path, "serial-explicit", "old", own={"fine": {"micro": {"timeout": timeout}}})
    end = case.write(bad).run(timeout=60.0)
    assert end.status == 1 and end.macro_status != 0, end.said + end.macro_said
    assert "end 'Macro', if need be: preCICE does not always notice that a program has ended" in end.said
    assert "window 0, iteration 0: the fine solver did not converge at point 4" in end.said
    assert f"micro simulation 4: {said}" in end.said and "concentration=" in end.said
    assert profiles(tmp_path)


def brought_up_to_date(case: Case, heard: dict[str, Any], states: Any) -> int:
    """Answers to what a window has converged with are those of a simulation that has seen every window before.

    states: float64 [points] at the start. Returns how often points were brought up to date: two such answers in a row
    without a state saved in between, which is done before the first solve of a window.
    """
    replays = 0
    for point in range(case.points):
        known = converged_answers(heard["c"][:, point], heard["flux"][:, point], states[point], case.window_size)
        before = ""
        for name, *values in case.calls(point):
            if name == "solve" and (asked := (values[1], *values[2])) in known:
                assert values[3] == known[asked], f"point {point}: a state that is not that of its windows"
                replays += before == "replayed"
                before = "replayed"
            elif name in ("solve", "get_state", "set_state"):
                before = name
    return replays


def converged_answers(c: Any, flux: Any, s: float, dt: float) -> dict[tuple[float, ...], float]:
    """k_00 of one point by what it was asked at the end of each window: float64 [windows], [windows, 2]"""
    known = {}
    for asked, gradient in zip(c, flux, strict=True):
        s = (s + dt * float(gradient @ gradient)) / (1.0 + dt)
        known[(float(asked), *gradient.tolist())] = float(np.exp(-asked)) + s
    return known


@pytest.mark.slow
def test_an_open_gate_answers_points_within_the_tolerance(tmp_path: Path) -> None:
    own = {"gate": {"tolerance": 0.002}}  # with 0.05 the first leaders do, and no point has to come back
    case = Case(tmp_path, "serial-implicit", "old", 100, 8, 0.1, 0.1, feedback=0.1, own=own).write()
    gated = case.run()
    replays = brought_up_to_date(case, gated.heard, 0.1 * np.arange(100))
    assert (gated.status, gated.macro_status) == (0, 0), gated.said + gated.macro_said
    assert "used all 20 iterations" not in gated.said
    closed = case.run("--fine-only")
    ledger = read_table(tmp_path / "runs" / tmp_path.name / "run" / "ledger.csv")
    assert sum(ledger["answered_surrogate_coarse"]) > 100.0
    assert replays > 0, "points are to come back to their simulations"
    error = np.abs(gated.heard["k"] / closed.heard["k"] - 1.0)
    assert np.quantile(error, 0.95) < 0.002
