"""Cases 02 and 03: the README's commands on a few elements, and the first step of the whole case."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.cli import FINE_ONLY, main
from neuroscale_couple.config.load import load
from neuroscale_couple.evaluation.expected import gated, read
from neuroscale_couple.ledger import read_table
from tests.killing import killed_after
from tests.mpi.launch import environment, mpirun

pytestmark = [pytest.mark.needs("fenicsx"), pytest.mark.timeout(500)]
CASES = Path(__file__).parents[2] / "cases"
HEAT, COOK = CASES / "02_fenicsx_two_scale_heat", CASES / "03_fenicsx_fe2_cook"
SMALL = {HEAT: {"settings.cells": "[3,2]", "gate.audit": 0.2}, COOK: {"settings.cells": "[4,3]", "gate.audit": 0.2}}
FIRST = {
    HEAT: {"settings.steps": 1, "settings.duration": 200.0},
    COOK: {"settings.steps": 1, "settings.load": 0.0625},
}


def expected(case: Path) -> dict[str, Any]:
    return read(case / "expected.toml")


def sets(values: dict[str, Any]) -> list[str]:
    texts = {key: {None: "null", True: "true", False: "false"}.get(v, str(v)) for key, v in values.items()}
    return [part for key, text in texts.items() for part in ("--set", f"{key}={text}")]


def copied(case: Path, folder: Path) -> Path:
    """A copy of a case, without results and training data."""
    return Path(shutil.copytree(case, folder / case.name, ignore=shutil.ignore_patterns("runs", "training_data")))


def macro(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "macro.npz") as stored:
        return {name: stored[name] for name in stored.files if stored[name].dtype.kind != "U"}


@dataclass
class Line:
    """A command of a README that was executed, and what lay in the results folder after it."""

    text: str
    output: str
    summary: dict[str, Any]
    results: dict[str, np.ndarray]


def execute_readme(case: Path, folder: Path) -> list[Line]:
    """All commands in the README's sh blocks, in order, on a few elements."""
    here = copied(case, folder)
    blocks = re.findall(r"```sh\n(.*?)```", (case / "README.md").read_text(), re.DOTALL)
    programs = [str(Path(sys.executable).parent), str(Path(mpirun()).parent), "/usr/bin", "/bin"]
    surroundings = environment() | {"PATH": os.pathsep.join(programs)}
    lines = []
    for text in "".join(blocks).splitlines():
        options = " ".join(f"'{part}'" if "[" in part else part for part in sets(SMALL[case]))
        command = re.sub(r"(neuroscale-couple \w+ neuroscale\.yaml)", rf"\1 {options}", text)
        done = subprocess.run(
            ["sh", "-c", command], cwd=here, env=surroundings, text=True, timeout=200, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}"
        out = here / "runs" / case.name
        found = json.loads((out / "summary.json").read_text()) if (out / "summary.json").exists() else {}
        run = next((out / label for label in ("run", "fine_only") if (out / label / "macro.npz").exists()), None)
        lines.append(Line(text, done.stdout, found, macro(run) if run is not None else {}))
    return lines


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def hold(summary: dict[str, Any], case: Path) -> None:
    """A compared run against the limits of `expected.toml`."""
    missed = [str(line) for line in gated(expected(case)["gated"], summary) if not line.met]
    assert not missed, missed
    assert summary["audit"]["n"] > 0
    asked = sum(summary["answered"][name] for name in ("surrogate_coarse", "surrogate_fine", "fine"))
    assert asked == summary["points"] * summary["iterations"]
    assert summary["answered"]["fine"] < 0.5 * asked


def test_readme_of_the_two_scale_heat_case(tmp_path: Path) -> None:
    check, compare, beside = execute_readme(HEAT, tmp_path)
    assert "all good" in check.output
    assert (compare.summary["points"], compare.summary["windows"]) == (24, 8)
    hold(compare.summary, HEAT)
    assert "expected.toml: not compared, it is for 768 points, this run has 24" in compare.output
    for name in ("temperature_rise", "heat_flow"):
        assert largest(beside.results[name], compare.results[name]) < 1e-6
    assert (tmp_path / HEAT.name / "runs" / HEAT.name / "report.html").is_file()


