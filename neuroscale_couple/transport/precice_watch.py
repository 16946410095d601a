"""Ends a process that waits too long inside a call which keeps Python from running, such as preCICE's `advance`.

A small process of its own watches: it is told when a wait begins and ends, and if one takes too long it says so
and ends the process that waits.
"""

import os
import select
import signal
import subprocess
import sys
import time

GRACE = 3.0
"""Seconds between asking the process to end and making it end."""


class Watch:
    """Watches this process. Usable from one thread; `stop` when nothing is waited for any more."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)

    def begin(self, seconds: float, said: str) -> None:
        """A wait begins; said: the message if it takes longer than `seconds`."""
        self._tell(f"{seconds!r} {said}")

    def end(self) -> None:
        """The wait is over."""
        self._tell("")

    def stop(self) -> None:
        """Stop watching; idempotent."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait(timeout=10)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.replace("\n", " ").encode() + b"\n")
        except OSError:  # somebody ended the watcher: the run goes on unwatched
            return


def _watch(pid: int) -> None:
    """Read what begins and ends until the other side is gone."""
    buffer, seconds, said = b"", None, ""
    deadline = 0.0
    while True:
        left = None if seconds is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([0], [], [], left)
        if not ready:
            _end(pid, said)
            return
        received = os.read(0, 65536)
        if not received:
            return
        *lines, buffer = (buffer + received).split(b"\n")
        if not lines:
            continue
        number, _, said = lines[-1].decode().partition(" ")
        seconds = float(number) if number else None
        deadline = time.monotonic() + (seconds or 0.0)


def _end(pid: int, said: str) -> None:
    os.write(2, f"neuroscale-couple: error: {said}\n".encode())
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 0.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        time.sleep(wait)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
