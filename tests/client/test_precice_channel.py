"""Channel `precice` of the client against a real service: the embedded answers, and what cannot be done is said."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.conftest import Programs, finish
from tests.client.test_channels import flux_of, surroundings
from tests.conftest import required
from tests.mpi.launch import environment, mpirun

pytestmark = [pytest.mark.needs("precice"), pytest.mark.slow, pytest.mark.timeout(400)]

VECTORS, SCALARS = ("gradient", "flux"), ("temperature", "Point-Id", "Neuroscale-Source", "Neuroscale-Error-Estimate")
SCALARS += ("Neuroscale-Model-Version", *(f"tangent-{r}-{c}" for r in "xy" for c in ("x", "y", "temperature")))
SENT = ("Point-Id", "gradient", "temperature")
CONFIG = """participant_name: NeuroScale
precice_config_file_path: precice-config.xml
interfaces:
  - mesh_name: Points
    read_data: [{name: Point-Id}, {name: gradient}, {name: temperature}]
    write_data: [{name: flux}, {name: tangent}, {name: Neuroscale-Source}, {name: Neuroscale-Error-Estimate},
                 {name: Neuroscale-Model-Version}]
neuroscale:
  transport: %s
  precice: {ids: Point-Id, data: [{name: flux, unit: MW/m2}]}
  problem: {name: conduction, grid: 8}
  gate: {open: false}
  fine: {tolerance: 1.0e-9}
  learning: {mode: "off"}
  output: {folder: %s, checkpoint: false}
"""


@pytest.fixture(scope="module")
def channel(programs: Programs) -> Programs:
    """The programs, where the channel could be built."""
    if "precice" in required():
        assert (programs.folder / "libneuroscale_client_precice.so").exists(), "CMake has not found libprecice"
    programs.need("precice")
    return programs


def write(folder: Path, scheme: str, windows: int) -> Path:
    """Both configurations of a case."""
    fields = [*VECTORS, *SCALARS]
    data = "".join(f'<data:{"vector" if name in VECTORS else "scalar"} name="{name}" />\n' for name in fields)
    uses = "".join(f'<use-data name="{name}" />' for name in fields)

    def lines(tag: str, names: list[str]) -> str:
        return "".join(f'<{tag} name="{name}" mesh="Points" />' for name in names)

    def exchanges(names: list[str], way: str) -> str:
        return "".join(f'<exchange data="{name}" mesh="Points" {way} />\n' for name in names)

    got = [name for name in fields if name not in SENT]
    implicit = (
        '<min-iterations value="2" /><max-iterations value="50" />'
        '<relative-convergence-measure limit="1e-9" data="flux" mesh="Points" />'
    )
    (folder / "precice-config.xml").write_text(f"""<?xml version="1.0" encoding="UTF-8" ?>
<precice-configuration>
<log><sink filter="%Severity% >= warning" /></log>
{data}<mesh name="Points" dimensions="2">{uses}</mesh>
<participant name="Solver"><provide-mesh name="Points" />
{lines("write-data", list(SENT))}{lines("read-data", got)}</participant>
<participant name="NeuroScale"><receive-mesh name="Points" from="Solver" api-access="true" />
{lines("read-data", list(SENT))}{lines("write-data", got)}</participant>
<m2n:sockets acceptor="Solver" connector="NeuroScale" exchange-directory="." />
<coupling-scheme:{scheme}>
<participants first="Solver" second="NeuroScale" /><max-time value="{0.1 * windows:g}" />
<time-window-size value="0.1" />
{exchanges(list(SENT), 'from="Solver" to="NeuroScale"')}{exchanges(got, 'from="NeuroScale" to="Solver"')}
{implicit if scheme.endswith("implicit") else ""}</coupling-scheme:{scheme}>
</precice-configuration>
""")
    path = folder / "neuroscale.yaml"
    path.write_text(CONFIG % ("precice", folder / "runs"))
    return path


@pytest.fixture
def service() -> Iterator[Any]:
    """Start the service of a case; ended in any case."""
    started: list[subprocess.Popen[str]] = []

    def start(config: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "neuroscale_couple.cli", "run", str(config)]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment(), cwd=config.parent, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def embedded(folder: Path, gradient: Any, temperature: Any, ids: Any) -> Any:
    """The answer of the service in this process."""
    from neuroscale_couple import Points, connect

    path = folder / "embedded.yaml"
    path.write_text(CONFIG % ("embedded", folder / "alone"))
    with connect(path, None, Points(np.array(ids), np.zeros((3, 2)), np.ones(3))) as closure:
        answer = closure.evaluate({"gradient": gradient, "temperature": temperature}, 0.1, 0.1)
        return answer["flux"].copy(), answer.tangent.copy()


def close(got: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Equal but for the start of the fine solves: their fields to 1e-9, a tangent to the root of that."""
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_the_c_example_gets_the_embedded_answer(channel: Programs, service: Any, tmp_path: Path) -> None:
    config = write(tmp_path, "serial-explicit", 1)
    run = service(config)
    said = channel.run("closure_c", config, "precice", **surroundings(tmp_path))
    assert "done in" in finish(run)
    gradient, temperature = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]]), np.array([293.15, 300.0, 310.0])
    close(flux_of(said), embedded(tmp_path, gradient, temperature, [0, 1, 2])[0])