def test_readme_of_cooks_membrane(tmp_path: Path) -> None:
    check, alone, gated, report, serial = execute_readme(COOK, tmp_path)
    assert "all good" in check.output
    assert not alone.summary, "a fine-only run is compared later"
    assert gated.summary["macro_error"] is None
    assert (report.summary["points"], report.summary["windows"]) == (48, 8)
    hold(report.summary, COOK)
    hold(serial.summary, COOK)
    load_at_end = load(COOK / "neuroscale.yaml").config.neuroscale.settings["load"]
    for line in (gated, serial):
        assert line.results["reaction_force"][-1] == pytest.approx([0.0, -load_at_end], abs=1e-5)
    assert largest(gated.results["displacement"], serial.results["displacement"]) < 1e-5
    assert largest(alone.results["displacement"], serial.results["displacement"]) < 0.01


@pytest.mark.parametrize("case", [HEAT, COOK], ids=lambda case: case.name)
def test_settings_and_expectations_agree(case: Path) -> None:
    config, wanted = load(case / "neuroscale.yaml").config.neuroscale, expected(case)
    along, across = config.settings["cells"]
    assert 4 * along * across == wanted["size"]["points"]
    assert config.settings["steps"] == wanted["size"]["windows"] == len(wanted["fine_only"]["values"])
    assert wanted["gated"]["share_above_tolerance"] == pytest.approx(1 - config.gate.confidence)
    assert (case / config.model).stat().st_size < 2e6


@pytest.mark.slow
@pytest.mark.parametrize("case", [HEAT, COOK], ids=lambda case: case.name)
def test_first_step_of_the_whole_case(case: Path, tmp_path: Path) -> None:
    """The fine-only answer and Newton iterations of the first step, all points."""
    config = copied(case, tmp_path) / "neuroscale.yaml"
    assert main(["run", str(config), "--out", str(tmp_path), *sets(FINE_ONLY | FIRST[case])]) == 0
    found, wanted = macro(tmp_path / case.name / "run"), expected(case)["fine_only"]
    value = np.ravel(found[wanted["quantity"]][0]).max()
    assert value == pytest.approx(wanted["values"][0], rel=wanted["relative_tolerance"])
    assert found["newton_iterations"].tolist() == wanted["newton_iterations"][:1]


def test_killed_plate_resumes_to_the_same_result(tmp_path: Path) -> None:
    config = copied(HEAT, tmp_path) / "neuroscale.yaml"
    run = [sys.executable, "-m", "neuroscale_couple.cli", "run", str(config), *sets(SMALL[HEAT])]
    ledger = tmp_path / "a" / HEAT.name / "run" / "ledger.csv"
    killed_after([*run, "--out", str(tmp_path / "a")], ledger, 3, environment())
    for arguments in (["--resume", "--out", str(tmp_path / "a")], ["--out", str(tmp_path / "b")]):
        subprocess.run([*run, *arguments], env=environment(), timeout=200, check=True, stdout=subprocess.DEVNULL)
    same_run(tmp_path / "a" / HEAT.name, tmp_path / "b" / HEAT.name)


def test_killed_membrane_with_its_service_resumes_to_the_same_result(tmp_path: Path) -> None:
    """Two macro ranks and a service rank, all killed; the state of each macro rank lies with the service."""
    config = copied(COOK, tmp_path) / "neuroscale.yaml"

    def job(out: Path, *more: str) -> list[str]:
        cli = [sys.executable, "-m", "neuroscale_couple.cli"]
        options = [str(config), *sets(SMALL[COOK] | {"transport": "mpi"}), "--out", str(out), *more]
        return [mpirun(), "-n", "2", *cli, "run", *options, ":", "-n", "1", *cli, "serve", *options]

    killed_after(job(tmp_path / "a"), tmp_path / "a" / COOK.name / "run" / "ledger.csv", 3, environment())
    for command in (job(tmp_path / "a", "--resume"), job(tmp_path / "b")):
        subprocess.run(command, env=environment(), timeout=200, check=True, stdout=subprocess.DEVNULL)
    same_run(tmp_path / "a" / COOK.name, tmp_path / "b" / COOK.name)


