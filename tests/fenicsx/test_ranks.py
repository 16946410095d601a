"""The same macro script on one rank, on two, and with the service beside it: one answer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fenicsx.problems import write_config
from tests.mpi.launch import _run, mpirun

pytestmark = [pytest.mark.needs("fenicsx"), pytest.mark.timeout(200)]
PROGRAM = str(Path(__file__).parent / "programs" / "heat.py")
SERVE = ["-m", "neuroscale_couple.cli", "serve"]


def solve(folder: Path, transport: str, macro: int, service: int = 0) -> dict[str, np.ndarray]:
    """Run the program; what its first rank wrote."""
    config = write_config(folder, kind="fibres", transport=transport)
    out = folder / "out.npz"
    command = [sys.executable, PROGRAM, str(config), str(out)]
    if macro > 1 or service:
        command = [mpirun(), "-n", str(macro), *command]
    if service:
        command += [":", "-n", str(service), sys.executable, *SERVE, str(config)]
    _run(command, 120).expect(0)
    with np.load(out) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return solve(tmp_path_factory.mktemp("serial"), "embedded", 1)


@pytest.mark.parametrize(("transport", "macro", "service"), [("embedded", 2, 0), ("mpi", 1, 1), ("mpi", 2, 1)])
def test_ranks_and_transports_agree(
    serial: dict[str, np.ndarray], tmp_path: Path, transport: str, macro: int, service: int
) -> None:
    found = solve(tmp_path, transport, macro, service)
    assert np.array_equal(found["ids"], serial["ids"]), "ids must not depend on the partition"
    assert np.array_equal(serial["ids"].ravel(), np.arange(64))
    assert np.abs(found["temperature"] - serial["temperature"]).max() < 1e-8
    assert np.abs(found["flux"] - serial["flux"]).max() < 1e-8 * np.abs(serial["flux"]).max()
    assert len(found["residuals"]) == len(serial["residuals"])
    points, ghosts, filled = found["ranks"].T
    assert len(points) == macro
    assert points.sum() == 64
    if macro > 1:
        assert points.min() > 0
        assert ghosts.min() > 0, "the test needs ghost cells"
    assert filled.all(), "ghosts hold the flux of the rank that owns them"
