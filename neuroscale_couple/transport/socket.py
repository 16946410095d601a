"""Macro solver and service as two programs of one node that talk through a socket; no MPI is needed.

The service is started with the macro solver and answers all its ranks, whose points are one batch. The service's side
is in `socket_server` and `stream_server`, the messages are in `frames`.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError, PeerError, TransportError
from neuroscale_couple.parallel import communicator, rank, size, together
from neuroscale_couple.transport.base import Closure, State
from neuroscale_couple.transport.border import check_state, check_time, describe_call
from neuroscale_couple.transport.distribution import Rows, common_columns
from neuroscale_couple.transport.frames import (
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
from neuroscale_couple.transport.streams import (
    SocketStream,
    check_size,
    receive_array,
    receive_arrays,
    receive_message,
    send_message,
)
from neuroscale_couple.values import Layout, Outputs, Points, Reply

START = 120.0
"""Seconds that a service gets to come up."""
LEAVE = 10.0
"""Seconds that a service gets to end after it was told to."""
_NOTHING = Layout(())


class SocketClosure(Closure):
    """The macro solver's side of `transport: socket`."""

    def __init__(
        self, configuration: Path, digest: str, comm: Any, points: Points, options: Sequence[str] = (), path: str = ""
    ) -> None:
        """Start the service, or join the one at `path`, and hand the points over.

        options: for `neuroscale-couple serve`
        Raises: TransportError, InputError, PeerError. Collective: yes, over comm
        """
        self._comm = communicator(comm).Dup()
        self._service: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._broken, self._open = "", True
        here = rank(self._comm), size(self._comm)
        if not path:
            self._folder = tempfile.mkdtemp(prefix="neuroscale-") if here[0] == 0 else ""
            path = self._comm.bcast(str(Path(self._folder) / "service") if self._folder else None)
            self._start(configuration, path, options)
        try:
            self._stream = together(self._comm, "joining the service", lambda: self._join(Path(path)))
            send_message(self._stream, Kind.HELLO, Hello(str(configuration), digest, *here).packed())
            self._hear(Kind.WELCOME, "connect")
            self._hand_over(points)
        except BaseException:
            self._end()
            raise

    def _start(self, configuration: Path, path: str, options: Sequence[str]) -> None:
        if rank(self._comm) != 0:
            return
        command = [sys.executable, "-m", "neuroscale_couple.cli", "serve", str(configuration), "--socket", path]
        ranks = ["--ranks", str(size(self._comm)), "--wait", str(START)]
        self._service = subprocess.Popen([*command, *ranks, *options], stdin=subprocess.DEVNULL, process_group=0)

    def _join(self, path: Path) -> SocketStream:
        end = time.monotonic() + START
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                connection.connect(str(path))
                return SocketStream(connection, "the service")
            except OSError as error:
                code = None if self._service is None else self._service.poll()
                if code is None and time.monotonic() < end:
                    time.sleep(0.02)
                    continue
                connection.close()
                why = error.strerror if code is None else f"it ended with status {code}"
                raise TransportError(f"the service cannot be reached at {path}: {why}") from None

    def _hand_over(self, points: Points) -> None:
        self._ids = np.ascontiguousarray(points.ids, dtype=np.int64)
        columns, _ = common_columns(self._comm, points)
        specs = tuple(ArraySpec.of(name, array) for name, array in columns.items())
        text = Declared(specs, _NOTHING, _NOTHING).packed()
        send_message(self._stream, Kind.POINTS, text, list(columns.values()))
        header, words = self._hear(Kind.READY, "connect")
        ready = Ready.parse(words)
        self.inputs, self.outputs = ready.inputs, ready.outputs
        self._version = ready.model_version
        state = receive_arrays(self._stream, header, ready.arrays)
        self._resumed = None if ready.windows < 0 else (ready.windows, state)
        self._window = max(ready.windows, 0)
        self._iteration = 0

    def evaluate(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        t: float,
        dt: float,
        totals: Mapping[str, float] | None = None,
        blank: bool = False,
    ) -> Outputs:
        """See `Closure.evaluate`; the service refuses values that are not finite."""
        totals = {name: float(value) for name, value in (totals or {}).items()}

        def check() -> Rows:
            self._check_usable()
            check_time(t, dt, totals, self.outputs)
            return self.inputs.pack(inputs, len(self._ids))

        where = f"inputs of window {self._window}, iteration {self._iteration}"
        rows = together(self._comm, where, check, describe_call(t, dt, totals))
        call = Exchange(float(t), float(dt), self._iteration, sum(Part), blank, totals)
        self._tell(Kind.EXCHANGE, call.packed(), [rows])
        header, text = self._hear(Kind.ANSWER, where)
        reply = self._receive_reply(header, text)
        self._iteration += 1
        return Outputs(self.outputs, reply)

    def _receive_reply(self, header: Header, text: Reader) -> Reply:
        self._version, _, columns = int(text.get("q")), text.get("B"), int(text.get("I"))
        n, n_out = len(self._ids), self.outputs.size
        if columns not in (0, self.inputs.size):
            raise TransportError(f"the service sent a tangent of {columns} columns, expected {self.inputs.size}")
        outputs, tangent, error = np.empty((n, n_out)), np.empty((n, n_out, columns)), np.empty(n)
        who = np.empty((2, n), dtype=np.uint8)
        parts: list[Rows] = [outputs, tangent, error, who]
        check_size(self._stream, header, sum(array.nbytes for array in parts))
        for array in parts:
            receive_array(self._stream, array)
        return Reply(outputs, tangent, who[0], who[1], error)

    def commit(self, macro_state: State | None = None) -> None:
        """See `Closure.commit`."""

        def check() -> tuple[tuple[ArraySpec, ...], list[Rows]]:
            self._check_usable()
            arrays = {name: np.ascontiguousarray(value) for name, value in (macro_state or {}).items()}
            check_state(arrays)
            return tuple(ArraySpec.of(name, array) for name, array in arrays.items()), list(arrays.values())

        specs, arrays = together(self._comm, "commit", check, "calls commit")
        self._tell(Kind.COMMIT, Kept(macro_state is not None, specs).packed(), arrays)
        self._done("commit")
        self._window += 1
        self._iteration = 0

    def rollback(self) -> None:
        """See `Closure.rollback`."""
        self._bid(Kind.ROLLBACK)
        self._iteration = 0

    def repeat(self) -> None:
        """See `Closure.repeat`."""
        self._bid(Kind.REPEAT)

    def next_step(self) -> None:
        """See `Closure.next_step`."""
        self._bid(Kind.NEXT_STEP)

    @property
    def model_version(self) -> int:
        """See `Closure.model_version`."""
        return self._version

    def resumed(self) -> tuple[int, State] | None:
        """See `Closure.resumed`."""
        return self._resumed

    def close(self) -> None:
        """See `Closure.close`."""
        if not self._open:
            return
        self._open = False
        try:
            if not self._broken:
                self._tell(Kind.FINISH)
                self._done("close")
        finally:
            self._end()

    def abandon(self, error: BaseException) -> None:
        """See `Closure.abandon`; the service hears why and ends, and with it all other ranks."""
        if self._open and not self._broken:
            with suppress(TransportError):
                cause = f"{type(error).__name__}: {error}".encode()
                send_message(self._stream, Kind.FAIL, len(cause).to_bytes(4, "little") + cause)
        self._open = False
        self._end()

    def _bid(self, kind: Kind) -> None:
        name = kind.name.lower()
        together(self._comm, name, self._check_usable, f"calls {name}")
        self._tell(kind)
        self._done(name)

    def _done(self, where: str) -> None:
        self._version = int(self._hear(Kind.DONE, where)[1].get("q"))

    def _tell(self, kind: Kind, text: bytes = b"", arrays: Sequence[Rows] = ()) -> None:
        """Send; a service that is gone may have left its reason, which `_hear` finds."""
        with suppress(PeerError):
            send_message(self._stream, kind, text, arrays)

    def _hear(self, kind: Kind, where: str) -> tuple[Header, Reader]:
        """The service's answer. Raises: InputError (the session goes on), PeerError, TransportError."""
        try:
            header, text = receive_message(self._stream)
            failure = Failure.parse(text) if header.kind == Kind.ERROR else None
        except TransportError as error:
            self._broken = str(error)
            raise
        if failure is not None and not failure.fatal:
            raise InputError(failure.message)
        if failure is not None:
            self._broken = failure.message
            raise PeerError(f"the service failed ({where}): {failure.kind}: {failure.message}")
        if header.kind != kind:
            self._broken = f"the service sent {header.kind.name.lower()} where {kind.name.lower()} was expected"
            raise TransportError(self._broken)
        return header, text

    def _check_usable(self) -> None:
        if self._broken:
            raise TransportError(f"the service has failed earlier and cannot go on: {self._broken}")
        if not self._open:
            raise TransportError("the closure was closed; connect again to go on")

    def _end(self) -> None:
        """Leave no process and no file behind."""
        if hasattr(self, "_stream"):
            self._stream.close()
        if self._service is not None:
            with suppress(subprocess.TimeoutExpired):
                self._service.wait(LEAVE)
            if self._service.poll() is None:
                self._service.kill()
                self._service.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
