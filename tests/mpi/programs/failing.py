"""A fine solver of the user's that fails where a window is committed: failing.py '{"config": ..., "at": ...}'."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.fine.fft_cell import FftCell


class Failing(FftCell):
    """Fails on the rank that owns point 0: in `commit`, or when asked for its state."""

    at = ""

    def _fail(self, at: str) -> None:
        if at == type(self).at and 0 in self._ids:
            raise RuntimeError(f"the disk of the user's solver is full in {at}")

    def commit(self) -> None:
        self._fail("commit")
        super().commit()

    def get_state(self) -> Mapping[str, Any]:
        self._fail("get_state")
        return super().get_state()


def main() -> None:
    from mpi4py import MPI

    from neuroscale_couple import Points, connect
    from neuroscale_couple.transport import embedded
    from tests.mpi.programs.failing import Failing as Named  # the class that the configuration names, not __main__'s

    asked = json.loads(sys.argv[1])
    Named.at = asked["at"]
    embedded.PATIENCE = 1e6  # a rank that waits in a collective of its own is not rescued by it
    comm = MPI.COMM_WORLD
    ids = np.arange(8) + 8 * comm.Get_rank()
    closure = connect(asked["config"], comm, Points(ids, np.zeros((8, 2)), np.ones(8)))
    closure.evaluate({"strain": np.full((8, 3), 1e-3)}, 0.0, 1.0)
    closure.commit()
    closure.close()


if __name__ == "__main__":
    main()
