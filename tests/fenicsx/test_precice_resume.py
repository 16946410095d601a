"""Cases 02 and 03 by preCICE, both sides killed: resumed they end as the run that went through."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fenicsx.test_cases import COOK, HALVES, HEAT, SMALL, copied, coupled, same_run, sets
from tests.killing import killed_together
from tests.mpi.launch import environment, mpirun

pytestmark = [
    pytest.mark.needs("fenicsx"), pytest.mark.needs("precice"), pytest.mark.slow, pytest.mark.timeout(600)
]  # fmt: skip


def command(case: Path, folder: Path, ranks: int) -> list[str]:
    """The service of a small copy of a case; with --macro it is the macro solver."""
    config = copied(case, folder) / "neuroscale.yaml"
    regions = json.dumps(HALVES[case] if ranks > 1 else [])
    keys = SMALL[case] | {"transport": "precice", "precice.regions": regions}
    return [sys.executable, "-m", "neuroscale_couple.cli", "run", str(config), *sets(keys)]


def kept(run: Path) -> list[list[int]]:
    """Windows that service and macro solver have kept, newest first."""
    manifests = [json.loads((run / name / "manifest.json").read_text()) for name in ("checkpoint", "macro_checkpoint")]
    return [[entry["window"] for entry in manifest["windows"]] for manifest in manifests]


def forget_newest(run: Path) -> None:
    """Let the macro solver be a window behind, as when it is killed before it has written what it has solved."""
    path = run / "macro_checkpoint" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["windows"] = manifest["windows"][1:]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(("case", "ranks"), [(HEAT, 1), (COOK, 2)], ids=["heat", "cook-2+2"])
def test_killed_coupling_resumes_to_the_same_result(case: Path, ranks: int, tmp_path: Path) -> None:
    run = command(case, tmp_path, ranks)
    launcher = [mpirun(), "-n", str(ranks)] if ranks > 1 else []
    both = [[*launcher, *run, "--out", str(tmp_path / "a"), *more] for more in ([], ["--macro"])]
    folder = tmp_path / "a" / case.name / "run"
    killed_together(both, folder / "ledger.csv", 4, environment())
    service, macro = kept(folder)
    if case == HEAT and service[0] == macro[0]:
        forget_newest(folder)
    common = max(set(kept(folder)[0]) & set(kept(folder)[1]))
    assert common >= 2
    shutil.rmtree(tmp_path / case.name / "precice-run")
    coupled([*run, "--resume", "--out", str(tmp_path / "a")], ranks, tmp_path / "resumed.txt")
    coupled([*run, "--out", str(tmp_path / "b")], ranks, tmp_path / "whole.txt")
    same_run(tmp_path / "a" / case.name, tmp_path / "b" / case.name)
    left = (folder / "precice-config.resumed.xml").read_text()
    assert f'<max-time value="{(8 - common) * (200 if case == HEAT else 0.125):g}' in left
    said = coupling_that_fails([*launcher, *run, "--resume", "--out", str(tmp_path / "a"), "--macro"])
    assert "all 8 windows of this run are done" in said


def coupling_that_fails(program: list[str]) -> str:
    """Output of a side that must give up alone."""
    streams: dict[str, Any] = {"env": environment(), "capture_output": True, "text": True, "timeout": 60}
    ended = subprocess.run(program, **streams, check=False)
    assert ended.returncode not in (0, None), ended.stdout
    return ended.stderr


def test_service_that_is_killed_ends_the_script(tmp_path: Path) -> None:
    run = [*command(HEAT, tmp_path, 1), "--out", str(tmp_path / "a")]
    streams: dict[str, Any] = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    service, plate = (subprocess.Popen([*run, *more], **streams) for more in ([], ["--macro"]))
    try:
        ledger = tmp_path / "a" / HEAT.name / "run" / "ledger.csv"
        for _ in range(6000):
            if ledger.exists() and ledger.read_text().count("\n") > 2:
                break
            time.sleep(0.01)
        service.send_signal(signal.SIGKILL)
        said = plate.communicate(timeout=60)[0].decode()
    finally:
        for process in (service, plate):
            process.kill()
            process.communicate()
    assert plate.returncode != 0
    assert "neuroscale-couple: error: " in said
    assert "output says why" in said, said[-3000:]
