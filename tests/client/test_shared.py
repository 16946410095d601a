"""Memory shared by client and service: the same answers with and without it, and no way to crash through it."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.errors import TransportError
from neuroscale_couple.transport.frames import Exchange, Kind, Reader
from neuroscale_couple.transport.shared import PAGE, Offer, Segment, SharedMemory, name_of_node
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import MemoryStream, receive_message, send_message
from tests.client.conftest import Programs, finish
from tests.client.services import start_service, wait_for_end
from tests.client.test_client import Drive, expected
from tests.client.test_frames import SOUND
from tests.contract.transport_contract import Echo

pytestmark = pytest.mark.timeout(400)  # the first test of a session builds the client

MARK = bytes(range(16))
SEALS = 0x1 | 0x2 | 0x4  # against more seals, shrinking, growing
Make = Callable[..., Offer]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make a segment as a client does: make(size, sealed)."""
    files = []

    def offer(size: int = 4 * PAGE, sealed: bool = True) -> Offer:
        files.append(os.memfd_create("test", os.MFD_ALLOW_SEALING))
        os.ftruncate(files[-1], size)
        os.pwrite(files[-1], MARK, 0)
        if sealed:
            fcntl.fcntl(files[-1], 1033, SEALS)
        return Offer(size, os.getpid(), files[-1], MARK, name_of_node())

    yield offer
    for file in files:
        os.close(file)


def test_both_sides_see_the_same_numbers(make: Make) -> None:
    offer = make()
    segment = Segment(offer)
    with mmap.mmap(offer.file, offer.size) as memory:
        view = segment.numbers(PAGE, 3, 2)
        memory[PAGE : PAGE + 48] = np.arange(6.0).tobytes()
        np.testing.assert_array_equal(view, np.arange(6.0).reshape(3, 2))
        segment.put(2 * PAGE, [np.arange(4.0).reshape(2, 2)[:, 1], np.arange(3, dtype=np.uint8)])
        assert memory[2 * PAGE : 2 * PAGE + 19] == np.array([1.0, 3.0]).tobytes() + bytes([0, 1, 2])


def test_memory_that_the_solver_could_take_away_is_refused(make: Make) -> None:
    with pytest.raises(TransportError, match="it is not sealed: the solver could take it away while it is used"):
        Segment(make(sealed=False))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 5 * PAGE}, "it has 16384 bytes where 20480 were offered"),
        ({"size": 8}, "a segment of 8 bytes was offered"),
        ({"size": 2**63}, "a segment of 9223372036854775808 bytes was offered"),
        ({"mark": b"x" * 16}, "what the solver's process has under that number is not what it offered"),
        ({"node": "elsewhere"}, "the solver runs on another node"),
        ({"file": 4_000_000}, "the solver's memory cannot be opened: .*No such file"),
        ({"process": 2**31}, "the solver's memory cannot be opened: .*No such file"),
        ({"why": "Function not implemented"}, "Function not implemented"),
    ],
)
def test_an_offer_that_is_not_what_it_says_is_refused(change: dict[str, object], sentence: str, make: Make) -> None:
    with pytest.raises(TransportError, match=sentence):
        Segment(replace(make(), **change))  # type: ignore[arg-type]


def test_what_is_no_memory_is_refused(make: Make) -> None:
    read, write = os.pipe()
    for file in (read, write):
        with pytest.raises(TransportError, match="it is not memory"):
            Segment(replace(make(), file=file))
        os.close(file)


def test_a_refused_offer_is_said_and_the_session_goes_on(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stream, memory = MemoryStream("solver rank 3"), SharedMemory()
    memory.take(stream, Reader(make(sealed=False).packed()))
    stream.received = stream.sent
    header, text = receive_message(stream)
    assert (header.kind, text.get("B")) == (Kind.SHARED, 0)
    assert "solver rank 3 shares no memory, its arrays are sent: the solver's memory" in capsys.readouterr().err
    with pytest.raises(TransportError, match="goes through shared memory, but the solver has given none"):
        memory.question(0, 4, [3])


def served(offer: Offer, turn: int) -> StreamServer:
    """A service that has been told of four points and asked through shared memory."""
    stream = MemoryStream("the solver")
    size = 24 + sum(int.from_bytes(SOUND[at : at + 8], "little") for at in (8, 16))
    points = MemoryStream()
    send_message(points, Kind.SEGMENT, offer.packed())
    send_message(points, Kind.EXCHANGE, Exchange(0.0, 0.1, 0, 15, turn=turn).packed())
    stream.received = [memoryview(SOUND[:size]), *points.sent]
    server = StreamServer([stream], Echo)
    server.connect()
    return server


def test_a_segment_too_short_for_the_question_or_the_answer_is_refused(make: Make) -> None:
    served(make(), 1).step()
    with pytest.raises(TransportError, match="an exchange needs 8224 bytes of shared memory, the solver gave 8192"):
        served(make(2 * PAGE), 1).step()
    with pytest.raises(TransportError, match="an answer needs 12712 bytes of shared memory, the solver gave 12288"):
        served(make(3 * PAGE), 1).step()


def test_data_beside_shared_memory_are_refused(make: Make) -> None:
    server = served(make(), 0)
    stream = MemoryStream()
    send_message(stream, Kind.EXCHANGE, Exchange(0.0, 0.1, 0, 15, turn=0).packed(), [np.zeros(12)])
    server._streams[0].received[1:] = stream.sent  # type: ignore[attr-defined]
    with pytest.raises(TransportError, match="sent 96 bytes of data with exchange, expected 0"):
        server.step()


def test_unknown_flags_are_refused() -> None:
    raw = bytearray(Exchange(0.0, 0.1, 0, 15).packed())
    for flags in (4, 8, 255):
        raw[21] = flags
        with pytest.raises(TransportError, match=f"unknown flags {flags}"):
            Exchange.parse(Reader(bytes(raw)))


def test_answers_are_the_same_without_shared_memory(programs: Programs, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo")
    arguments = ("windows", tmp_path, "socket", tmp_path / "service")
    said = programs.run("client_driver", *arguments, NEUROSCALE_SHARED_MEMORY="0")
    assert said.splitlines() == expected()
    assert wait_for_end(service) == (0, "")


def test_a_client_that_gets_no_memory_goes_on_without(programs: Programs, tmp_path: Path) -> None:
    """No file may be longer than a byte: what is to be shared cannot be reserved."""
    service = start_service(tmp_path / "service", "echo")
    arguments = [programs.folder / "client_driver", "windows", tmp_path, "socket", tmp_path / "service"]
    command = ["sh", "-c", 'trap "" XFSZ; ulimit -f 0; exec "$@" | cat', "sh", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == expected()
    assert wait_for_end(service) == (
        0, "neuroscale-couple: solver rank 0 shares no memory, its arrays are sent: File too large\n",
    )  # fmt: skip


def test_memory_grows_with_what_is_asked_for(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "echo")
    assert finish(drive("growing")).splitlines() == expected()[5:9]
    assert wait_for_end(service) == (0, "")


def test_the_last_answered_question_stays_until_the_next_is_answered(drive: Drive, tmp_path: Path) -> None:
    service = start_service(tmp_path / "service", "attentive")
    said = finish(drive("trying")).splitlines()
    assert [line[:36] for line in said] == [
        "2 the macro solver sent x = nan at p",
        "2 the macro solver sent x = inf at p",
    ]
    assert wait_for_end(service) == (0, "")