@pytest.mark.parametrize("ranks", [1, 2])
def test_iterations_units_tangents_and_windows(ranks: int, channel: Programs, service: Any, tmp_path: Path) -> None:
    config = write(tmp_path, "serial-implicit", 2)
    run = service(config)
    program = [str(channel.folder / "client_precice_driver"), str(config), "windows"]
    # each rank into a file of its own: a launcher may mix the lines of several
    alone = ["sh", "-c", f'exec "$0" "$@" > {tmp_path}/said-$$', *program]
    launcher = [mpirun(), "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [*launcher, *alone], env=environment() | surroundings(tmp_path), capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    finish(run)
    said = "".join(path.read_text() for path in tmp_path.glob("said-*")).splitlines()
    answers = np.array([line.split()[1:] for line in said if line.startswith("answer")], float)
    assert answers.shape == (2 * 3 * 3, 6 + 2 + 6)
    assert (answers[:, 3:6] == [2.0, 0.0, -1.0]).all(), "source, error estimate, model version of fine answers"
    ids = [5, 3, 9]
    temperature, grow = np.array([293.15, 300.0, 310.0]), np.array([[1.0], [2.0], [3.0]])
    for k in range(3):
        gradient = 1e3 * grow * [0.001 * (1 + k), 0.002 - 0.001 * k]  # K/m
        flux, tangent = embedded(tmp_path, gradient, temperature, ids)
        for window in (0, 1):
            mine = answers[(answers[:, :2] == [window, k]).all(axis=1)]
            got = mine[[mine[:, 2].tolist().index(i) for i in ids]]
            close(got[:, 6:8], 1e-3 * flux[:, ::-1])  # y before x, kW/m2
            # columns: temperature in K, then the gradient in K/mm, y before x
            close(got[:, 8:].reshape(3, 2, 3)[:, :, 1:], tangent[:, ::-1, [1, 0]], 3e-5)
            close(got[:, 8:].reshape(3, 2, 3)[:, :, 0], 1e-3 * tangent[:, ::-1, 2], 3e-5)
    ledger = next((tmp_path / "runs").glob("*/run/ledger.csv")).read_text().splitlines()
    assert len(ledger) == 3


def test_what_cannot_be_done_is_refused_and_the_session_goes_on(
    channel: Programs, service: Any, tmp_path: Path
) -> None:
    config = write(tmp_path, "serial-explicit", 2)
    run = service(config)
    said = channel.run("client_precice_driver", config, "refused", **surroundings(tmp_path)).splitlines()
    finish(run)
    told = [line for line in said if re.match(r"\d |no error", line)]
    expected = (
        "nsc_commit was called before nsc_exchange",
        "the solver's step is 0.050000, the time window of preCICE 0.100000: they must agree",
        "totals are not sent through preCICE",
        "leave answer.reason NULL",
        "the solver sent temperature = nan at point id 3",
        "a window is not started afresh",
        "a window has one step",
        "the coupling goes on until max-time",
        "numbers of nsc_keep do not go through preCICE",
        "the coupling has ended: raise max-time",
    )
    assert len(told) == len(expected), said
    for line, text in zip(told, expected, strict=True):
        assert line.startswith("2 channel precice: ") and text in line, line


def test_what_is_wrong_before_the_service_is_met(channel: Programs, tmp_path: Path) -> None:
    config = write(tmp_path, "serial-implicit", 2)
    said = channel.run("client_precice_driver", config, "early", **surroundings(tmp_path))
    assert "2 channel precice: volumes of points are not sent through preCICE" in said
    assert "2 channel precice: parameters of points are not sent through preCICE" in said
    assert "2 channel precice: the points have 1 coordinates, the mesh 'Points' has 2 dimensions" in said
    assert "4 the service failed: InputError: the solver declares output 'stress'" in said
    assert "3 channel precice: a run is not resumed by the client" in said


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('<min-iterations value="2" />', "", "a window ends when the same data come twice; add <min-iterations"),
        (
            "<max-iterations",
            '<acceleration:constant><relaxation value="0.5" /></acceleration:constant><max-iterations',
            "an acceleration would change what Newton's method asks",
        ),
        ("mesh_name: Points", "mesh_name: Pionts", "there is no mesh 'Pionts'"),
    ],
)
def test_a_configuration_that_does_not_fit(channel: Programs, old: str, new: str, told: str, tmp_path: Path) -> None:
    config = write(tmp_path, "serial-implicit", 2)
    for path in (config, tmp_path / "precice-config.xml"):
        path.write_text(path.read_text().replace(old, new))
    said = channel.run("client_precice_driver", config, code=1, **surroundings(tmp_path))
    assert re.search("4 the service failed: .*" + told, said, re.DOTALL), said


def test_a_service_that_never_comes(channel: Programs, tmp_path: Path) -> None:
    config = write(tmp_path, "serial-implicit", 2)
    said = channel.run("client_precice_driver", config, "alone", code=1, **surroundings(tmp_path))
    assert "6 channel precice: 'Solver' waiting for 'NeuroScale' to start (neuroscale-couple run " in said


def test_a_service_that_is_killed(channel: Programs, service: Any, tmp_path: Path) -> None:
    config = write(tmp_path, "serial-implicit", 2)
    run = service(config)
    solver = channel.start("client_precice_driver", config, "lost", **surroundings(tmp_path))
    assert solver.stdout is not None
    heard = iter(solver.stdout.readline, "")
    assert "exchanged\n" in heard
    run.send_signal(signal.SIGKILL)
    said = finish(solver)
    told = [line for line in said.splitlines() if re.match(r"\d ", line)]
    assert len(told) == 2 and told[0] == told[1], said
    assert told[0].startswith(("4 channel precice: preCICE failed", "5 channel precice: 'Solver' waiting")), said
    assert "output says why" in told[0] and "usable 0" in said
