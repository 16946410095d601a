"""Worker processes that hold a user's micro simulations: started, given jobs, watched, and started anew."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

from neuroscale_couple.errors import ConfigError, FineSolverError
from neuroscale_couple.fine.board import Board, board_file
from neuroscale_couple.fine.jobs import Done, Facts, Lost, Spec, Task, packed_task, unpacked_done
from neuroscale_couple.fine.seats import own_core, seats

LAUNCHER = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_LOCAL", "HYDI_", "HYDRA_")
"""Variables of an MPI launcher: a micro simulation that starts MPI must not take itself for one of our ranks."""
PROGRAM = "from neuroscale_couple.fine.micro_worker import main; main({}, {}, {}, {}, {})"
START = 300.0
"""Seconds that a worker gets to import the user's module."""


class Process:
    """One worker process."""

    def __init__(self, spec: Spec, memory: int, number: int, seats: Sequence[int]) -> None:
        """memory: file descriptor of the board; number: of this worker among all; seats: of all (`fine.seats`)"""
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), memory)
        command = [sys.executable, "-c", PROGRAM.format(*fds, number, len(seats), seats[number])]
        self._process = subprocess.Popen(command, pass_fds=fds, env=environment(), stdin=subprocess.DEVNULL)
        theirs.close()
        self.link = Connection(ours.detach())
        self.link.send(spec)

    def facts(self) -> Facts:
        """What the worker found in the user's module. Raises: ConfigError if it cannot be used."""
        try:
            found = self.link.recv() if self.link.poll(START) else f"its import takes longer than {START:g} s"
        except (EOFError, OSError):
            found = f"the process that imports it has ended: {self.ending()}"
        if isinstance(found, Facts):
            return found
        self.kill()
        raise ConfigError(f"the micro simulation cannot be loaded: {found}")

    def ending(self) -> str:
        """How the process has ended."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it has closed its connection"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def kill(self) -> None:
        """End the process now."""
        self.link.close()
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let the process end by itself, for a while."""
        self.link.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


class Pool:
    """Worker processes; a worker that hangs or crashes is started anew, without what it held."""

    def __init__(self, spec: Spec, workers: int, timeout: float) -> None:
        """timeout: longest time of one call of a micro simulation, s. Raises: ConfigError"""
        self.spec, self.timeout = spec, timeout
        self._memory = board_file(workers, spec.points, sum(spec.columns))
        self.board = Board(self._memory.fileno(), workers, spec.points, *spec.columns)
        self._seats, self._here = seats(workers), own_core()
        self._processes = [Process(spec, self._memory.fileno(), number, self._seats) for number in range(workers)]
        try:
            for process in self._processes:
                self.facts = process.facts()
        except BaseException:
            self.kill()
            raise

    def run(self, tasks: Mapping[int, Task]) -> dict[int, Done | Lost]:
        """Give each worker named its task and wait for all of them."""
        results: dict[int, Done | Lost] = {}
        waiting: dict[int, int] = {}
        links = select.poll()
        here = self._here()
        for worker in sorted(tasks, key=lambda worker: self._seats[worker] == here):  # who wakes here may take our turn
            task, process = tasks[worker], self._processes[worker]
            self.board.progress[worker, 0] = -1
            try:
                process.link.send_bytes(packed_task(task))
                waiting[process.link.fileno()] = worker
                links.register(process.link.fileno(), select.POLLIN)
            except OSError:
                results[worker] = self._lose(worker, f"its process has ended: {process.ending()}")
        seen = {worker: (self._progress(worker), time.monotonic()) for worker in waiting.values()}
        while waiting:
            for link, _ in links.poll(1e3 * min(1.0, self.timeout / 8)):
                links.unregister(link)
                worker = waiting.pop(link)
                results[worker] = self._received(worker)
            for link, worker in list(waiting.items()):
                if self._late(worker, seen):
                    links.unregister(link)
                    del waiting[link]
                    said = f"one call took longer than {self.timeout:g} s (fine.micro.timeout) and was ended"
                    results[worker] = self._lose(worker, said)
        return results

    def _progress(self, worker: int) -> tuple[int, int]:
        place, begun = self.board.progress[worker, :2].tolist()
        return place, begun

    def _late(self, worker: int, seen: dict[int, tuple[tuple[int, int], float]]) -> bool:
        progress, now = self._progress(worker), time.monotonic()
        if progress != seen[worker][0]:
            seen[worker] = progress, now
        return now - seen[worker][1] > self.timeout

    def _received(self, worker: int) -> Done | Lost:
        process = self._processes[worker]
        try:
            return unpacked_done(process.link.recv_bytes())
        except (EOFError, OSError):
            return self._lose(worker, f"its process has ended: {process.ending()}")

    def _lose(self, worker: int, said: str) -> Lost:
        """Start a worker anew. Raises: FineSolverError"""
        process = self._processes[worker]
        place = max(int(self.board.progress[worker, 0]), 0)
        process.kill()
        self._processes[worker] = Process(self.spec, self._memory.fileno(), worker, self._seats)
        try:
            self._processes[worker].facts()
        except ConfigError as error:
            raise FineSolverError(f"a worker of the micro simulations was lost ({said}) and {error}") from None
        return Lost(place, said)

    def close(self) -> None:
        """End all workers; idempotent."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.close()
        self._memory.close()

    def kill(self) -> None:
        """End all workers at once."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.kill()
        self._memory.close()


def environment() -> dict[str, str]:
    """Of a worker: no MPI launcher, and one thread unless the user says otherwise."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
    return {"OMP_NUM_THREADS": "1", **kept}
