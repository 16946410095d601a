"""The C++ client against a service of the real kind: the same answers, the same faults, nobody left behind."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.transport.frames import HEADER, VERSION, Kind
from tests.client.conftest import Programs, finish
from tests.client.services import start_service, wait_for_end
from tests.contract.transport_contract import Echo, inputs, points

pytestmark = pytest.mark.timeout(400)  # the first test of a session builds the client

Drive = Callable[..., subprocess.Popen[str]]


def expected() -> list[str]:
    """What the driver's `windows` must print, by the closure in one process."""
    lines = ["resumed -1"]
    closure = EmbeddedClosure(Echo, None, points())

    def exchange(time: float, dt: float, totals: dict[str, float] | None = None) -> None:
        got = closure.evaluate(inputs(), time, dt, totals)
        for i, point in enumerate(points().ids):
            numbers = [*got["force"][i], *got["flux"][i], got.error[i]]
            who = [str(int(got.source[i])), str(int(got.reply.reason[i]))]
            tangent = [f"{value:.17g}" for value in got.tangent[i].ravel()]
            lines.append(" ".join([str(point), *(f"{value:.17g}" for value in numbers), *who, *tangent]))

    for _ in range(2):
        for _ in range(2):
            exchange(0.5, 0.25)
        closure.commit()
    exchange(0.0, 0.0, {"flux": 2.0})
    return lines