def same_run(resumed: Path, whole: Path) -> None:
    """All steps, their audits and the macro solution are those of the run that went through."""
    ours, theirs = macro(resumed / "run"), macro(whole / "run")
    assert ours["newton_iterations"].tolist() == theirs["newton_iterations"].tolist()
    assert max(largest(ours[name], theirs[name]) for name in theirs if theirs[name].dtype.kind == "f") < 1e-6
    for table, column in (("ledger.csv", "window"), ("ledger.csv", "iterations"), ("audits.csv", "point")):
        assert read_table(resumed / "run" / table)[column] == read_table(whole / "run" / table)[column]
    assert json.loads((resumed / "summary.json").read_text())["resumed"] is True
    assert len(list((resumed / "run" / "macro").glob("*.vtu"))) == len(theirs["newton_iterations"])


HALVES = {
    HEAT: [[[0.0, 0.06], [0.0, 0.08]], [[0.06, 0.12], [0.0, 0.08]]],
    COOK: [[[0.0, 0.02], [0.0, 0.06]], [[0.02, 0.048], [0.0, 0.06]]],
}
"""Access regions of two service ranks."""


def coupled(command: list[str], ranks: int, log: Path) -> None:
    """Macro solver and service as two preCICE participants, each on that many ranks."""
    launcher = [mpirun(), "-n", str(ranks)] if ranks > 1 else []
    with log.open("w") as said:
        streams: dict[str, Any] = {"env": environment(), "stdout": said, "stderr": said}
        service = subprocess.Popen([*launcher, *command], **streams)
        try:
            plate = subprocess.run([*launcher, *command, "--macro"], **streams, timeout=200, check=False)
            status = service.wait(60)
        finally:
            service.terminate()  # a launcher takes its ranks with it
    assert (plate.returncode, status) == (0, 0), log.read_text()[-5000:]


@pytest.mark.needs("precice")
@pytest.mark.parametrize(("case", "ranks"), [(HEAT, 1), (HEAT, 2), (COOK, 2)], ids=["heat", "heat-2+2", "cook-2+2"])
def test_run_by_precice_is_the_embedded_run(case: Path, ranks: int, tmp_path: Path) -> None:
    """The trained surrogate, gate open: the same answers and audits, however many ranks each side has."""
    config = copied(case, tmp_path) / "neuroscale.yaml"
    run = [sys.executable, "-m", "neuroscale_couple.cli", "run", str(config), *sets(SMALL[case])]
    streams: dict[str, Any] = {"env": environment(), "capture_output": True, "text": True, "timeout": 200}
    alone = subprocess.run([*run, "--out", str(tmp_path / "a")], **streams, check=False)
    assert alone.returncode == 0, alone.stderr
    regions = HALVES[case] if ranks > 1 else []
    more = sets({"transport": "precice", "precice.regions": json.dumps(regions)})
    coupled([*run, *more, "--out", str(tmp_path / "b")], ranks, tmp_path / "said.txt")
    ours, embedded = (macro(tmp_path / name / case.name / "run") for name in "ba")
    assert np.array_equal(ours["newton_iterations"], embedded["newton_iterations"])
    assert max(largest(ours[name], embedded[name]) for name in embedded) < 1e-6
    tables = [read_table(tmp_path / name / case.name / "run" / "audits.csv") for name in "ba"]
    assert sorted(zip(tables[0]["window"], tables[0]["point"], strict=True)) == sorted(
        zip(tables[1]["window"], tables[1]["point"], strict=True)
    )
    summary = json.loads((tmp_path / "b" / case.name / "summary.json").read_text())
    assert summary["windows"] == 8
    assert summary["answered"]["surrogate_coarse"] + summary["answered"]["surrogate_fine"] > 0
    evaluations = ours["newton_iterations"].sum() + 8
    assert evaluations + 8 <= summary["iterations"], "preCICE ends a window when the same data come twice"
