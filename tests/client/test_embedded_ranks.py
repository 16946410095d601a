"""Channel `embedded` on several ranks: a service in each of them, one run of all; what fails on one fails on all."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.client.conftest import Programs
from tests.client.jobs import Launcher, expected
from tests.client.test_channels import flux_of, surroundings, write_case

pytestmark = pytest.mark.timeout(400)  # the first test of a session builds the client

BROKEN = '''
import os

import numpy as np
from mpi4py import MPI

from neuroscale_couple.errors import FineSolverError
from neuroscale_couple.fine.fft_cell import FftCell

LAST = MPI.COMM_WORLD.Get_rank() == MPI.COMM_WORLD.Get_size() - 1


class Unready(FftCell):
    """Cannot be made on one rank."""

    def attach(self, points):
        if LAST:
            raise FineSolverError("no licence on this node")
        super().attach(points)


class Failing(FftCell):
    """Cannot answer on one rank."""

    def solve(self, rows, inputs, guess=None):
        if LAST:
            raise ArithmeticError("divided by zero at point 5")
        return super().solve(rows, inputs, guess)


class Dying(FftCell):
    """Is killed while it answers."""

    def solve(self, rows, inputs, guess=None):
        if LAST:
            os.kill(os.getpid(), 9)
        return super().solve(rows, inputs, guess)


class Stuck(FftCell):
    """Waits for ranks that never come, on one rank; the others fail before."""

    def solve(self, rows, inputs, guess=None):
        if not LAST:
            raise ArithmeticError("divided by zero at point 6")
        MPI.COMM_WORLD.Barrier()


class NotANumber(FftCell):
    """Sends what no service may, from one rank."""

    def solve(self, rows, inputs, guess=None):
        answer = super().solve(rows, inputs, guess)
        if LAST:
            answer.tangent[0] = np.inf
            answer.outputs[0] = np.nan
        return answer
'''


@pytest.fixture(scope="module")
def job(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Starts jobs of the client's MPI."""
    programs.need("embedded")
    return Launcher.of(programs, tmp_path_factory.mktemp("job"))


def told(said: str, rank: int) -> list[str]:
    """What a rank of the driver was told."""
    return [line.partition(": ")[2] for line in said.splitlines() if line.startswith(f"rank {rank}: ")]


