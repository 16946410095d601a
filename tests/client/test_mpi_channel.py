"""Channel `mpi`: the solver's ranks spawn the service; with the MPI that the client was built with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.client.conftest import FOLDER, Programs
from tests.client.test_channels import flux_of, surroundings, write_case
from tests.mpi.launch import environment

pytestmark = pytest.mark.timeout(400)  # the first test of a session builds the client

WHICH = "from mpi4py import MPI; print(MPI.get_vendor()[0])"


@pytest.fixture(scope="module")
def job(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The mpirun of the client's MPI and an environment in which mpi4py uses it too; skips where there is none."""
    programs.need("mpi")
    lines = (FOLDER / "CMakeCache.txt").read_text().splitlines()
    launcher = next(line.partition("=")[2] for line in lines if line.startswith("MPIEXEC_EXECUTABLE:"))
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=60).stdout
    abi = {"MPI4PY_MPIABI": "openmpi"} if "Open MPI" in said or "OpenRTE" in said else {}
    probe = [sys.executable, "-c", WHICH]
    found = subprocess.run(probe, capture_output=True, text=True, timeout=60, env=environment() | abi)
    if ("Open MPI" in found.stdout) != bool(abi):
        pytest.skip(f"needs mpi4py with the MPI of the client ({launcher}): found {found.stdout.strip() or 'none'}")
    return launcher, environment() | abi | surroundings(tmp_path_factory.mktemp("job"))


def launch(
    job: tuple[str, dict[str, str]], ranks: int, *arguments: object, services: int = 0
) -> tuple[int | None, str]:
    """Exit status and output of a job of the MPI driver; None if it hung. services: started beside it"""
    launcher, variables = job
    command = [launcher, "-n", str(ranks), str(FOLDER / "client_mpi_driver"), *map(str, arguments)]
    if services:
        service = [variables["NEUROSCALE_COUPLE"], "serve", str(arguments[0]), "--client"]
        command += [":", "-n", str(services), *service]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
    try:
        return process.wait(100), process.communicate()[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        return None, process.communicate()[0]


def expected(folder: Path, patch: pytest.MonkeyPatch) -> np.ndarray:
    """The flux by the service in this process, on one thread as in the job: its batch is cut the same way."""
    from neuroscale_couple import Points, connect

    patch.setenv("OMP_NUM_THREADS", "1")
    config = write_case(folder, "embedded")
    with connect(config, None, Points(np.arange(1, 7), np.zeros((6, 2)), np.ones(6))) as closure:
        gradient = np.array([[1.0 + (5 - i), -0.5] for i in range(6)])
        got = closure.evaluate({"gradient": gradient, "temperature": np.full(6, 300.0)}, 0.0, 0.1)
        return np.array(got["flux"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_spawned_service_answers_all_ranks_bit_for_bit(
    ranks: int, job: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = launch(job, ranks, write_case(tmp_path))
    assert code == 0, said
    np.testing.assert_array_equal(flux_of(said), expected(tmp_path, monkeypatch))


def test_a_service_beside_the_solver_answers_all_ranks_bit_for_bit(
    job: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = launch(job, 2, write_case(tmp_path), "-", "mpmd", services=1)
    assert code == 0, said
    np.testing.assert_array_equal(flux_of(said), expected(tmp_path, monkeypatch))


def test_a_refusal_reaches_all_programs_of_the_job(job: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    code, said = launch(job, 2, write_case(tmp_path), "nan", "mpmd", services=1)
    assert code not in (0, None), said
    assert "2 the macro solver sent gradient.x = nan at point id 5 (rank 1, window 0, iteration 0" in said


def test_a_job_needs_one_service(job: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    code, said = launch(job, 1, write_case(tmp_path), "-", "mpmd")
    assert code not in (0, None), said
    assert "3 channel mpmd: this MPI job has 0 services where one is needed: start both sides together" in said
    code, said = launch(job, 1, write_case(tmp_path), "-", "mpmd", services=2)
    assert code not in (0, None), said
    assert "serve --client serves alone, but 2 were started: give it -n 1" in said or "has 2 services" in said


def test_a_refusal_reaches_the_ranks_and_the_job_ends(job: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    code, said = launch(job, 2, write_case(tmp_path), "nan")
    assert code not in (0, None), said
    assert "2 the macro solver sent gradient.x = nan at point id 5 (rank 1, window 0, iteration 0" in said


def test_a_configuration_that_is_wrong_ends_the_job_with_its_cause(
    job: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    config = write_case(tmp_path)
    config.write_text(config.read_text().replace("open: false", "opne: false"))
    code, said = launch(job, 2, config)
    assert code not in (0, None), said
    assert "did you mean" in said


def test_a_solver_that_leaves_early_ends_the_service(job: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    code, said = launch(job, 2, write_case(tmp_path), "leave")
    assert code is not None, said  # its own status is the solver's to choose
    assert "failed: it left before nsc_finish" in said


def test_without_mpi_the_channel_says_so(programs: Programs, tmp_path: Path) -> None:
    programs.need("mpi")
    said = programs.run("closure_c", write_case(tmp_path), "mpi", code=1, **(dict(os.environ) | surroundings(tmp_path)))
    assert "MPI is not running in this solver" in said
