"""Old, truncated and hostile messages are refused with a sentence; the service never crashes on one."""

from __future__ import annotations

import fcntl
import functools
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neuroscale_couple.errors import InputError, NeuroscaleError, PeerError, TransportError
from neuroscale_couple.transport.frames import (
    HEADER,
    VERSION,
    ArraySpec,
    Declared,
    Exchange,
    Failure,
    Header,
    Hello,
    Kept,
    Kind,
    Part,
    Reader,
    Ready,
)
from neuroscale_couple.transport.shared import PAGE, Offer, name_of_node
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import MemoryStream, receive_message, send_message
from neuroscale_couple.values import FieldSpec, Layout, Points
from tests.contract.transport_contract import Echo, points

NUMBERS = st.floats(allow_nan=False)
TEXTS = st.text(max_size=8)
FIELDS = st.builds(FieldSpec, TEXTS, st.lists(TEXTS, max_size=3).map(tuple), TEXTS, st.booleans())
LAYOUTS = st.builds(Layout, st.lists(FIELDS, max_size=3).map(tuple))
SHAPES = st.lists(st.integers(0, 2**63), max_size=8).map(tuple)
ARRAYS = st.lists(st.builds(ArraySpec, TEXTS, st.sampled_from(["<f8", "<i4", "|u1"]), SHAPES), max_size=3).map(tuple)
VERSIONS = st.integers(-1, 2**62)


@given(
    st.one_of(
        st.integers(1, 99).flatmap(
            lambda ranks: st.builds(Hello, TEXTS, TEXTS, st.integers(0, ranks - 1), st.just(ranks))
        ),
        st.builds(
            Exchange, NUMBERS, NUMBERS, st.integers(0, 2**31), st.integers(0, 15), st.booleans(),
            st.dictionaries(TEXTS, NUMBERS, max_size=3), st.integers(-1, 1),
        ),
        st.builds(
            Offer, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 9),
            st.binary(min_size=16, max_size=16), TEXTS, TEXTS,
        ),
        st.builds(Kept, st.booleans(), ARRAYS),
        st.builds(Ready, LAYOUTS, LAYOUTS, VERSIONS, VERSIONS, ARRAYS),
        st.builds(Failure, st.booleans(), TEXTS, TEXTS),
    )
)  # fmt: skip
def test_a_message_reads_as_it_was_written(message: Any) -> None:
    assert type(message).parse(Reader(message.packed())) == message


@functools.cache
def _memory() -> int:
    """Memory that a client could share, all zero."""
    file = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, 4 * PAGE)
    fcntl.fcntl(file, 1033, 0x2)  # it cannot shrink
    return file


def talk() -> bytes:
    """All that a sound client says in a run, as one text of bytes."""
    stream = MemoryStream()
    p = points()
    arrays = {"ids": p.ids, "coordinates": p.coordinates, "volumes": p.volumes, **p.parameters}
    specs = tuple(ArraySpec.of(name, array) for name, array in arrays.items())
    send_message(stream, Kind.POINTS, Declared(specs, Echo.inputs, Echo.outputs).packed(), list(arrays.values()))
    values = np.arange(12.0)
    send_message(stream, Kind.EXCHANGE, Exchange(0.0, 0.1, 0, sum(Part), False, {"flux": 1.0}).packed(), [values])
    send_message(stream, Kind.SEGMENT, Offer(4 * PAGE, os.getpid(), _memory(), bytes(16), name_of_node()).packed())
    send_message(stream, Kind.EXCHANGE, Exchange(0.0, 0.1, 1, sum(Part), turn=1).packed())
    kept = np.arange(3.0)
    send_message(stream, Kind.COMMIT, Kept(True, (ArraySpec.of("time", kept),)).packed(), [kept])
    for kind in (Kind.NEXT_STEP, Kind.REPEAT, Kind.ROLLBACK, Kind.FINISH):
        send_message(stream, kind)
    return b"".join(stream.sent)


SOUND = talk()


def careful(points: Points, comm: Any) -> Echo:
    """A service that checks its parameters, as micro problems do."""
    stiffness = points.parameters.get("stiffness")
    if stiffness is None or stiffness.dtype != np.float64 or stiffness.ndim != 1:
        raise InputError("the micro problem needs stiffness, float64 [n]")
    return Echo(points, comm)


