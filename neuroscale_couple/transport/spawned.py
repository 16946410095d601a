"""`neuroscale-couple serve CASE.yaml --client`: the service that the ranks of a solver spawned by MPI."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from neuroscale_couple.errors import TransportError
from neuroscale_couple.parallel import print_error
from neuroscale_couple.transport.frames import Hello, Kind
from neuroscale_couple.transport.socket_server import GRACE, Prepare, prepare_for
from neuroscale_couple.transport.stream_server import StreamServer
from neuroscale_couple.transport.streams import MpiStream, expect


def serve_parent(prepare: Prepare) -> None:
    """Serve the ranks that spawned this process until they finish.

    Anything that goes wrong is told to the solver and ends the job.
    Raises: TransportError if nobody spawned it
    """
    from mpi4py import MPI

    parent = MPI.Comm.Get_parent()
    if parent == MPI.COMM_NULL:
        raise TransportError(
            "serve --client is started by a solver (channel mpi of the client), but no MPI job spawned this process; "
            "one that did belongs to another MPI than mpi4py's"
        )
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


def _serve(parent: Any, prepare: Prepare) -> None:
    streams = [MpiStream(parent, rank, f"solver rank {rank}") for rank in range(parent.Get_remote_size())]
    joined = [(stream, Hello.parse(expect(stream, Kind.HELLO)[1])) for stream in streams]
    factory = prepare_for(joined, prepare)
    StreamServer(streams, factory).run()
