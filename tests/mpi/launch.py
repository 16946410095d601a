"""Starts MPI jobs for tests: with the mpirun of mpi4py's own MPI, a hard time-out, and all output shown on failure."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
IMPROPER = "exiting improperly"
"""What Open MPI 4's mpirun may say of a process that did finalise, where its end is noticed before its farewell: about
once in a thousand runs, also of a program that does nothing else. Source: https://github.com/open-mpi/ompi/issues/7833"""
SEEN = "from mpi4py import MPI; print('ranks seen:', MPI.COMM_WORLD.size)"


@dataclass(frozen=True)
class Job:
    """A job that has ended. code: exit status of mpirun, None if it ran past its time."""

    code: int | None
    output: str
    seconds: float

    def expect(self, code: int) -> Job:
        """Fail, showing all output, unless the job ended with this status."""
        assert self.code == code, f"exit status {self.code} instead of {code} after {self.seconds:.1f} s\n{self.output}"
        return self

    def expect_failure(self) -> Job:
        """Fail, showing all output, unless the job ended by itself and non-zero."""
        assert self.code is not None, f"the job hung: {self.seconds:.1f} s\n{self.output}"
        assert self.code != 0, f"the job ended with status 0\n{self.output}"
        return self


def environment() -> dict[str, str]:
    """One thread per rank; Open MPI as root, with more ranks than cores."""
    mine = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    return {**os.environ, **mine}


@functools.cache
def mpirun() -> str:
    """The launcher whose processes see each other: the virtual environment's first, then PATH."""
    beside = Path(sys.executable).parent
    found = [str(beside / "mpirun"), shutil.which("mpirun"), shutil.which("mpiexec")]
    said = ""
    for launcher in [path for path in found if path and Path(path).exists()]:
        probe = _run([launcher, "-n", "2", sys.executable, "-c", SEEN], 60)
        if "ranks seen: 2" in probe.output:
            return launcher
        said += f"\n{launcher}: exit status {probe.code} after {probe.seconds:.1f} s\n{probe.output}"
    raise AssertionError(f"no mpirun starts two processes that mpi4py sees as one job; install mpich beside it{said}")


def launch(*programs: tuple[int, str, Any], timeout: float = 60.0) -> Job:
    """Run one MPI job of several programs: (ranks, file in programs/, JSON argument) each."""
    command = [mpirun()]
    for ranks, name, argument in programs:
        colon = [":"] if len(command) > 1 else []
        command += [*colon, "-n", str(ranks), sys.executable, str(PROGRAMS / name), json.dumps(argument)]
    job = _run(command, timeout)
    if job.code and IMPROPER in job.output and "neuroscale-couple:" not in job.output:
        job = _run(command, timeout)  # a program that really leaves that way does so again
    return job


def run_serial(name: str, argument: Any, timeout: float = 60.0) -> Job:
    """Run one program without a launcher."""
    return _run([sys.executable, str(PROGRAMS / name), json.dumps(argument)], timeout)


def _run(command: Sequence[str], timeout: float) -> Job:
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        return Job(process.returncode, output, time.monotonic() - start)
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher takes its ranks with it, wherever they run
        try:
            output, _ = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        return Job(None, output, time.monotonic() - start)
