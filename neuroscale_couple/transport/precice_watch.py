"""Ends a process that waits too long, or for a program that is gone, inside a call which keeps Python from running.

preCICE's `advance` is such a call: the binding holds the interpreter's lock, and a receive that is under way does
not always notice that the other program has died. A small process of its own watches: it is told when a wait begins
and ends; where one goes wrong it says so and ends the process that waits.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

POLL = 1.0
"""Seconds between two looks at the connections."""
PATIENCE = 3.0
"""Seconds that a connection must have been closed by the other side, so that preCICE's own message comes first."""
GRACE = 3.0
"""Seconds between asking the process to end and making it end."""
CLOSED_BY_PEER = "08"


class Watch:
    """Watches this process. Usable from one thread; `stop` when nothing is waited for any more."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)

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
        self._tell(json.dumps([seconds, late, gone]))

    def end(self) -> None:
        """The wait is over."""
        self._tell("null")

    def stop(self) -> None:
        """Stop watching; idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait(timeout=10)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError:  # somebody ended the watcher: the run goes on unwatched
            return


def watch(pid: int) -> None:
    """Read what begins and ends until the other side is gone."""
    buffer = b""
    wait: tuple[float, str, str] | None = None
    start = 0.0
    closed_since: float | None = None
    while True:
        ready, _, _ = select.select([0], [], [], None if wait is None else POLL)
        now = time.monotonic()
        if ready:
            received = os.read(0, 65536)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            if lines:
                wait, start, closed_since = json.loads(lines[-1]), now, None
            continue
        if wait is None:
            continue
        seconds, late, gone = wait
        closed_since = (closed_since or now) if gone and closed_by_peer(pid) else None
        if closed_since is not None and now - closed_since >= PATIENCE:
            return end(pid, gone)
        if now - start >= seconds:
            return end(pid, late)


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
    watch(int(sys.argv[1]))
