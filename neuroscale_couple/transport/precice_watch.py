"""Ends a process that waits too long, or for a program that is gone, inside a call which keeps Python from running.

preCICE's `advance` is such a call: no signal handler of Python runs meanwhile, and a receive that is under way does
not always notice that the other program has died. A small process of its own watches: it looks every second at the wait
that is under way; where one goes wrong it says so and ends the process that waits.
"""

import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

POLL = 1.0
"""Seconds between two looks at the wait and at the connections."""
PATIENCE = 3.0
"""Seconds that a connection must have been closed by the other side, so that preCICE's own message comes first."""
GRACE = 3.0
"""Seconds between asking the process to end and making it end."""
CLOSED_BY_PEER = "08"
PAGE = mmap.PAGESIZE
NUMBER = struct.Struct("=q")
"""Of the wait that is under way, at the start of the page; 0: there is none, or it is being written."""
SAID = struct.Struct("=ddii")
"""After the number: start (monotonic clock) and seconds of the wait, and bytes of each of the two texts that follow."""


class Watch:
    """Watches this process. Usable from one thread; `stop` when nothing is waited for any more.

    A wait is written into memory that the watcher looks at, which costs a few microseconds and wakes nobody.
    """

    def __init__(self) -> None:
        self._number = 0
        with _shared_file() as file:
            file.truncate(PAGE)
            self._page = mmap.mmap(file.fileno(), PAGE)
            command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(file.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, pass_fds=[file.fileno()]
            )

    @contextmanager
    def waiting(self, what: str, seconds: float, together: bool) -> Iterator[None]:
        """A wait for another program of the coupling.

        what: place, who waits, and for what; together: no program may leave meanwhile
        """
        late = f"{what} for {seconds:g} s (neuroscale.precice.timeout) and ends; look at the other program's output, "
        gone = f"{what}, but the other program has gone: its connection is closed; its output says why"
        self.begin(seconds, late + "or raise the time-out", gone if together else "")
        try:
            yield
        finally:
            self.end()

    def begin(self, seconds: float, late: str, gone: str = "") -> None:
        """A wait begins.

        late: the message if it takes longer than `seconds`; gone: the message if a connection of this process is
            closed by the other side meanwhile (seen on Linux alone); empty: connections may close
        """
        room = (PAGE - NUMBER.size - SAID.size) // 2
        texts = late.encode()[:room], gone.encode()[:room]
        self.end()
        SAID.pack_into(self._page, NUMBER.size, time.monotonic(), seconds, *map(len, texts))
        start = NUMBER.size + SAID.size
        self._page[start : start + sum(map(len, texts))] = b"".join(texts)
        self._number += 1
        NUMBER.pack_into(self._page, 0, self._number)

    def end(self) -> None:
        """The wait is over."""
        NUMBER.pack_into(self._page, 0, 0)

    def stop(self) -> None:
        """Stop watching; idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait(timeout=10)


def _shared_file() -> IO[bytes]:
    """In memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("neuroscale"), "r+b")
    return tempfile.TemporaryFile()


def watch(pid: int, page: mmap.mmap) -> None:
    """Look at the wait that is under way until the other side is gone."""
    closed_since: float | None = None
    before = 0
    while True:
        ready, _, _ = select.select([0], [], [], POLL)
        if ready and not os.read(0, 65536):
            return
        number, start, seconds, late, gone = looked_at(page)
        if number != before or not number:  # a wait that is new is written completely at the next look
            before, closed_since = number, None
            continue
        now = time.monotonic()
        closed_since = (closed_since or now) if gone and closed_by_peer(pid) else None
        if closed_since is not None and now - closed_since >= PATIENCE:
            return end(pid, gone)
        if now - start >= seconds:
            return end(pid, late)


def looked_at(page: mmap.mmap) -> tuple[int, float, float, str, str]:
    """Number, start and seconds of the wait that is under way, and its two texts; number 0: none."""
    (number,) = NUMBER.unpack_from(page)
    start, seconds, *lengths = SAID.unpack_from(page, NUMBER.size)
    first = NUMBER.size + SAID.size
    ends = first + lengths[0], first + sum(lengths)
    late, gone = page[first : ends[0]].decode(errors="replace"), page[ends[0] : ends[1]].decode(errors="replace")
    same = NUMBER.unpack_from(page)[0] == number
    return number if same else 0, start, seconds, late, gone


def closed_by_peer(pid: int) -> bool:
    """Whether the other side has closed a TCP connection of a process; False where the system does not tell."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        mine = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
        tables = [_read(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    except OSError:  # a descriptor that has just gone, or no /proc
        return False
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(row[3] == CLOSED_BY_PEER and row[9] in mine for row in rows)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def end(pid: int, said: str) -> None:
    """Say why, and end the process."""
    os.write(2, f"neuroscale-couple: error: {said}\n".encode())
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 0.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        time.sleep(wait)


if __name__ == "__main__":
    watch(int(sys.argv[1]), mmap.mmap(int(sys.argv[2]), PAGE))
