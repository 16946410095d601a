"""Starts the services that the tests of the client talk to, and ends them whatever happens."""

from __future__ import annotations

import atexit
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.mpi.launch import environment

PROGRAM = Path(__file__).parent / "programs" / "service.py"
_started: list[subprocess.Popen[str]] = []


def start_service(path: Path, character: str, ranks: int = 0, **more: Any) -> subprocess.Popen[str]:
    """Start `programs/service.py` and wait until its socket is there. more: variables of its environment"""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(path), character, str(ranks)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {name: str(value) for name, value in more.items()},
    )
    _started.append(process)
    end = time.monotonic() + 60
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"the service did not start:\n{process.communicate()[0]}")
        time.sleep(0.01)
    return process


@atexit.register
def _end_all() -> None:
    for process in _started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_end(process: subprocess.Popen[str], seconds: float = 20.0) -> tuple[int, str]:
    """Exit status and output of a service that ends by itself; one that does not fails the test."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the service did not end within {seconds:g} s:\n{process.communicate()[0]}") from None
    return process.returncode, output
