"""What carries the messages of `frames`: a socket of this node, an MPI intercommunicator, or memory."""

from __future__ import annotations

import os
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import PeerError, TransportError
from neuroscale_couple.parallel import idle_until
from neuroscale_couple.transport.frames import HEADER, ArraySpec, Failure, Header, Kind, Reader

Array = npt.NDArray[Any]
BUFFER = 4 << 20
"""Bytes that a socket may hold on their way; the system may grant less."""
_WHOLE = getattr(socket, "MSG_WAITALL", 0)
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", _WHOLE)
SOON = 1e-3
"""Seconds of polling before a wait for a message starts to sleep."""
PATIENCE = 60.0
"""Seconds that an MPI peer, which waits for an answer, gets to take it."""
LAST_WORDS = 2.0
"""Seconds that a peer gets to take the last message of a failed session."""
LARGEST_MESSAGE = 1 << 30
"""Bytes of one MPI message; larger blocks are cut, the same on both sides."""


class Stream(ABC):
    """Bytes to and from one peer, in order. who: the peer, for messages."""

    who: str

    @abstractmethod
    def receive_into(self, view: memoryview) -> None:
        """Fill all of `view`. Raises: PeerError if the peer goes away."""

    @abstractmethod
    def send(self, blocks: Sequence[memoryview]) -> None:
        """Send blocks one after the other. Raises: PeerError if the peer goes away."""

    @abstractmethod
    def waiting(self) -> bool:
        """Whether a message, or the peer's end, can be read now."""

    def hurry(self) -> None:  # noqa: B027
        """The session is over: from now on wait for the peer no longer than a moment, where one might wait for ever."""

    @abstractmethod
    def close(self) -> None:
        """Let go; idempotent."""


def send_message(stream: Stream, kind: Kind, text: bytes = b"", arrays: Sequence[Array] = ()) -> None:
    """Send one message. arrays: contiguous. Raises: PeerError."""
    header = Header(kind, len(text), sum(a.nbytes for a in arrays)).packed()
    data = [a.reshape(-1).data.cast("B") for a in arrays if a.nbytes]
    stream.send([memoryview(header + text), *data])


def receive_message(stream: Stream) -> tuple[Header, Reader]:
    """Receive a message up to its data. Raises: PeerError, TransportError if it is not one."""
    raw = bytearray(HEADER.size)
    stream.receive_into(memoryview(raw))
    header = Header.parse(bytes(raw))
    text = bytearray(header.text)
    if text:
        stream.receive_into(memoryview(text))
    return header, Reader(bytes(text))


def receive_arrays(stream: Stream, header: Header, specs: Sequence[ArraySpec]) -> dict[str, Array]:
    """Receive the data of a message as new arrays. Raises: PeerError, TransportError if the sizes differ."""
    check_size(stream, header, sum(spec.bytes for spec in specs))
    arrays: dict[str, Array] = {}
    for spec in specs:
        arrays[spec.name] = spec.empty()
        receive_array(stream, arrays[spec.name])
    return arrays


def check_size(stream: Stream, header: Header, expected: int) -> None:
    """Refuse data of another size than the text says. Raises: TransportError."""
    if header.data != expected:
        raise TransportError(
            f"{stream.who} sent {header.data} bytes of data with {header.kind.name.lower()}, expected {expected}"
        )


def receive_array(stream: Stream, into: Array) -> None:
    """Receive a block into a contiguous array. Raises: PeerError."""
    if into.nbytes:
        stream.receive_into(into.reshape(-1).data.cast("B"))


def expect(stream: Stream, kind: Kind) -> tuple[Header, Reader]:
    """Receive a message of one kind. Raises: PeerError with the peer's own error, TransportError if it is another."""
    return check_kind(stream, kind, *receive_message(stream))


def check_kind(stream: Stream, kind: Kind, header: Header, text: Reader) -> tuple[Header, Reader]:
    """Refuse a message of another kind. Raises: as `expect`."""
    if header.kind == Kind.FAIL:
        raise PeerError(f"{stream.who} failed: {text.text()}")
    if header.kind != kind:
        raise TransportError(f"{stream.who} sent {header.kind.name.lower()} where {kind.name.lower()} was expected")
    return header, text


def parse_failure(header: Header, text: Reader) -> Failure | None:
    """The service's error, if the message is one."""
    return Failure.parse(text) if header.kind == Kind.ERROR else None


