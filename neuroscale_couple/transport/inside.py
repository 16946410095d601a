"""The service inside a solver that is no Python program: channel `embedded` of the client calls it here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroscale_couple import guest
from neuroscale_couple.errors import PeerError, TransportError
from neuroscale_couple.parallel import rank
from neuroscale_couple.transport.base import ServiceFactory
from neuroscale_couple.transport.frames import Hello, Kind
from neuroscale_couple.transport.ranked import Meeting, RankedServer
from neuroscale_couple.transport.socket_server import prepare_for, refuse
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import MemoryStream, expect


def communicator_of(kind: str, handle: int, seconds: float) -> Any:
    """The communicator of the solver's ranks, for mpi4py; this process is a guest in their job from here on.

    kind: of the solver's MPI (openmpi, mpich); handle: MPI_Comm_c2f of the communicator, which stays the solver's
    seconds: that a rank waits for others at most
    Raises: TransportError. Collective: no
    """
    try:
        if "mpi4py.MPI" not in sys.modules:
            os.environ.setdefault("MPI4PY_MPIABI", kind)
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False  # the solver does both
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise TransportError(f"several ranks need mpi4py in the interpreter of the service: {error}") from error
    if not MPI.Is_initialized():
        library = MPI.Get_library_version().splitlines()[0].strip()
        raise TransportError(
            f"mpi4py uses another MPI ({library}) than the solver ({kind}); set MPI4PY_MPIABI={kind}, or build mpi4py "
            "with the solver's MPI"
        )
    guest.be_guest(seconds)
    return MPI.Comm.f2py(handle)


class InsideService:
    """Takes the messages of one client as buffers and gives its answers as buffers.

    On several ranks of a solver each has one, and they make every call together: what fails on one fails on all.
    """

    def __init__(self, prepare: Callable[[], tuple[Path, str, ServiceFactory]], comm: Any = None) -> None:
        """prepare: (configuration, its hash, factory); comm: mpi4py communicator of the solver's ranks, None: one"""
        self._prepare = prepare
        self._comm = comm
        self._meeting = Meeting(comm)
        self._stream = MemoryStream("the solver" if comm is None else f"solver rank {rank(comm)}")
        self._server: StreamServer | None = None
        self._connected = False
        self._over = False  # with an error that all ranks know

    def handle(self, blocks: Sequence[memoryview]) -> list[memoryview]:
        """Carry out one message and return the answer; every error is an answer too. Collective: yes."""
        self._stream.received = list(blocks)
        self._stream.sent = []
        self._meeting.open()
        try:
            self._carry_out()
        except (Exception, SystemExit) as error:  # an exit is the solver's to make
            self._stream.sent = []
            told = self._meeting.tell(error)
            self._over = self._meeting.heard
            self._fail(told)
        return self._stream.sent

    def _carry_out(self) -> None:
        if self._server is None:
            factory = self._meeting.together("starting the service", self._greet)
            alone = self._comm is None
            self._server = (
                StreamServer([self._stream], factory) if alone else RankedServer(self._stream, factory, self._meeting)
            )
        elif not self._connected:
            self._server.connect()
            self._connected = True
        else:
            self._server.step()

    def _fail(self, error: BaseException) -> None:
        if self._server is None:
            refuse(self._stream, error)
        else:
            self._server.fail(error)

    def abandon(self) -> None:
        """The solver goes without finishing: write what is to be written, tell the other ranks. Collective: no."""
        if self._server is None or self._over:
            return
        self._meeting.open()
        self._server.fail(self._meeting.tell(PeerError(f"{self._stream.who} left before it finished")))

    def _greet(self) -> ServiceFactory:
        return prepare_for([(self._stream, Hello.parse(expect(self._stream, Kind.HELLO)[1]))], self._prepare)
