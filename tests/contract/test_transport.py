"""Every transport keeps the contract of `transport.base.Closure`."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroscale_couple.transport.base import Closure
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.transport.replay import Recorder
from neuroscale_couple.transport.socket import SocketClosure
from neuroscale_couple.values import Points
from tests.client.services import start_service
from tests.contract.transport_contract import CHECKS, Echo
from tests.mpi.launch import launch


def embedded(points: Points, folder: Path) -> Closure:
    return EmbeddedClosure(Echo, None, points)


def recorded(points: Points, folder: Path) -> Closure:
    return Recorder(EmbeddedClosure(Echo, None, points), points, folder / "calls.npz")


def through_a_socket(points: Points, folder: Path) -> Closure:
    path = folder / "service"
    start_service(path, "echo")
    return SocketClosure(folder, "", None, points, path=str(path))


@pytest.mark.parametrize("open_closure", [embedded, recorded, through_a_socket])
@pytest.mark.parametrize("check", CHECKS)
def test_in_one_process(check: str, open_closure: object, tmp_path: Path) -> None:
    CHECKS[check](lambda points: open_closure(points, tmp_path))  # type: ignore[operator]


@pytest.mark.parametrize("services", [1, 2])
def test_against_a_service_in_another_program(services: int) -> None:
    job = launch((1, "contract.py", "macro"), (services, "contract.py", "service")).expect(0)
    for check in CHECKS:
        assert f"kept: {check}" in job.output, job.output
