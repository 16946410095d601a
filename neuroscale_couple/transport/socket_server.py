"""`neuroscale-couple serve CASE.yaml --socket PATH`: the service behind an AF_UNIX socket of this node.

The socket belongs to one user (mode 0600) and to one run: its file is gone as soon as all ranks have joined. A solver
that dies ends the service within seconds, even one that is busy with a long solve.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from neuroscale_couple.errors import NeuroscaleError, TransportError
from neuroscale_couple.transport.base import ServiceFactory
from neuroscale_couple.transport.frames import VERSION, Failure, Hello, Kind, Writer
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import SocketStream, Stream, expect, send_message

Prepare = Callable[[], tuple[Path, str, ServiceFactory]]
"""Reads the configuration: (its path, its hash, the factory of its service)."""
LONGEST_PATH = 107
"""Bytes of a socket's path; the system takes no more."""
GREETING = 10.0
"""Seconds that a connection gets to say who it is."""
GRACE = 3.0
"""Seconds that a busy service gets to notice that its solver has died."""


class Listener:
    """A socket that waits for the ranks of a solver."""

    def __init__(self, path: Path, ranks: int = 0) -> None:
        """ranks: how many there will be; 0: the first one says it. Raises: TransportError."""
        self._path, self._ranks = path, ranks
        raw = os.fsencode(path)
        if len(raw) > LONGEST_PATH:
            raise TransportError(f"the socket's path has {len(raw)} bytes, {LONGEST_PATH} is the most: {path}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        former = os.umask(0o177)
        try:
            self._listen(raw)
        except OSError as error:
            self._socket.close()
            raise TransportError(f"no socket can be made at {path}: {error.strerror}") from None
        finally:
            os.umask(former)

    def _listen(self, raw: bytes) -> None:
        """Make the socket under another name first: one that does not listen yet looks like one that was left behind.

        Raises: OSError
        """
        first = os.path.join(os.path.dirname(raw), b".%d" % os.getpid())
        if len(first) > LONGEST_PATH:
            first = raw
        self._socket.bind(first)
        try:
            self._socket.listen(1024)
            if first != raw:
                os.link(first, raw)
        finally:
            if first != raw:
                os.unlink(first)

    def accept(self, seconds: float | None = None) -> list[tuple[SocketStream, Hello]]:
        """Wait for all ranks; in the order of the ranks.

        seconds: for all of them to come, None: for ever. Raises: TransportError
        """
        end = None if seconds is None else time.monotonic() + seconds
        joined: dict[int, tuple[SocketStream, Hello]] = {}
        while not joined or len(joined) < self._ranks:
            self._socket.settimeout(None if end is None else max(0.0, end - time.monotonic()) + 1e-3)
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                missing = f"{len(joined)} of {self._ranks or 1} rank(s) of the solver came"
                raise TransportError(f"{missing} to {self._path} within {seconds:g} s") from None
            self._admit(connection, joined)
        return [joined[rank] for rank in sorted(joined)]

    def _admit(self, connection: socket.socket, joined: dict[int, tuple[SocketStream, Hello]]) -> None:
        """Take a connection in, or refuse it with a sentence; one that is refused disturbs nobody else."""
        stream = SocketStream(connection, "a connection", GREETING)
        try:
            _check_user(connection)
            hello = Hello.parse(expect(stream, Kind.HELLO)[1])
            if self._ranks and hello.ranks != self._ranks:
                raise TransportError(f"a solver of {hello.ranks} rank(s) came, {self._ranks} were expected")
            if hello.rank in joined:
                raise TransportError(f"two processes say that they are rank {hello.rank}")
        except TransportError as error:
            with suppress(TransportError):
                refuse(stream, error)
            stream.close()
            return
        connection.settimeout(None)
        stream.who = f"solver rank {hello.rank}"
        self._ranks = hello.ranks
        joined[hello.rank] = stream, hello

    def close(self) -> None:
        """Take the socket away; those that joined stay."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_user(connection: socket.socket) -> None:
    """Refuse another user's process. Raises: TransportError."""
    if not hasattr(socket, "SO_PEERCRED"):
        return  # the file's mode alone guards it
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user != os.getuid():
        raise TransportError(f"a process of user {user} came, this service is for user {os.getuid()}")


def refuse(stream: Stream, error: BaseException) -> None:
    """Tell a peer the error that ends the session. Raises: PeerError if it is gone."""
    message = str(error) if isinstance(error, NeuroscaleError) else f"{type(error).__name__}: {error}"
    send_message(stream, Kind.ERROR, Failure(True, type(error).__name__, message).packed())


def check_hello(hello: Hello, configuration: Path, digest: str) -> None:
    """Refuse a solver that means another case. Raises: TransportError."""
    if hello.digest and hello.digest != digest:
        raise TransportError(
            f"solver rank {hello.rank} was given another configuration (hash {hello.digest[:12]}) than the service "
            f"(hash {digest[:12]}): give both the same file"
        )
    if hello.configuration and Path(hello.configuration).resolve() != configuration.resolve():
        raise TransportError(
            f"solver rank {hello.rank} was given {hello.configuration}, the service {configuration}: "
            "give both the same file"
        )


def prepare_for(joined: Sequence[tuple[Stream, Hello]], prepare: Prepare) -> ServiceFactory:
    """Read the configuration and welcome all ranks; one that is wrong is an error on all of them.

    Raises: what `prepare` raises, TransportError
    """
    try:
        configuration, digest, factory = prepare()
        for _, hello in joined:
            check_hello(hello, configuration, digest)
        for stream, _ in joined:
            send_message(stream, Kind.WELCOME, Writer().put("I", VERSION).bytes())
    except Exception as error:
        for stream, _ in joined:
            with suppress(TransportError):
                refuse(stream, error)
        raise
    return factory


def serve_one_run(path: Path, ranks: int, seconds: float | None, prepare: Prepare) -> None:
    """Wait for the ranks of a solver at a socket and serve them until they finish.

    ranks, seconds: as for `Listener`; prepare: called once the solver is there, so that it hears what is wrong
    Raises: what `prepare` and the service raise, after the solver was told; PeerError, TransportError
    """
    with Listener(path, ranks) as listener:
        joined = listener.accept(seconds)
    streams = [stream for stream, _ in joined]
    factory = prepare_for(joined, prepare)
    with Watch(streams):
        StreamServer(streams, factory).run()


class Watch:
    """Ends this process when a rank of the solver dies while the service is too busy to notice."""

    def __init__(self, streams: Sequence[SocketStream]) -> None:
        self._streams = list(streams)
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="neuroscale-watch", daemon=True).start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        poll = select.poll()
        for stream in self._streams:
            poll.register(stream.connection, getattr(select, "POLLRDHUP", select.POLLHUP))
        while not self._over.is_set():
            if poll.poll(500):
                break
        if self._over.wait(GRACE):
            return
        sys.stderr.write("neuroscale-couple: the solver has died while the service was busy; it ends too\n")
        sys.stderr.flush()
        os._exit(1)
