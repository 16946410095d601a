"""`neuroscale-couple serve` behind a socket: started by the solver or by hand, resumed, told what is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple import Points, connect
from neuroscale_couple.cli import main
from neuroscale_couple.errors import PeerError, TransportError
from neuroscale_couple.transport.socket import SocketClosure
from neuroscale_couple.transport.socket_server import Listener
from tests.client.services import start_service, wait_for_end
from tests.client.test_channels import write_case
from tests.mpi.launch import environment

POINTS = Points(np.arange(3), np.zeros((3, 2)), np.ones(3))
INPUTS = {"gradient": np.array([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]]), "temperature": np.full(3, 300.0)}


def serve(config: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neuroscale_couple.cli", "serve", str(config), *map(str, options)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), cwd=config.parent
    )


def test_a_service_started_by_hand_is_joined(tmp_path: Path) -> None:
    config = write_case(tmp_path)
    path = tmp_path / "by-hand"
    config.write_text(config.read_text().replace("transport: socket", f"transport: socket\n  socket: {path}"))
    service = serve(config)
    with connect(config, None, POINTS) as closure:
        closure.evaluate(INPUTS, 0.1, 0.1)
        closure.commit()
    assert wait_for_end(service)[0] == 0
    assert not path.exists()


def test_a_service_without_a_socket_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(write_case(tmp_path))]) == 1
    assert "give both the same path: neuroscale.socket, or --socket PATH here" in capsys.readouterr().err


def test_the_macro_state_comes_back_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroscale_couple import assemble

    config = write_case(tmp_path)
    config.write_text(config.read_text().replace("checkpoint: false", "checkpoint: true"))
    with connect(config, None, POINTS) as closure:
        assert closure.resumed() is None
        first = np.array(closure.evaluate(INPUTS, 0.1, 0.1)["flux"])
        closure.commit({"time": np.array([0.1]), "steps": np.array([1, 2])})
    monkeypatch.setattr(assemble, "run_options", assemble.RunOptions(resume=True))
    with connect(config, None, POINTS) as closure:
        resumed = closure.resumed()
        assert resumed is not None
        assert resumed[0] == 1
        assert {name: array.tolist() for name, array in resumed[1].items()} == {"time": [0.1], "steps": [1, 2]}
        np.testing.assert_allclose(closure.evaluate(INPUTS, 0.2, 0.1)["flux"], first, rtol=1e-5)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    config, path = write_case(tmp_path), tmp_path / "service"
    service = serve(config, "--socket", path, "--wait", 60)
    while not path.exists():
        assert service.poll() is None
        time.sleep(0.01)
    with pytest.raises(PeerError, match="was given another configuration \\(hash 0123\\) than the service"):
        SocketClosure(config, "0123", None, POINTS, path=str(path))
    assert wait_for_end(service)[0] == 1


def test_a_solver_that_never_comes_is_not_waited_for_longer_than_asked(tmp_path: Path) -> None:
    service = serve(write_case(tmp_path), "--socket", tmp_path / "service", "--ranks", 2, "--wait", 0.2)
    code, said = wait_for_end(service)
    assert code == 1
    assert "0 of 2 rank(s) of the solver came" in said
    assert not (tmp_path / "service").exists()


def test_a_macro_script_that_fails_ends_the_service_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), connect(write_case(tmp_path), None, POINTS) as closure:
        closure.evaluate(INPUTS, 0.1, 0.1)
        raise ZeroDivisionError("the macro solver's own")
    assert "solver rank 0 failed: ZeroDivisionError: the macro solver's own" in capfd.readouterr().err
    with pytest.raises(TransportError, match="the closure was closed"):
        closure.evaluate(INPUTS, 0.1, 0.1)


def test_a_killed_service_is_an_error_of_the_next_call(tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "dying")
    closure = SocketClosure(tmp_path, "", None, _four(), path=str(tmp_path / "service"))
    with pytest.raises(PeerError, match="the service went away"):
        closure.evaluate({"x": np.zeros(4), "y": np.zeros((4, 2))}, 0.0, 0.0)
    with pytest.raises(TransportError, match="has failed earlier and cannot go on"):
        closure.commit()
    closure.close()
    wait_for_end(service)


def _four() -> Points:
    from tests.contract.transport_contract import points

    return points()


def test_a_path_that_cannot_be_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="107 is the most"):
        Listener(tmp_path / ("x" * 200))
    with pytest.raises(TransportError, match="no socket can be made at /nowhere/socket: No such file"):
        Listener(Path("/nowhere/socket"))


def test_a_refused_user_hears_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with Listener(tmp_path / "s", 1) as listener, socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(tmp_path / "s"))
        with pytest.raises(TransportError, match="0 of 1 rank"):
            listener.accept(0.2)
        assert b"this service is for user 4000000" in stranger.recv(4096)


def test_a_socket_is_seen_once_somebody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes in between would take it for one that a killed run has left, and start its own service."""
    path = tmp_path / "s"
    seen = []

    class Watched(socket.socket):
        def listen(self, waiting: int = 1) -> None:
            seen.append(path.exists())
            super().listen(waiting)

    monkeypatch.setattr(socket, "socket", Watched)
    with Listener(path) as listener, Watched(socket.AF_UNIX) as client:
        assert seen == [False]
        client.connect(str(path))
        assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
        with pytest.raises(TransportError, match=r"no socket can be made at .*s: File exists"):
            Listener(path)
        assert path.exists(), listener
    assert not path.exists()
