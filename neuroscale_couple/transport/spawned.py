"""`neuroscale-couple serve CASE.yaml --client`: the service that the ranks of a solver spawned by MPI."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from neuroscale_couple.errors import TransportError
from neuroscale_couple.parallel import check_world, launched_size, print_error, size
from neuroscale_couple.transport.frames import Hello, Kind
from neuroscale_couple.transport.roles import split_world
from neuroscale_couple.transport.socket_server import GRACE, Prepare, prepare_for
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import MpiStream, expect


def serve_parent(prepare: Prepare) -> None:
    """Serve the ranks that spawned this process, or were started beside it in one MPI job, until they finish.

    Anything that goes wrong is told to the solver and ends the job.
    Raises: TransportError if there are none, or several services
    """
    from mpi4py import MPI

    parent = MPI.Comm.Get_parent()
    if parent == MPI.COMM_NULL:
        parent = _beside()
    try:
        _serve(parent, prepare)
    except Exception as error:
        print_error(error)
        time.sleep(GRACE)  # for the solver, which was told, to say so itself
        last_resort = threading.Timer(GRACE, os._exit, (1,))  # an abort waits for an MPI that may be gone
        last_resort.daemon = True
        last_resort.start()
        MPI.COMM_WORLD.Abort(1)
    parent.Disconnect()


def _beside() -> Any:
    """The solver's ranks of the same MPI job (channel `mpmd` of the client). Raises: TransportError."""
    check_world()
    if launched_size() == 1:
        raise TransportError(
            "serve --client is started by a solver (channel mpi of the client), or beside it in one job (mpmd), "
            "but no MPI job spawned this process; one that did belongs to another MPI than mpi4py's"
        )
    split = split_world("service")
    if size(split.local) != 1:
        raise TransportError(f"serve --client serves alone, but {size(split.local)} were started: give it -n 1")
    return split.intercomm("macro")


def _serve(parent: Any, prepare: Prepare) -> None:
    streams = [MpiStream(parent, rank, f"solver rank {rank}") for rank in range(parent.Get_remote_size())]
    joined = [(stream, Hello.parse(expect(stream, Kind.HELLO)[1])) for stream in streams]
    factory = prepare_for(joined, prepare)
    StreamServer(streams, factory).run()
