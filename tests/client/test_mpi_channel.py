"""Channel `mpi`: the solver's ranks spawn the service; with the MPI that the client was built with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.client.conftest import Programs
from tests.client.jobs import Launcher, expected
from tests.client.test_channels import flux_of, surroundings, write_case

pytestmark = pytest.mark.timeout(400)  # the first test of a session builds the client


@pytest.fixture(scope="module")
def job(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Starts jobs of the client's MPI."""
    return Launcher.of(programs, tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_spawned_service_answers_all_ranks_bit_for_bit(
    ranks: int, job: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = job.launch(ranks, write_case(tmp_path))
    assert code == 0, said
    np.testing.assert_array_equal(flux_of(said), expected(tmp_path, monkeypatch))


def test_a_service_beside_the_solver_answers_all_ranks_bit_for_bit(
    job: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = job.launch(2, write_case(tmp_path), "-", "mpmd", services=1)
    assert code == 0, said
    np.testing.assert_array_equal(flux_of(said), expected(tmp_path, monkeypatch))


def test_a_refusal_reaches_all_programs_of_the_job(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, write_case(tmp_path), "nan", "mpmd", services=1)
    assert code not in (0, None), said
    assert "2 the macro solver sent gradient.x = nan at point id 5 (rank 1, window 0, iteration 0" in said


def test_a_job_needs_one_service(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(1, write_case(tmp_path), "-", "mpmd")
    assert code not in (0, None), said
    assert "3 channel mpmd: this MPI job has 0 services where one is needed: start both sides together" in said
    code, said = job.launch(1, write_case(tmp_path), "-", "mpmd", services=2)
    assert code not in (0, None), said
    assert "serve --client serves alone, but 2 were started: give it -n 1" in said or "has 2 services" in said


def test_a_refusal_reaches_the_ranks_and_the_job_ends(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, write_case(tmp_path), "nan")
    assert code not in (0, None), said
    assert "2 the macro solver sent gradient.x = nan at point id 5 (rank 1, window 0, iteration 0" in said


def test_a_configuration_that_is_wrong_ends_the_job_with_its_cause(job: Launcher, tmp_path: Path) -> None:
    config = write_case(tmp_path)
    config.write_text(config.read_text().replace("open: false", "opne: false"))
    code, said = job.launch(2, config)
    assert code not in (0, None), said
    assert "did you mean" in said


def test_a_solver_that_leaves_early_ends_the_service(job: Launcher, tmp_path: Path) -> None:
    code, said = job.launch(2, write_case(tmp_path), "leave")
    assert code is not None, said  # its own status is the solver's to choose
    assert "failed: it left before nsc_finish" in said


def test_without_mpi_the_channel_says_so(programs: Programs, tmp_path: Path) -> None:
    programs.need("mpi")
    said = programs.run("closure_c", write_case(tmp_path), "mpi", code=1, **(dict(os.environ) | surroundings(tmp_path)))
    assert "MPI is not running in this solver" in said
