"""What a dolfinx script says about a preCICE coupling that cannot work, and that the service then ends too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neuroscale_couple.errors import ConfigError
from tests.fenicsx.test_cases import HEAT, SMALL, copied, sets
from tests.mpi.launch import environment

pytestmark = [pytest.mark.needs("fenicsx"), pytest.mark.timeout(200)]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Case 02 with its own two files to change."""
    return copied(HEAT, tmp_path)


def replace(case: Path, old: str, new: str) -> None:
    """Change the preCICE configuration."""
    path = case / "precice-config.xml"
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new))


def refused(case: Path, change: Any, said: str) -> None:
    """Connecting is refused before anything waits."""
    from neuroscale_couple import Points
    from neuroscale_couple.config.load import load
    from neuroscale_fenicsx import start
    from neuroscale_fenicsx.precice import PreciceClosure

    path = case / "neuroscale.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
    loaded = load(path, {"transport": "precice", "output.folder": str(case)})
    with pytest.raises(ConfigError, match=said):
        PreciceClosure(loaded, start(), Points(np.arange(2), np.zeros((2, 2)), np.ones(2)))


def test_two_meshes_are_refused(case: Path) -> None:
    text = (case / "precice-config.xml").read_text()
    mesh = re.search(r"  <mesh name=.*?</mesh>\n", text, re.DOTALL)
    assert mesh is not None
    doubled = re.sub(r"^(.*)Gauss-Points(.*)$", r"\1Gauss-Points\2\n\1Other-Points\2", text, flags=re.MULTILINE)
    doubled = doubled.replace(mesh[0].splitlines()[0] + "\n" + mesh[0].splitlines()[0].replace("Gauss", "Other"), "")
    other = mesh[0].replace("Gauss-Points", "Other-Points")
    (case / "precice-config.xml").write_text(doubled.replace(mesh[0].split("\n", 1)[1], mesh[0] + other, 1))

    def change(config: dict[str, Any]) -> None:
        first = config["interfaces"][0]
        config["interfaces"].append({**first, "mesh_name": "Other-Points"})

    refused(case, change, "interfaces: a dolfinx mesh has one coupling mesh, got 2")


def test_part_of_the_tangent_is_not_enough(case: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        names = ["flux", "tangent-x-x", "tangent-x-y", "tangent-y-x", "tangent-y-y", "tangent-y-temperature"]
        config["interfaces"][0]["write_data"] = [{"name": name} for name in names]

    refused(case, change, r"Newton needs the whole tangent, d flux.x / d temperature is not exchanged")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("serial-implicit", "parallel-implicit", "Newton's method is the iteration: write <coupling-scheme:serial-im"),
        ("serial-implicit", "serial-explicit", '<participants first="Plate" second="NeuroScale" />'),
        ('first="Plate" second="NeuroScale"', 'first="NeuroScale" second="Plate"', "Newton's method is the iteration"),
        ('<min-iterations value="2" />', "", 'the same data come twice; add <min-iterations value="2" />'),
        (
            '<max-iterations value="50" />',
            '<max-iterations value="50" /><acceleration:constant><relaxation value="0.5" /></acceleration:constant>',
            "an acceleration would change what Newton's method asks; remove it",
        ),
    ],
)
def test_scheme_that_cannot_carry_newton(case: Path, old: str, new: str, said: str) -> None:
    replace(case, old, new)
    if "parallel" in new or "second" in new:  # the ids would come too late as well
        exchange = '<exchange data="Point-Id" mesh="Gauss-Points" from="Plate" to="NeuroScale" />'
        replace(case, exchange, exchange.replace(" />", ' initialize="true" />'))
    refused(case, lambda config: None, re.escape(said))


def both(case: Path, service_fails: bool = True, **options: Any) -> tuple[str, str]:
    """Output of script and service of a coupling that must fail; service_fails: on both sides."""
    shutil.rmtree(case / "precice-run", ignore_errors=True)
    keys = SMALL[HEAT] | {"transport": "precice"} | options
    run = [sys.executable, "-m", "neuroscale_couple.cli", "run", str(case / "neuroscale.yaml"), *sets(keys)]
    streams: dict[str, Any] = {
        "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": case,
    }  # fmt: skip
    service = subprocess.Popen([*run, "--out", str(case / "out")], **streams)
    try:
        plate = subprocess.run([*run, "--macro", "--out", str(case / "out")], **streams, timeout=100, check=False)
        heard, _ = service.communicate(timeout=60)
    finally:
        service.kill()
        service.communicate()
    assert plate.returncode not in (0, None), plate.stdout[-3000:]
    assert (service.returncode != 0) is service_fails, heard[-3000:]
    return plate.stdout, heard


@pytest.mark.needs("precice")
@pytest.mark.slow
def test_steps_of_another_length(case: Path) -> None:
    said, heard = both(case, **{"settings.duration": 800.0})
    assert "t = 100: the macro solver's step is 100, the time window of preCICE 200: they must agree" in said
    assert "neuroscale-couple: error: window 0, iteration 0" in heard


@pytest.mark.needs("precice")
@pytest.mark.slow
def test_more_steps_than_windows(case: Path) -> None:
    replace(case, '<max-time value="1600" />', '<max-time value="400" />')
    said, _ = both(case, service_fails=False)
    assert "t = 600: the coupling has ended: raise max-time in the preCICE configuration" in said


@pytest.mark.needs("precice")
@pytest.mark.slow
def test_measure_that_ends_a_window_too_early(case: Path) -> None:
    replace(case, 'limit="1e-9"', 'limit="0.9"')
    said, _ = both(case)
    assert "t = 200: preCICE took the window for converged before Newton did: tighten the convergence measure" in said
