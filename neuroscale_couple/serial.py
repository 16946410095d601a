"""A communicator for runs without MPI."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class SerialComm:
    """The communicator of a run without MPI: one rank, every collective is the identity."""

    rank = 0
    size = 1

    def Get_rank(self) -> int:
        """Rank of this process: 0."""
        return 0

    def Get_size(self) -> int:
        """Number of ranks: 1."""
        return 1

    def Dup(self) -> SerialComm:
        """The same communicator."""
        return self

    def barrier(self) -> None:
        """Nothing to wait for."""

    Free = Barrier = barrier

    def allreduce(self, value: T, op: object = None) -> T:
        """The value itself, whatever the operation."""
        return value

    def bcast(self, value: T, root: int = 0) -> T:
        """The value itself."""
        return value

    def allgather(self, value: T) -> list[T]:
        """The values of all ranks: one."""
        return [value]

    def gather(self, value: T, root: int = 0) -> list[T]:
        """The values of all ranks: one."""
        return [value]

    def Allreduce(self, values: Any, result: Any, op: object = None) -> None:
        """Copy the values into the result; an in-place call leaves it as it is."""
        if isinstance(values, np.ndarray):
            np.copyto(result, values)