class SocketStream(Stream):
    """A connected AF_UNIX socket."""

    def __init__(self, connection: socket.socket, who: str, seconds: float | None = None) -> None:
        """seconds: longest wait for the peer, None: for ever"""
        self.connection, self.who, self._seconds = connection, who, seconds
        connection.settimeout(seconds)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, BUFFER)

    def receive_into(self, view: memoryview) -> None:
        """See `Stream.receive_into`; what begins a message is polled for at first: it often comes soon."""
        end = time.perf_counter() + SOON if len(view) == HEADER.size else 0.0
        while len(view):
            try:
                count = self.connection.recv_into(view, 0, _AT_ONCE if time.perf_counter() < end else _WHOLE)
            except BlockingIOError:
                os.sched_yield()
                continue
            except OSError as error:
                raise self._lost(error) from None
            if count == 0:
                raise PeerError(f"{self.who} went away without a word")
            view = view[count:]

    def send(self, blocks: Sequence[memoryview]) -> None:
        """See `Stream.send`."""
        try:
            for block in blocks:
                self.connection.sendall(block)
        except OSError as error:
            raise self._lost(error) from None

    def waiting(self) -> bool:
        """See `Stream.waiting`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return bool(selector.select(0))

    def check_there(self) -> None:
        """Raises: PeerError if the peer has gone and left nothing to read."""
        try:
            gone = not self.connection.recv(1, socket.MSG_PEEK)
        except OSError as error:
            raise self._lost(error) from None
        if gone:
            raise PeerError(f"{self.who} went away without a word")

    def close(self) -> None:
        """See `Stream.close`."""
        self.connection.close()

    def _lost(self, error: OSError) -> PeerError:
        if isinstance(error, TimeoutError):
            return PeerError(f"{self.who} was silent for {self._seconds:g} s")
        return PeerError(f"{self.who} went away: {error.strerror or error}")


class MpiStream(Stream):
    """One rank of the other side of an intercommunicator; header and text are one message, every array is its own."""

    def __init__(self, intercomm: Any, peer: int, who: str) -> None:
        self._comm, self._peer, self.who = intercomm, peer, who
        self._patience = PATIENCE
        self._text = memoryview(b"")  # what came with a header

    def receive_into(self, view: memoryview) -> None:
        """See `Stream.receive_into`; only what begins a message is waited for idly: the rest is on its way."""
        if len(self._text):
            count = min(len(view), len(self._text))
            view[:count], self._text, view = self._text[:count], self._text[count:], view[count:]
        elif len(view) == HEADER.size:
            view = view[self._receive_head(view) :]
        for piece in _pieces(view):
            self._comm.Recv(np.frombuffer(piece, dtype=np.uint8), source=self._peer, tag=0)

    def send(self, blocks: Sequence[memoryview]) -> None:
        """See `Stream.send`."""
        end = time.monotonic() + self._patience
        for piece in (piece for block in blocks for piece in _pieces(block)):
            request = self._comm.Isend(np.frombuffer(piece, dtype=np.uint8), dest=self._peer, tag=0)
            while not request.Test():
                if time.monotonic() > end:  # it may be gone: MPI would wait for ever
                    raise PeerError(f"{self.who} did not take a message within {self._patience:g} s")
                os.sched_yield()

    def hurry(self) -> None:
        """See `Stream.hurry`."""
        self._patience = LAST_WORDS

    def _receive_head(self, view: memoryview) -> int:
        """Receive a header with its text; the bytes of it that came."""
        from mpi4py import MPI

        self._wait_for_begin()
        status = MPI.Status()
        self._comm.Probe(source=self._peer, tag=0, status=status)
        came = np.empty(status.Get_count(MPI.BYTE), dtype=np.uint8)
        self._comm.Recv(came, source=self._peer, tag=0)
        count = min(len(view), len(came))
        view[:count], self._text = came.data[:count], came.data[count:]
        return count

    def _wait_for_begin(self) -> None:
        """Give way to others for a moment, then wait idly: most answers come soon, and a sleep costs more than they."""
        end = time.perf_counter() + SOON
        while not self.waiting():
            if time.perf_counter() > end:
                idle_until(self.waiting)
                return
            os.sched_yield()

    def waiting(self) -> bool:
        """See `Stream.waiting`."""
        return bool(self._comm.Iprobe(source=self._peer, tag=0))

    def close(self) -> None:
        """See `Stream.close`; the communicator is given back by its owner."""


def _pieces(view: memoryview) -> list[memoryview]:
    return [view[start : start + LARGEST_MESSAGE] for start in range(0, len(view), LARGEST_MESSAGE)]


class MemoryStream(Stream):
    """Buffers that a caller in the same process hands in and takes out; for the embedded channel, and for tests."""

    def __init__(self, who: str = "the client") -> None:
        self.who = who
        self.received: list[memoryview] = []
        self.sent: list[memoryview] = []

    def receive_into(self, view: memoryview) -> None:
        """See `Stream.receive_into`."""
        while len(view):
            if not self.received:
                raise PeerError(f"{self.who} went away without a word")
            first = self.received[0]
            count = min(len(first), len(view))
            view[:count] = first[:count]
            view = view[count:]
            self.received[0] = first[count:]
            if not len(self.received[0]):
                del self.received[0]

    def send(self, blocks: Sequence[memoryview]) -> None:
        """See `Stream.send`."""
        self.sent.extend(blocks)

    def waiting(self) -> bool:
        """See `Stream.waiting`."""
        return True

    def close(self) -> None:
        """See `Stream.close`."""


def wait_for_all(streams: Sequence[Stream], seconds: float | None = None) -> bool:
    """Wait without burning a core until every peer has a message, or one has gone; False if `seconds` passed first."""
    if len(streams) == 1 and seconds is None:
        return True  # whoever reads next waits
    if all(isinstance(stream, SocketStream) for stream in streams):
        return _wait_for_sockets([stream for stream in streams if isinstance(stream, SocketStream)], seconds)
    checks: list[Callable[[], bool]] = [stream.waiting for stream in streams]
    return idle_until(lambda: all(check() for check in checks), seconds)


def _wait_for_sockets(streams: Sequence[SocketStream], seconds: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.connection, selectors.EVENT_READ, stream)
        while selector.get_map():
            events = selector.select(seconds)
            if not events:
                return False
            for key, _ in events:
                key.data.check_there()
                selector.unregister(key.fileobj)
    return True
