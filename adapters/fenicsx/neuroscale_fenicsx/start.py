"""The first line of a macro script: who is who in the MPI job, and PETSc on the macro ranks alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from neuroscale_couple import split_world
from neuroscale_couple.errors import TransportError

_started = False


def start(options: Sequence[str] = ()) -> Any:
    """Split the MPI world, initialise PETSc on the macro ranks and return their communicator.

    Importing dolfinx initialises PETSc on all programs of an MPI job, which waits for ever in a service that knows
    no PETSc: call this first, then import dolfinx. It does no harm where the service is not a program of its own.
    options: of PETSc, e.g. sys.argv[2:]; only those of the first call in a process count
    Raises: TransportError if PETSc is there already. Collective: yes, over all programs of the job
    """
    global _started
    from mpi4py import MPI

    early = "petsc4py.PETSc" in sys.modules and not _started
    split = split_world("macro")
    if early and len(split.ranks) > 1:
        raise TransportError(
            "petsc4py or dolfinx was imported before neuroscale_fenicsx.start(): PETSc now belongs to all programs of "
            "the MPI job; call start() first, then import dolfinx"
        )
    comm = MPI.COMM_WORLD if len(split.ranks) == 1 else split.local
    if not _started and not early:
        import petsc4py

        petsc4py.init([sys.argv[0], *options], comm=comm)
    _started = True
    return comm
