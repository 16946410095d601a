"""MPI jobs of the client's driver: with the MPI that the client was built with, and what they must answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.client.conftest import FOLDER, Programs
from tests.client.test_channels import surroundings, write_case
from tests.mpi.launch import environment

WHICH = "from mpi4py import MPI; print(MPI.get_vendor()[0])"
DRIVER = str(FOLDER / "client_mpi_driver")


@dataclass(frozen=True)
class Launcher:
    """Starts jobs of the client's MPI, whose Python sees the same MPI."""

    mpirun: str
    variables: dict[str, str]

    @classmethod
    def of(cls, programs: Programs, folder: Path) -> Launcher:
        """The launcher of the client's MPI; skips where mpi4py cannot use that MPI."""
        programs.need("mpi")
        lines = (FOLDER / "CMakeCache.txt").read_text().splitlines()
        launcher = next(line.partition("=")[2] for line in lines if line.startswith("MPIEXEC_EXECUTABLE:"))
        said = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=60).stdout
        abi = {"MPI4PY_MPIABI": "openmpi"} if "Open MPI" in said or "OpenRTE" in said else {}
        probe = [sys.executable, "-c", WHICH]
        found = subprocess.run(probe, capture_output=True, text=True, timeout=60, env=environment() | abi)
        if ("Open MPI" in found.stdout) != bool(abi):
            pytest.skip(f"needs mpi4py with the MPI of the client ({launcher}): found {found.stdout.strip() or 'none'}")
        return cls(launcher, environment() | abi | surroundings(folder))

    def launch(
        self, ranks: int, *arguments: object, services: int = 0, last: Sequence[str] = (), **more: str
    ) -> tuple[int | None, str]:
        """Exit status and output of a job of the driver; None if it hung.

        services: of channel mpmd, started beside it; last: what comes before the driver on the last rank alone
        more: variables of its environment
        """
        driver = [DRIVER, *map(str, arguments)]
        first = ranks - bool(last)
        command = [self.mpirun, "-n", str(first), *driver]
        if last:
            command += [":", "-n", "1", *last, *driver]
        if services:
            service = [self.variables["NEUROSCALE_COUPLE"], "serve", str(arguments[0]), "--client"]
            command += [":", "-n", str(services), *service]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.variables | more
        )
        try:
            return process.wait(200), process.communicate()[0]
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
