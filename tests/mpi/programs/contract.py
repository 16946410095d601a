"""The transport contract over MPI: contract.py '"macro"' | '"service"', one connection per check."""

from __future__ import annotations

import json
import sys

from neuroscale_couple import parallel
from neuroscale_couple.transport.mpi import MpiClosure
from neuroscale_couple.transport.mpi_server import MpiServer
from tests.contract.transport_contract import CHECKS, Echo


def main() -> None:
    role = json.loads(sys.argv[1])
    with parallel.abort_on_error():
        for name, check in CHECKS.items():
            if role == "service":
                MpiServer(Echo).run()
            else:
                check(lambda points: MpiClosure(None, points))
                print(f"kept: {name}", flush=True)


if __name__ == "__main__":
    main()
