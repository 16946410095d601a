"""Serial behaviour of the rank helpers; several ranks are tested under tests/mpi."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple import parallel
from neuroscale_couple.errors import InputError, PeerError, RankError, TransportError

PYTHON = sys.executable
ROOT = Path(__file__).parents[2]


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [PYTHON, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.parametrize("comm", [None, parallel.SerialComm()])
def test_agree_of_one_rank_raises_its_own_error_or_nothing(comm: Any) -> None:
    parallel.agree(comm, None, "nowhere")
    error = InputError("the point is missing")
    with pytest.raises(InputError) as found:
        parallel.agree(comm, error, "nowhere")
    assert found.value is error


def test_a_serial_run_never_imports_mpi4py() -> None:
    code = (
        "import sys, numpy as np\n"
        "from neuroscale_couple import parallel\n"
        "comm = parallel.communicator(None).Dup()\n"
        "parallel.agree(comm, None, ''); parallel.sum_over(comm, [1.0]); parallel.barrier(comm)\n"
        "from neuroscale_couple import split_world\n"
        "assert split_world('macro').local.Get_size() == 1\n"
        "parallel.threads_of(comm); parallel.guard_exit(lambda: 'x')\n"
        "assert not [m for m in sys.modules if m.startswith('mpi4py')]\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_serial_collectives_return_what_they_are_given() -> None:
    comm = parallel.communicator(None)
    values = np.arange(3.0)
    result = np.zeros(3)
    comm.Allreduce(values, result)
    np.testing.assert_array_equal(result, values)
    np.testing.assert_array_equal(parallel.sum_over(comm, values), values)
    np.testing.assert_array_equal(parallel.max_over(None, values), values)
    assert (comm.allreduce(5), comm.bcast("a"), comm.allgather(7), comm.gather(8)) == (5, "a", [7], [8])
    assert (parallel.rank(None), parallel.size(None)) == (0, 1)


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_launcher_without_a_communicator_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(TransportError, match=r"one of 4 started by mpirun.*pass comm=MPI\.COMM_WORLD"):
        parallel.communicator(None)


def test_the_wrong_mpirun_is_named() -> None:
    """Singletons under a launcher that says 3: what an mpirun of another MPI gives."""
    code = "from mpi4py import MPI\nfrom neuroscale_couple import parallel\nparallel.communicator(MPI.COMM_WORLD)"
    done = run(code, OMPI_COMM_WORLD_SIZE="3")
    assert done.returncode != 0
    assert "mpirun started 3 processes, but mpi4py sees only itself: that mpirun belongs to another " in done.stderr


def test_threads_obey_the_user_and_are_never_less_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert parallel.threads_of(None) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert parallel.threads_of(None) == len(os.sched_getaffinity(0))


class Late:
    """A request that completes after a number of polls."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def Test(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_wait_ends_with_its_request_or_with_its_time() -> None:
    request = Late(5)
    assert parallel.idle_wait(request)
    assert request.left == 0
    assert not parallel.idle_wait(Late(10**9), seconds=0.05)


def test_a_long_wait_sleeps_instead_of_polling() -> None:
    request = Late(10**9)
    before = time.process_time()
    parallel.idle_wait(request, seconds=0.5)
    assert 10**9 - request.left < 5000  # a spinning wait polls a million times
    assert time.process_time() - before < 0.25


def test_second_hand_errors_are_told_from_first_causes() -> None:
    assert parallel.is_second_hand(RankError("rank 1 failed"))
    assert parallel.is_second_hand(PeerError("the service failed"))
    assert not parallel.is_second_hand(TransportError("two sides do not fit"))


def test_abort_on_error_changes_nothing_in_a_serial_run() -> None:
    with pytest.raises(ZeroDivisionError), parallel.abort_on_error():
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as left, parallel.abort_on_error():
        sys.exit(4)
    assert left.value.code == 4