def broken(folder: Path, which: str) -> Path:
    """A case whose fine solver fails on the last rank."""
    (folder / "broken.py").write_text(BROKEN)
    config = write_case(folder)
    config.write_text(config.read_text() + f'  fine: {{solver: "broken:{which}"}}\n')
    return config


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_service_in_each_rank_answers_bit_for_bit(
    ranks: int, job: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = job.launch(ranks, write_case(tmp_path), "-", "embedded")
    assert code == 0, said
    np.testing.assert_array_equal(flux_of(said), expected(tmp_path, monkeypatch))


def test_all_ranks_are_one_run(job: Launcher, tmp_path: Path) -> None:
    """One ledger, which counts the points of all ranks."""
    code, said = job.launch(2, write_case(tmp_path), "-", "embedded")
    assert code == 0, said
    (ledger,) = tmp_path.rglob("ledger.csv")
    (row,) = csv.DictReader(ledger.read_text().splitlines())
    assert int(row["points"]) == 6, row


def test_what_is_refused_on_one_rank_is_refused_on_all_and_they_go_on(
    job: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = job.launch(2, write_case(tmp_path), "again", "embedded")
    assert code == 0, said
    for rank in (0, 1):
        nan, times = told(said, rank)
        assert nan.startswith("2 the macro solver sent gradient.x = nan at point id 5 (rank 1, window 0, iteration 0")
        assert "2 the ranks do not do the same: rank 0 calls exchange(time=0.0" in times
        assert "rank 1 calls exchange(time=1.0" in times
    np.testing.assert_array_equal(flux_of(said), expected(tmp_path, monkeypatch))


def test_an_id_that_two_ranks_give_is_said_on_both(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, write_case(tmp_path), "twice", "embedded", "patient")
    assert code not in (0, None), said
    for rank in (0, 1):
        assert "point id 6 is given twice, by rank 0 and by rank 1" in told(said, rank)[0], said


@pytest.mark.parametrize(
    ("which", "cause"),
    [
        ("Unready", "FineSolverError: no licence on this node"),
        ("Failing", "ArithmeticError: divided by zero at point 5"),
        ("NotANumber", "is not finite"),
    ],
)
def test_a_service_that_fails_on_one_rank_is_an_error_on_all(
    which: str, cause: str, job: Launcher, tmp_path: Path
) -> None:
    code, said = job.launch(2, broken(tmp_path, which), "-", "embedded", "patient", PYTHONPATH=str(tmp_path))
    assert code not in (0, None), said
    for rank in (0, 1):
        (error,) = told(said, rank)
        assert error.startswith("4 the service failed: ") and cause in error, said
    assert "RankError: rank 1 failed" in told(said, 0)[0], said


def test_a_rank_whose_service_is_killed_ends_the_job(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, broken(tmp_path, "Dying"), "-", "embedded", PYTHONPATH=str(tmp_path))
    assert code not in (0, None), said


@pytest.mark.slow
def test_a_rank_that_waits_for_ever_in_its_service_does_not_keep_the_others(job: Launcher, tmp_path: Path) -> None:
    """After a while the rank that failed has its error; its solver ends the job."""
    code, said = job.launch(2, broken(tmp_path, "Stuck"), "-", "embedded", PYTHONPATH=str(tmp_path))
    assert code not in (0, None), said
    assert "4 the service failed: ArithmeticError: ArithmeticError: divided by zero at point 6" in told(said, 0)


def test_a_rank_that_leaves_early_is_named_to_the_others(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, write_case(tmp_path), "apart", "embedded", "patient")
    assert code not in (0, None), said
    assert re.fullmatch(r"4 the service failed: .*PeerError: .*it left before nsc_finish", told(said, 0)[0]), said


def test_ranks_that_all_leave_early_wait_for_nobody(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, write_case(tmp_path), "leave", "embedded")
    assert code == 0, said


def test_an_interpreter_that_is_missing_on_one_rank_is_said_on_all(job: Launcher, tmp_path: Path) -> None:
    without = ("env", "NEUROSCALE_PYTHON=/nowhere/python")
    code, said = job.launch(2, write_case(tmp_path), "-", "embedded", "patient", last=without)
    assert code not in (0, None), said
    cause = "channel embedded: /nowhere/python is not a Python interpreter"
    assert told(said, 0)[0].startswith(f"3 rank 1: {cause}"), said
    assert told(said, 1)[0].startswith(f"3 {cause}"), said


def test_a_configuration_that_is_wrong_is_said_on_all_ranks(job: Launcher, tmp_path: Path) -> None:
    config = write_case(tmp_path)
    config.write_text(config.read_text().replace("open: false", "opne: false"))
    code, said = job.launch(2, config, "-", "embedded", "patient")
    assert code not in (0, None), said
    for rank in (0, 1):
        assert "did you mean" in told(said, rank)[0], said


def test_mpi4py_of_another_mpi_is_refused(job: Launcher, tmp_path: Path) -> None:
    other = "mpich" if job.variables.get("MPI4PY_MPIABI") == "openmpi" else "openmpi"
    code, said = job.launch(2, write_case(tmp_path), "-", "embedded", "patient", MPI4PY_MPIABI=other)
    assert code not in (0, None), said
    for rank in (0, 1):
        assert re.search(r"3 (rank 0: )?.*mpi4py|4 .*mpi4py", told(said, rank)[0]), said


def test_ranks_without_mpi_are_told_so(programs: Programs, tmp_path: Path) -> None:
    programs.need("embedded")
    programs.need("mpi")
    more = surroundings(tmp_path) | {"NEUROSCALE_PYTHON": sys.executable}
    said = programs.run("client_driver", "once", write_case(tmp_path), "embedded", "", 0, 2, code=1, **more)
    assert "3 channel embedded: MPI is not running in this solver: start it by mpirun" in said
