"""The service of an MPMD job: service.py '{"out": ..., "fault": ...}'."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import scripted

from neuroscale_couple import parallel
from neuroscale_couple.transport import mpi, mpi_server
from neuroscale_couple.transport.mpi_server import MpiServer
from neuroscale_couple.values import Batch, Points, Reply


class Idle(scripted.Scripted):
    """Says what it burnt between its construction and the first call."""

    born = 0.0

    def evaluate(self, batch: Batch) -> Reply:
        if not self.seen:
            print(f"used {scripted.cpu_seconds() - self.born:.3f} s", flush=True)
        return super().evaluate(batch)


def main() -> None:
    asked = json.loads(sys.argv[1])
    out = Path(asked["out"]) if "out" in asked else None
    mpi_server.PATIENCE = 2.0
    mpi.VERSION += asked.get("newer", 0)

    def factory(points: Points, comm: Any) -> Idle:
        service = Idle(points, comm, asked.get("fault", {}), out)
        service.born = scripted.cpu_seconds()
        return service

    with parallel.abort_on_error():
        MpiServer(factory, asked.get("digest", "abc")).run()


if __name__ == "__main__":
    main()