def test_answers_are_those_of_the_closure_in_one_process(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo")
    assert finish(drive("windows")).splitlines() == expected()
    assert wait_for_end(service)[0] == 0


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_share_one_service(ranks: int, drive: Drive, tmp_path: Path) -> None:
    """The fifth rank has no points."""
    service = start_service(tmp_path / "service", "echo", ranks)
    lines = [finish(process).splitlines() for process in [drive("joining", rank, ranks) for rank in range(ranks)]]
    whole = expected()
    for rank in range(ranks):
        assert lines[rank] == [whole[0], *(line for i, line in enumerate(whole[1:]) if i % 4 % ranks == rank)]
    assert wait_for_end(service)[0] == 0


def test_the_socket_is_private_and_gone_once_all_have_joined(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "slow")
    assert stat.S_IMODE((tmp_path / "service").stat().st_mode) == 0o600
    solver = drive("once")
    assert service.stdout is not None
    assert service.stdout.readline() == "busy\n"
    assert not (tmp_path / "service").exists()
    solver.kill()
    finish(solver, -signal.SIGKILL)
    status, said = wait_for_end(service)  # though it is busy for ten minutes
    assert status == 1
    assert "the solver has died while the service was busy" in said


def test_wrong_arguments_are_refused_and_do_no_harm(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo")
    said = finish(drive("arguments"))
    for sentence in (
        "nsc_connect was called before nsc_points",
        "nsc_commit: comes after nsc_connect",
        "nsc_parameter was called before nsc_points",
        "nsc_points: ids or coordinates are NULL",
        "nsc_points: dimension is 5, it must be 1, 2 or 3",
        "points are more than a message holds",
        "a field needs a name and a unit",
        "field 'x' has 0 components",
        "nsc_points: comes before nsc_connect",
        "the place of output 'force' is NULL",
        "the values of input 'y' are NULL",
        "nsc_exchange: the iteration is negative",
        "answer.struct_size is not sizeof(nsc_answer)",
        "the checkpoint holds nothing named 'nothing'",
        "nsc_keep: the name is NULL or empty",
        "nsc_commit: was called after nsc_finish",
    ):
        assert sentence in said, said
    assert wait_for_end(service)[0] == 0


def test_refused_values_leave_the_session_usable(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo")
    lines = finish(drive("values")).splitlines()
    assert "the macro solver sent x = nan at point id 11 (rank 0, window 0, iteration 0; 1 point(s)" in lines[0]
    assert "the macro solver sent t = nan" in lines[1]
    assert "unknown total 'force.c'" in lines[2]
    assert len(lines) == 3 + 4
    assert wait_for_end(service)[0] == 0


def test_ranks_that_differ_are_told_so_on_all_ranks(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo", 2)
    for rank in [drive("differing", rank, 2) for rank in (0, 1)]:
        assert "rank 0 calls exchange(time=0.0, dt=0.0, iteration=0), rank 1 exchange(time=1.0" in finish(rank)
    assert wait_for_end(service)[0] == 0


def test_the_cause_of_a_failed_service_reaches_all_ranks(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "failing", 2)
    for rank in [drive("stubborn", rank, 2) for rank in (0, 1)]:
        lines = finish(rank).splitlines()
        cause = "4 the service failed: ArithmeticError: ArithmeticError: the fine solver divided by zero at point 7"
        assert lines == [cause, cause, "usable 0"]
    assert wait_for_end(service)[0] == 1


@pytest.mark.parametrize(
    ("character", "told"),
    [
        ("dying", "5 the service went away without a word"),
        ("nan", "7 the service sent a number that is not finite in flux"),
        ("opaque", "2 the micro problem has no tangent: leave answer.tangent NULL"),
        ("refusing", "4 the service failed: ConfigError: case.yaml: neuroscale.gate: unknown key 'tolerence'"),
    ],
)
def test_what_a_bad_service_does_ends_in_a_status_and_a_text(
    character: str, told: str, drive: Drive, tmp_path: Path
) -> None:
    service = start_service(tmp_path / "service", character)
    start = time.monotonic()
    assert told in finish(drive("once"), 1)
    assert wait_for_end(service)[0] != 0
    assert time.monotonic() - start < 30


def test_a_silent_service_is_given_up(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "slow")
    assert "6 the service gave no answer in time" in finish(drive("once", timeout=1.0), 1)
    assert wait_for_end(service)[0] == 1


@pytest.mark.parametrize("character", ["dying", "leaving"])
def test_a_solver_that_goes_without_finishing_ends_the_service_and_the_other_ranks(
    character: str, drive: Drive, tmp_path: Path
) -> None:
    service = start_service(tmp_path / "service", "echo", 2)
    goes, stays = drive(character, 1, 2), drive("once", 0, 2)
    finish(goes, 9 if character == "dying" else 0)
    why = "went away without a word" if character == "dying" else "failed: it left before nsc_finish"
    assert f"4 the service failed: PeerError: solver rank 1 {why}" in finish(stays, 1)
    status, said = wait_for_end(service)
    assert status == 1
    assert f"solver rank 1 {why}" in said


def test_what_is_kept_comes_back(drive: Drive, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    service = start_service(tmp_path / "service", "remembering", NSC_TEST_STATE=state)
    finish(drive("windows"))
    wait_for_end(service)
    with np.load(state) as arrays:  # the last window keeps nothing
        assert not arrays.files
    np.savez(state, **{"0|time": np.array([0.125, 4.0])})
    service = start_service(tmp_path / "service", "remembering", NSC_TEST_STATE=state)
    assert finish(drive("windows")).splitlines()[:3] == ["resumed 2", "kept 0.125", "kept 4"]
    assert wait_for_end(service)[0] == 0


def test_a_service_that_cannot_start_is_named(programs: Programs, tmp_path: Path) -> None:
    def told(program: str) -> str:
        arguments = ("once", tmp_path, "socket", tmp_path / "service")
        return programs.run("client_driver", *arguments, code=1, NEUROSCALE_COUPLE=program)

    assert "3 the service cannot be started: /nowhere/serve: No such file or directory" in told("/nowhere/serve")
    assert "3 the service could not start: false ended with status 1 before it answered" in told("false")
    assert not (tmp_path / "service").exists()


def test_a_service_whose_end_the_solver_never_hears_of_is_not_waited_for(programs: Programs, tmp_path: Path) -> None:
    """A solver that ignores SIGCHLD, or collects all children itself."""
    arguments = ("ignoring", tmp_path, "socket", tmp_path / "service")
    said = programs.run("client_driver", *arguments, code=1, NEUROSCALE_COUPLE="false")
    assert "3 the service could not start: false ended, how is not known before it answered" in said


def test_memory_that_is_missing_is_a_status_and_a_text(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo")
    assert finish(drive("starving")).splitlines() == ["8 no memory left"] * 2
    assert wait_for_end(service)[0] == 1, "it was told that the solver gave up"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("/nowhere.yaml", "socket", "/tmp/x"), "the configuration /nowhere.yaml: No such file or directory"),
        (("/", "pigeon", "/tmp/x"), "unknown channel 'pigeon'; there are: socket, mpi, mpmd, embedded, precice"),
        (("/", "socket", "/tmp/" + "x" * 200), "the path of the socket is longer than 107 bytes"),
        (("/", "socket", "/tmp/x", 2, 2), "there is no rank 2 of 2"),
        (("/", "socket", "/tmp/x", 0, 1, "nan"), "a time-out is negative or not a number"),
    ],
)
def test_what_cannot_be_opened_is_refused(arguments: tuple[object, ...], sentence: str, programs: Programs) -> None:
    assert sentence in programs.run("client_driver", "once", *arguments, code=1)


def test_a_stale_socket_is_replaced_but_no_other_file(programs: Programs, tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    (tmp_path / "file").write_text("mine")
    for name in ("stale", "file"):
        programs.run("client_driver", "once", tmp_path, "socket", tmp_path / name, code=1, NEUROSCALE_COUPLE="false")
    assert not (tmp_path / "stale").exists()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (HEADER.pack(b"NSCW", 9, Kind.WELCOME, 4, 0), "7 the service speaks version 9 of the wire format, this client"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "7 what came does not start like a message"),
        (HEADER.pack(b"NSCW", VERSION, Kind.READY, 0, 0), "7 the service sent ready where welcome was expected"),
        (HEADER.pack(b"NSCW", VERSION, Kind.WELCOME, 2**60, 0), "7 a message claims 1152921504606846976 bytes of text"),
        (HEADER.pack(b"NSCW", VERSION, Kind.WELCOME, 4, 0) + b"ab", "5 the service went away without a word"),
        (
            HEADER.pack(b"NSCW", VERSION, Kind.WELCOME, 2, 0) + b"ab",
            "7 a message is truncated: it has 2 bytes left where 4",
        ),
    ],
)
def test_a_hostile_service_is_refused_with_a_text(raw: bytes, told: str, drive: Drive, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hostile:
        hostile.bind(str(tmp_path / "service"))
        hostile.listen()
        solver = drive("once")
        connection, _ = hostile.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(raw)
        assert told in finish(solver, 1)


def test_mutated_messages_never_crash_the_client(programs: Programs) -> None:
    met = dict(line.split() for line in programs.run("client_fuzz", 3, 20261123).splitlines())
    assert int(met["7"]) > 100  # most mutations are found out as such
    assert int(met["9"]) == 0
