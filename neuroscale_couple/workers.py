"""Threads that work on different parts of a batch at the same time.

Operations on one part are too short to be split over threads inside torch (the barriers cost more than the work), so
each worker runs its parts with one torch thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import torch


class Workers:
    """As many threads as torch has; none where that is one."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._count = 1

    def run(self, work: Callable[[slice], None], parts: Sequence[slice]) -> None:
        """Call `work` on every part; the first exception is raised once all have ended."""
        if len(parts) < 2 or torch.get_num_threads() == 1:
            for part in parts:
                work(part)
            return
        pool = self._start(torch.get_num_threads())
        futures = [pool.submit(work, part) for part in parts]
        wait(futures)
        for future in futures:
            future.result()

    def _start(self, count: int) -> ThreadPoolExecutor:
        if self._pool is not None and self._count == count:
            return self._pool
        self.close()
        barrier = Barrier(count)

        def prepare() -> None:
            torch.set_num_threads(1)
            barrier.wait()

        self._pool, self._count = ThreadPoolExecutor(count), count
        for future in [self._pool.submit(prepare) for _ in range(count)]:
            future.result()
        torch.set_num_threads(count)  # the workers' own setting is kept per thread
        return self._pool

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
