"""Memory that the fine solver `micro_manager` shares with its worker processes, so that messages carry no arrays."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import BinaryIO, cast

import numpy as np

from neuroscale_couple.values import F64, I64

APART = 16
"""Numbers from one worker's progress to the next one's: no two of them write to the same cache line."""


class Board:
    """What points are asked and have answered, and where each worker is.

    inputs: float64 [points, n_in], written here; outputs: float64 [points, n_out], written by the workers
    progress: int64 [workers, >= 2], place of the point that a worker is at, and a count of what it has begun otherwise
    """

    def __init__(self, descriptor: int, workers: int, points: int, n_in: int, n_out: int) -> None:
        """descriptor: of the file that all processes map"""
        counts = (workers * APART, points * n_in, points * n_out)
        memory = mmap.mmap(descriptor, 8 * sum(counts))
        whole = np.frombuffer(memory, dtype=np.float64)
        ends = np.cumsum(counts)
        self.progress: I64 = whole[: ends[0]].view(np.int64).reshape(workers, APART)
        self.inputs: F64 = whole[ends[0] : ends[1]].reshape(points, n_in)
        self.outputs: F64 = whole[ends[1] :].reshape(points, n_out)


def board_file(workers: int, points: int, columns: int) -> BinaryIO:
    """An open file of the size of a board with that many columns on both sides together."""
    if hasattr(os, "memfd_create"):
        file = cast(BinaryIO, os.fdopen(os.memfd_create("neuroscale"), "r+b"))
    else:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - open as long as the workers
    file.truncate(8 * (workers * APART + points * columns))
    return file
