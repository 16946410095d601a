"""The service inside a solver that is no Python program: channel `embedded` of the client calls it here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from neuroscale_couple.errors import PeerError
from neuroscale_couple.transport.base import ServiceFactory
from neuroscale_couple.transport.frames import Hello, Kind
from neuroscale_couple.transport.socket_server import prepare_for, refuse
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import MemoryStream, expect


class InsideService:
    """Takes the messages of one client as buffers and gives its answers as buffers."""

    def __init__(self, prepare: Callable[[], tuple[Path, str, ServiceFactory]]) -> None:
        """prepare: (configuration, its hash, factory)"""
        self._prepare = prepare
        self._stream = MemoryStream("the solver")
        self._server: StreamServer | None = None
        self._connected = False

    def handle(self, blocks: Sequence[memoryview]) -> list[memoryview]:
        """Carry out one message and return the answer; every error is an answer too."""
        self._stream.received = list(blocks)
        self._stream.sent = []
        try:
            self._carry_out()
        except Exception as error:
            if self._server is None:
                refuse(self._stream, error)
            else:
                self._server.fail(error)
        return self._stream.sent

    def _carry_out(self) -> None:
        if self._server is None:
            self._server = StreamServer([self._stream], self._greet())
        elif not self._connected:
            self._server.connect()
            self._connected = True
        else:
            self._server.step()

    def abandon(self) -> None:
        """The solver goes without finishing: write what is to be written."""
        if self._server is not None:
            self._server.fail(PeerError("the solver left before it finished"))

    def _greet(self) -> ServiceFactory:
        return prepare_for([(self._stream, Hello.parse(expect(self._stream, Kind.HELLO)[1]))], self._prepare)
