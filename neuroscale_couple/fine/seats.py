"""The core on which each worker process wakes up, so that workers that are woken together begin together.

One process that wakes several puts them on few cores, and the kernel takes milliseconds to move one that waits behind
another: longer than a window of cheap micro simulations. Where workers fill all cores, each therefore waits for its
next task on a core of its own; while it works it may run anywhere, and so may all that it starts.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
"""Where launchers say how many ranks of the job there are on this node."""
PLACES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
"""Where they say which of them this one is."""
NOWHERE = -1


def said(names: tuple[str, ...], default: int) -> int:
    """A number that an MPI launcher has said in the environment."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def cores() -> int:
    """Cores that a rank may use for its workers."""
    return max(1, len(_allowed()) // said(RANKS, 1))


def seats(workers: int) -> list[int]:
    """Core of each of this rank's workers; `NOWHERE` for all where some cores stay free, or the system has no say."""
    allowed = _allowed() if hasattr(os, "sched_setaffinity") else []
    if not allowed or workers * said(RANKS, 1) < len(allowed):
        return [NOWHERE] * workers
    first = said(PLACES, 0) * workers
    return [allowed[(first + number) % len(allowed)] for number in range(workers)]


@contextmanager
def seated(core: int) -> Iterator[None]:
    """Wait on this core; afterwards run wherever it was allowed before."""
    allowed = os.sched_getaffinity(0) if core != NOWHERE else set()
    if core not in allowed:
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def own_core() -> Callable[[], int]:
    """A function that says on which core this process runs at the moment; `NOWHERE` where the system does not tell."""
    try:
        ask = ctypes.CDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return lambda: NOWHERE
    return lambda: int(ask())


def _allowed() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
