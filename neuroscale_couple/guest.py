"""A process that belongs to a solver which is no Python program: its job is not ours to end, and no wait is for ever.

Channel `embedded` of the client calls `be_guest`; `parallel` asks here how long ranks wait for each other.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from neuroscale_couple.errors import TransportError

Cause = tuple[bool, str, str]
"""Whether another rank knows the first cause, the name of the error, its text."""
TELLING = 20.0
"""Seconds that ranks which have met have to say why one of them failed."""
ROOM = 8192
"""Bytes in which a rank says its cause."""

_longest_wait: float | None = None
_unanswered: list[Any] = []


def be_guest(seconds: float) -> None:
    """From here on: raise instead of ending the job, and wait for other ranks so long at most. seconds: s"""
    global _longest_wait
    _longest_wait = seconds


def longest_wait() -> float | None:
    """Seconds that a rank waits for others at most; None: for ever, as in a job of our own."""
    return _longest_wait


def too_late(where: str, request: Any) -> TransportError:
    """What a rank raises that has waited long enough for the others. request: that nobody came to"""
    _unanswered.append(request)  # MPI may still use its buffers
    return TransportError(
        f"not all ranks have come to {where} in time: one may have failed; raise options.timeout if it needs longer"
    )


def packed(cause: Cause | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A cause in a fixed room, cut where it is longer. Returns: uint8 [ROOM]"""
    said: Any = cause
    if cause is not None:
        said = (*cause[:2], cause[2].encode(errors="replace")[: ROOM // 8].decode(errors="ignore"))
    text = json.dumps(said, ensure_ascii=False).encode()
    return np.frombuffer(text.ljust(ROOM), dtype=np.uint8)


def unpacked(room: np.ndarray[Any, np.dtype[np.uint8]]) -> Cause | None:
    """The inverse of `packed`. room: uint8 [ROOM]"""
    said = json.loads(room.tobytes())
    return None if said is None else (bool(said[0]), str(said[1]), str(said[2]))
