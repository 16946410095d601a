"""Every channel from a running solver: the same fields as with channel socket, serial and on two ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import required
from tests.openfoam.foam import BUILD, SERVICE, Case, cavity, end, mpirun, plug_in, surroundings, wait_for

pytestmark = [pytest.mark.needs("openfoam"), pytest.mark.timeout(400)]
LAST = "0.32"


def small(folder: Path, channel: str) -> Case:
    """Four steps of the cavity through a channel, the linear solvers converged so far that ranks do not differ."""
    case = cavity(folder, steps=4).edit("constant/fvOptions", ("every;", f"every; channel {channel};"))
    case.edit("system/fvSolution", ("tolerance 1e-8; relTol 0.01", "tolerance 1e-13; relTol 0"), ("1e-9", "1e-13"))
    return case


@pytest.fixture(scope="module")
def by_socket(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Velocity at the end by channel socket, serial."""
    case = small(tmp_path_factory.mktemp("socket"), "socket")
    case.solve("pimpleFoam")
    return case.value(LAST, "U")


@pytest.fixture(scope="module")
def through_mpi() -> dict[str, str]:
    """What the service needs to speak OpenFOAM's MPI; skips where it cannot."""
    plug_in()
    if not (BUILD / "client/libneuroscale_client_mpi.so").exists():
        pytest.skip("needs the MPI of OpenFOAM with its compiler: the plug-in was built without channel mpi")
    said = subprocess.run([mpirun(), "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    extra = {"MPI4PY_MPIABI": "openmpi"} if "Open MPI" in said or "OpenRTE" in said else {}
    probe = [sys.executable, "-c", "from mpi4py import MPI; print(MPI.get_vendor()[0])"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False, env=surroundings() | extra, timeout=60)
    if ("Open MPI" in found.stdout) != bool(extra):
        pytest.skip(f"needs mpi4py with the MPI of OpenFOAM: found {found.stdout.strip() or 'none'}")
    return extra


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_spawned_service_answers_as_by_socket(
    ranks: int, through_mpi: dict[str, str], by_socket: np.ndarray, tmp_path: Path
) -> None:
    case = small(tmp_path, "mpi")
    case.extra |= through_mpi
    if ranks == 1:
        output = case.run(mpirun(), "-n", "1", "pimpleFoam", seconds=120)
    else:
        output = case.solve("pimpleFoam", ranks, seconds=120)
    assert "neuroscaleClosure stress: connected, 96 points" in output
    np.testing.assert_allclose(case.value(LAST, "U"), by_socket, rtol=0, atol=1e-9 * np.abs(by_socket).max())
    case.no_service_left()


def test_a_service_beside_a_serial_solver_answers_as_by_socket(
    through_mpi: dict[str, str], by_socket: np.ndarray, tmp_path: Path
) -> None:
    case = small(tmp_path, "mpmd")
    case.extra |= through_mpi
    service = [str(SERVICE), "serve", "neuroscale.yaml", "--client"]
    output = case.run(mpirun(), "-n", "1", "pimpleFoam", ":", "-n", "1", *service, seconds=120)
    assert "neuroscaleClosure stress: connected, 96 points" in output
    np.testing.assert_allclose(case.value(LAST, "U"), by_socket, rtol=0, atol=1e-9 * np.abs(by_socket).max())
    case.no_service_left()


@pytest.mark.parametrize("channel", ["mpi", "mpmd"])
def test_a_solver_without_a_launcher_is_told_what_to_do(
    channel: str, through_mpi: dict[str, str], tmp_path: Path
) -> None:
    output = small(tmp_path, channel).solve("pimpleFoam", code=1)
    said = " ".join(output.split())
    assert f"channel {channel} needs a solver that mpirun has started, also with one rank: mpirun -n 1 SOLVER" in said


def test_a_parallel_solver_whose_world_cannot_be_divided_is_told(through_mpi: dict[str, str], tmp_path: Path) -> None:
    said = " ".join(small(tmp_path, "mpmd").solve("pimpleFoam", ranks=2, code=1).split())
    assert "with -parallel OpenFOAM takes the whole MPI job, so use channel mpi or socket" in said


def spawned(case: Case, ranks: int, variables: dict[str, str]) -> str:
    """Output of a run by channel mpi that must end with an error, in one line; no service is left."""
    case.extra |= variables
    if ranks == 1:
        output = case.run(mpirun(), "-n", "1", "pimpleFoam", code=1)
    else:
        output = case.solve("pimpleFoam", ranks, code=1)
    case.no_service_left()
    return " ".join(output.split())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_program_that_cannot_be_spawned_is_said(ranks: int, through_mpi: dict[str, str], tmp_path: Path) -> None:
    case = small(tmp_path, "mpi").edit("constant/fvOptions", ("every;", 'every; service "/no/such/program";'))
    assert "/no/such/program" in spawned(case, ranks, through_mpi)


def test_a_job_without_a_slot_for_the_service_is_said(through_mpi: dict[str, str], tmp_path: Path) -> None:
    case = small(tmp_path, "mpi")
    case.extra |= through_mpi | {"OMPI_MCA_rmaps_base_oversubscribe": "0"}
    output = case.run(mpirun(), "-H", "localhost:1", "-n", "1", "pimpleFoam", code=1)
    said = " ".join(output.split())
    assert "neuroscaleClosure stress: starting the service" in said and "leave a slot for it" in said
    case.no_service_left()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_spawned_service_that_dies_ends_the_job(ranks: int, through_mpi: dict[str, str], tmp_path: Path) -> None:
    case = small(tmp_path, "mpi").edit("system/controlDict", (r"^endTime .*", "endTime 8000;"))
    case.extra |= through_mpi
    parallel: tuple[str, ...] = ()
    if ranks > 1:
        case.run("decomposePar")
        parallel = ("-parallel",)
    job = case.start(mpirun(), "-n", str(ranks), "pimpleFoam", *parallel)
    try:
        wait_for(job, "Time = 0.4")
        os.kill(case.services()[0], signal.SIGKILL)
        job.communicate(timeout=30)
    finally:
        end(job)
    assert job.returncode != 0
    case.no_service_left()


def with_python(folder: Path) -> Case:
    """The four steps by channel embedded; skips where that was not built."""
    plug_in()
    if not (BUILD / "client/libneuroscale_client_embedded.so").exists():
        pytest.skip("needs a Python library: the plug-in was built without channel embedded")
    case = small(folder, "embedded")
    case.extra["NEUROSCALE_PYTHON"] = sys.executable
    return case


def test_python_in_the_solver_answers_bit_for_bit(by_socket: np.ndarray, tmp_path: Path) -> None:
    case = with_python(tmp_path)
    case.solve("pimpleFoam", seconds=120)
    np.testing.assert_array_equal(case.value(LAST, "U"), by_socket)


def test_python_in_each_rank_of_the_solver_answers_as_by_socket_also_after_a_restart(
    through_mpi: dict[str, str], by_socket: np.ndarray, tmp_path: Path
) -> None:
    case = with_python(tmp_path).edit("system/controlDict", (r"^endTime .*", "endTime 0.16;"))
    case.edit("system/controlDict", (r"^writeInterval .*", "writeInterval 2;"))
    output = case.solve("pimpleFoam", ranks=2, seconds=120)
    assert output.count("neuroscaleClosure stress: connected, 96 points") == 1
    case.edit("system/controlDict", (r"^endTime .*", f"endTime {LAST};"))
    output = case.run(mpirun(), "-n", "2", "pimpleFoam", "-parallel", seconds=120)
    assert "resumed after 2 windows" in output
    case.run("reconstructPar")
    np.testing.assert_allclose(case.value(LAST, "U"), by_socket, rtol=0, atol=1e-9 * np.abs(by_socket).max())


FAILING = """

from stress import ExactStress


class Failing(ExactStress):
    \"\"\"Divides by zero for the point of one cell, which one rank owns.\"\"\"

    def attach(self, points):
        super().attach(points)
        self.mine = 7 in points.ids

    def solve(self, rows, inputs, guess=None):
        if self.mine:
            raise ArithmeticError("divided by zero at point 7")
        return super().solve(rows, inputs, guess)
"""


def test_an_error_of_python_in_one_rank_ends_all(through_mpi: dict[str, str], tmp_path: Path) -> None:
    case = with_python(tmp_path).edit("neuroscale.yaml", ("stress:ExactStress", "failing:Failing"))
    (case.folder / "failing.py").write_text(FAILING)
    said = " ".join(case.solve("pimpleFoam", ranks=2, code=1, seconds=60).split())
    assert (
        "the exchange failed: the service failed: ArithmeticError: ArithmeticError: divided by zero at point 7" in said
    )
    assert "ArithmeticError: divided by zero at point 7" in said.split("RankError: rank ", 1)[1], said[-3000:]


def test_precice_that_was_not_built_is_said(tmp_path: Path) -> None:
    plug_in()
    if (BUILD / "client/libneuroscale_client_precice.so").exists():
        pytest.skip("preCICE was found when the plug-in was built")
    output = small(tmp_path, "precice").solve("pimpleFoam", code=1)
    assert "channel 'precice' needs the library" in " ".join(output.split()), output[-3000:]


PAIRS = ("xx", "xy", "yx", "yy")
SENT = [f"gradient-{a}" for a in PAIRS]
GOT = [f"stress-{a}" for a in PAIRS] + [f"tangent-{a}-{b}" for a in PAIRS for b in PAIRS]
GOT += ["Neuroscale-Source", "Neuroscale-Error-Estimate"]
INTERFACE = """participant_name: NeuroScale
precice_config_file_path: precice-config.xml
interfaces:
  - mesh_name: Points
    read_data: [{name: gradient}]
    write_data: [{name: stress}, {name: tangent}, {name: Neuroscale-Source}, {name: Neuroscale-Error-Estimate}]
"""


def by_precice(folder: Path) -> Case:
    """The four steps, each an implicit time window of preCICE, with all parts of the answer."""
    case = small(folder, "precice").edit("neuroscale.yaml", ("transport: socket", "transport: precice"))
    config = case.folder / "neuroscale.yaml"
    config.write_text(INTERFACE + config.read_text())

    def lines(text: str, names: list[str]) -> str:
        return "".join(text.replace("NAME", name) + "\n" for name in names)

    (case.folder / "precice-config.xml").write_text(f"""<?xml version="1.0" encoding="UTF-8" ?>
<precice-configuration>
<log><sink filter="%Severity% >= warning" /></log>
{lines('<data:scalar name="NAME" />', SENT + GOT)}
<mesh name="Points" dimensions="3">{lines('<use-data name="NAME" />', SENT + GOT)}</mesh>
<participant name="OpenFOAM"><provide-mesh name="Points" />
{lines('<write-data name="NAME" mesh="Points" />', SENT)}{lines('<read-data name="NAME" mesh="Points" />', GOT)}
</participant>
<participant name="NeuroScale"><receive-mesh name="Points" from="OpenFOAM" api-access="true" />
{lines('<read-data name="NAME" mesh="Points" />', SENT)}{lines('<write-data name="NAME" mesh="Points" />', GOT)}
</participant>
<m2n:sockets acceptor="OpenFOAM" connector="NeuroScale" exchange-directory="." />
<coupling-scheme:serial-implicit>
<participants first="OpenFOAM" second="NeuroScale" /><max-time value="{LAST}" /><time-window-size value="0.08" />
{lines('<exchange data="NAME" mesh="Points" from="OpenFOAM" to="NeuroScale" />', SENT)}
{lines('<exchange data="NAME" mesh="Points" from="NeuroScale" to="OpenFOAM" />', GOT)}
<min-iterations value="2" /><max-iterations value="20" />
{lines('<relative-convergence-measure limit="1e-9" data="NAME" mesh="Points" />', GOT[:4])}
</coupling-scheme:serial-implicit>
</precice-configuration>
""")
    return case


@pytest.fixture
def channel_precice() -> None:
    """Skips where the plug-in was built without it."""
    plug_in()
    if not (BUILD / "client/libneuroscale_client_precice.so").exists():
        assert "precice" not in required(), "CMake has not found libprecice"
        pytest.skip("needs libprecice: the plug-in was built without channel precice")


@pytest.mark.needs("precice")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_participant_of_precice_answers_as_by_socket(
    ranks: int, channel_precice: None, by_socket: np.ndarray, tmp_path: Path
) -> None:
    case = by_precice(tmp_path)
    if ranks > 1:
        case.run("decomposePar")
    service = case.start(sys.executable, "-m", "neuroscale_couple.cli", "run", "neuroscale.yaml")
    try:
        if ranks == 1:
            output = case.solve("pimpleFoam", seconds=120)
        else:
            output = case.run(mpirun(), "-n", "2", "pimpleFoam", "-parallel", seconds=120)
            case.run("reconstructPar")
        said = service.communicate(timeout=60)[0]
    finally:
        end(service)
    assert service.returncode == 0, said
    assert "the end of the run failed" not in output
    np.testing.assert_allclose(case.value(LAST, "U"), by_socket, rtol=0, atol=1e-9 * np.abs(by_socket).max())


def test_micro_structures_do_not_go_through_precice(tmp_path: Path) -> None:
    case = small(tmp_path, "precice; structure p")
    assert "structure: numbers of micro structures do not go through preCICE" in " ".join(
        case.solve("pimpleFoam", code=1).split()
    )


def test_more_ranks_than_slots_is_the_launchers_error(tmp_path: Path) -> None:
    case = small(tmp_path, "socket")
    case.extra["OMPI_MCA_rmaps_base_oversubscribe"] = "0"
    case.run("decomposePar")
    output = case.run(mpirun(), "-H", "localhost:1", "-n", "2", "pimpleFoam", "-parallel", code=1)
    assert "not enough slots" in " ".join(output.split())
    case.no_service_left()