def serve(raw: bytes) -> MemoryStream:
    """Let a service answer what a client says."""
    stream = MemoryStream()
    stream.received = [memoryview(bytearray(raw))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # wild numbers overflow in the echo
        StreamServer([stream], careful).run()
    return stream


def test_a_sound_client_is_served() -> None:
    stream = serve(SOUND)
    heard = MemoryStream()
    heard.received = [memoryview(b"".join(stream.sent))]
    kinds = []
    while heard.received:
        header, _ = receive_message(heard)
        heard.receive_into(memoryview(bytearray(header.data)))
        kinds.append(header.kind)
    assert kinds == [Kind.READY, Kind.ANSWER, Kind.SHARED, Kind.ANSWER, *[Kind.DONE] * 5]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    raw = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        how = draw(st.integers(0, 3))
        if how == 0:
            raw[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == 1:
            del raw[at:]
        elif how == 2:
            raw[at : at + 8] = struct.pack("<Q", draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])))
        else:
            raw[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(raw)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(mutations(), st.binary(max_size=200)))
@example(b"")
@example(SOUND[:-1])
@example(HEADER.pack(b"NSCW", VERSION, Kind.POINTS, 2**24, 2**42))
def test_a_mutated_client_is_answered_or_refused(raw: bytes) -> None:
    try:
        serve(raw)
    except NeuroscaleError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n", "this is not a neuroscale client"),
        (HEADER.pack(b"NSCW", 7, 2, 0, 0), "the other side speaks version 7 of the wire format, this one version 2"),
        (HEADER.pack(b"NSCW", VERSION, 33, 0, 0), "a message has the unknown kind 33"),
        (HEADER.pack(b"NSCW", VERSION, 2, 2**60, 0), "more than any message has"),
        (HEADER.pack(b"NSCW", VERSION, 3, 0, 0), "sent exchange where points was expected"),
        (HEADER.pack(b"NSCW", VERSION, 2, 4, 0) + b"\xff\xff\xff\xff", "claims a list of 4294967295 members"),
        (SOUND[:100], "went away without a word"),
    ],
)
def test_a_hostile_client_hears_what_is_wrong(raw: bytes, sentence: str) -> None:
    stream = MemoryStream()
    stream.received = [memoryview(raw)]
    with pytest.raises((TransportError, PeerError), match=sentence):
        StreamServer([stream], Echo).run()
    heard = MemoryStream()
    heard.received = [memoryview(b"".join(stream.sent))]
    header, text = receive_message(heard)
    assert header.kind == Kind.ERROR
    assert sentence in Failure.parse(text).message


def test_a_size_that_differs_from_what_the_text_says_is_refused() -> None:
    stream = MemoryStream()
    specs = (ArraySpec("ids", "<i8", (2**60,)), ArraySpec("coordinates", "<f8", (2**60, 2)))
    text = Declared((*specs, ArraySpec("volumes", "<f8", (2**60,))), Layout(()), Layout(())).packed()
    stream.received = [memoryview(Header(Kind.POINTS, len(text), 64).packed() + text + bytes(64))]
    with pytest.raises(TransportError, match="sent 64 bytes of data with points, expected"):
        StreamServer([stream], Echo).run()


def test_a_refused_connection_disturbs_nobody(tmp_path: Path) -> None:
    import socket

    from neuroscale_couple.transport.socket import SocketClosure
    from tests.client.services import start_service, wait_for_end

    path = tmp_path / "service"
    service = start_service(path, "echo")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(path))
        stranger.sendall(b"\0" * HEADER.size)
        assert b"this is not a neuroscale client" in stranger.recv(4096)
    with SocketClosure(tmp_path, "", None, points(), path=str(path)) as closure:
        assert closure.evaluate({"x": np.zeros(4), "y": np.zeros((4, 2))}, 0.0, 0.0)["flux"].shape == (4, 1)
    assert wait_for_end(service)[0] == 0


def test_ids_given_twice_are_refused_with_their_ranks() -> None:
    streams = [MemoryStream(), MemoryStream()]
    size = HEADER.size + sum(HEADER.unpack(SOUND[: HEADER.size])[3:])
    for stream in streams:
        stream.received = [memoryview(SOUND[:size])]
    with pytest.raises(NeuroscaleError, match="point id 7 is given twice, by rank 0 and by rank 1"):
        StreamServer(streams, Echo).run()
