"""Every channel gives the answer that the service gives in one process, bit for bit; the examples show it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.client.conftest import ROOT, Programs, cmake

pytestmark = pytest.mark.timeout(400)  # the first test of a session builds the client

CASE = """neuroscale:
  transport: socket
  problem: {name: conduction, grid: 8}
  gate: {open: false}
  learning: {mode: "off"}
  output: {folder: %s, checkpoint: false}
"""


def write_case(folder: Path, transport: str = "socket") -> Path:
    path = folder / "neuroscale.yaml"
    path.write_text((CASE % (folder / "runs")).replace("transport: socket", f"transport: {transport}"))
    return path


def surroundings(folder: Path) -> dict[str, str]:
    """Where the programs find this environment's service and interpreter."""
    command = str(Path(sys.executable).with_name("neuroscale-couple"))
    one = {"OMP_NUM_THREADS": "1"}  # threads cut a batch into parts, on which the last bits of an answer depend
    return {"NEUROSCALE_COUPLE": command, "NEUROSCALE_PYTHON": sys.executable, "TMPDIR": str(folder), **one}


def flux_of(said: str) -> np.ndarray:
    """Numbers that an example prints."""
    return np.array([line.split() for line in said.splitlines() if re.fullmatch(r"[-+.eE0-9 ]+", line)], dtype=float)


@pytest.fixture(scope="module")
def embedded_flux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[np.ndarray]:
    """The flux of the examples' points, by the service in this process, on one thread as in `surroundings`."""
    from neuroscale_couple import Points, connect

    xy = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    config = write_case(tmp_path_factory.mktemp("embedded"), "embedded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with connect(config, None, Points(np.arange(3), xy, np.ones(3))) as closure:
            gradient, temperature = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]]), np.array([293.15, 300.0, 310.0])
            yield np.array(closure.evaluate({"gradient": gradient, "temperature": temperature}, 0.1, 0.1)["flux"])


@pytest.mark.parametrize("channel", ["socket", "embedded"])
@pytest.mark.parametrize("example", ["closure_c", pytest.param("closure_fortran", marks=pytest.mark.needs("fortran"))])
def test_the_example_gets_the_answer_bit_for_bit(
    example: str, channel: str, programs: Programs, embedded_flux: np.ndarray, tmp_path: Path
) -> None:
    programs.need(channel)
    said = programs.run(example, write_case(tmp_path), channel, **surroundings(tmp_path))
    np.testing.assert_array_equal(flux_of(said), embedded_flux)
    assert not list(tmp_path.glob("neuroscale-*")), "a socket was left behind"
    assert (tmp_path / "runs" / tmp_path.name / "run" / "ledger.csv").exists()


@pytest.mark.parametrize("channel", ["socket", "embedded"])
def test_an_error_in_the_configuration_reaches_the_solver(channel: str, programs: Programs, tmp_path: Path) -> None:
    programs.need(channel)
    config = write_case(tmp_path)
    config.write_text(config.read_text().replace("open: false", "opne: false"))
    said = programs.run("closure_c", config, channel, code=1, **surroundings(tmp_path))
    assert "the service failed: ConfigError" in said
    assert "did you mean" in said


def test_python_in_the_solver_meets_none_of_its_traps(programs: Programs, tmp_path: Path) -> None:
    programs.need("embedded")
    arguments = ("trapped", write_case(tmp_path), "embedded", "")
    said = programs.run("client_driver", *arguments, **surroundings(tmp_path))
    assert "4 the service failed: FineSolverError" in said or "4 the service failed: NeuroscaleError" in said, said
    assert "traps kept 1" in said


@pytest.mark.parametrize("channel", ["socket", "embedded"])
def test_two_sessions_of_a_process_are_independent(channel: str, programs: Programs, tmp_path: Path) -> None:
    """Both are open before one is connected; each has its own configuration and results."""
    programs.need(channel)
    config = write_case(tmp_path)
    text = config.read_text().replace(str(tmp_path / "runs"), str(tmp_path / "more"))
    config.with_name(config.name + ".yaml").write_text(text.replace("grid: 8", "grid: 4"))
    arguments = ("pair", config, channel, tmp_path / "service")
    one, other = flux_of(programs.run("client_driver", *arguments, **surroundings(tmp_path)))
    assert (one != other).all()
    assert len(list((tmp_path / "runs").rglob("ledger.csv"))) == len(list((tmp_path / "more").rglob("ledger.csv"))) == 1


def test_what_the_embedded_channel_cannot_do_is_said(programs: Programs, tmp_path: Path) -> None:
    programs.need("embedded")

    def told(**more: str) -> str:
        arguments = ("once", write_case(tmp_path), "embedded", "")
        return programs.run("client_driver", *arguments, code=1, **(surroundings(tmp_path) | more))

    assert "is not a Python interpreter" in told(NEUROSCALE_PYTHON="/nowhere/python")
    assert "there is no nopython on PATH; set NEUROSCALE_PYTHON" in told(NEUROSCALE_PYTHON="nopython")


BUILDING = """cmake_minimum_required(VERSION 3.18)
project(solver LANGUAGES C)
find_package(neuroscale_client REQUIRED)
add_executable(solver closure.c)
target_link_libraries(solver neuroscale::client)
"""


def test_an_installed_client_is_found_and_used(programs: Programs, embedded_flux: np.ndarray, tmp_path: Path) -> None:
    prefix, source = tmp_path / "prefix", tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(BUILDING)
    shutil.copy(ROOT / "csrc" / "examples" / "closure.c", source)
    for command in (
        ["--install", str(programs.folder), "--prefix", str(prefix)],
        ["-S", str(source), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["--build", str(tmp_path / "build")],
    ):
        done = subprocess.run([cmake(), *command], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    for channel in ("socket", "embedded"):
        programs.need(channel)
        solver = Programs(tmp_path / "build")
        said = solver.run("solver", write_case(tmp_path), channel, **surroundings(tmp_path))
        np.testing.assert_array_equal(flux_of(said), embedded_flux)
