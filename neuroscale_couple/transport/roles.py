"""Who is who in an MPI job of two programs: every process says its role, and the world is split by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroscale_couple.errors import TransportError
from neuroscale_couple.parallel import check_world, idle_wait, launched, name_role
from neuroscale_couple.serial import SerialComm

_ROLE_BYTES = 64


@dataclass(frozen=True)
class Split:
    """The world of an MPMD job, divided by role.

    local: communicator of the ranks of this role; ranks: role -> its ranks in the world, ascending
    """

    role: str
    world: Any
    local: Any
    ranks: Mapping[str, tuple[int, ...]]

    def intercomm(self, other: str) -> Any:
        """Intercommunicator between this role and another.

        Raises: TransportError if nobody has that role.
        Collective: yes, over both roles
        """
        if other not in self.ranks:
            counts = ", ".join(f"{len(ranks)} x {role}" for role, ranks in self.ranks.items())
            raise TransportError(
                f"no rank of this MPI job is a {other!r} (there are: {counts}); "
                "start both sides together: mpirun -n 2 python macro.py : -n 1 neuroscale-couple serve case.yaml"
            )
        return self.local.Create_intercomm(0, self.world, self.ranks[other][0], 77)


_split: Split | None = None


def split_world(role: str) -> Split:
    """Divide MPI.COMM_WORLD by role; the second call of a process returns the first one's result.

    A macro solver that uses PETSc must split before it initialises PETSc, and initialise it on `local`.
    Raises: TransportError
    Collective: yes, over the world
    """
    global _split
    if _split is not None:
        if _split.role != role:
            raise TransportError(f"this process joined the MPI job as {_split.role!r}, it cannot be {role!r} too")
        return _split
    if not launched():  # a serial run needs no MPI
        serial = SerialComm()
        _split = Split(role, serial, serial, {role: (0,)})
        return _split
    check_world()
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    name = role.encode()
    if len(name) > _ROLE_BYTES:
        raise TransportError(f"role {role!r} is longer than {_ROLE_BYTES} bytes")
    mine = np.frombuffer(name.ljust(_ROLE_BYTES, b"\0"), dtype=np.uint8).copy()
    names = np.empty((world.Get_size(), _ROLE_BYTES), dtype=np.uint8)
    idle_wait(world.Iallgather(mine, names))
    roles = [row.tobytes().rstrip(b"\0").decode() for row in names]
    ranks = {kind: tuple(i for i, found in enumerate(roles) if found == kind) for kind in dict.fromkeys(roles)}
    local = world.Split(color=sorted(ranks).index(role), key=world.Get_rank())
    name_role(f"{role} rank {local.Get_rank()}")
    _split = Split(role, world, local, ranks)
    return _split
