"""Ends a run with SIGKILL in its middle, as a machine that fails does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroscale_couple.ledger import read_table


def killed_after(
    command: Sequence[str], ledger: Path, windows: int, env: Mapping[str, str], seconds: float = 90
) -> None:
    """Start a run and end all its processes with SIGKILL once that many windows are in the ledger."""
    killed_together([command], ledger, windows, env, seconds)


def killed_together(
    commands: Sequence[Sequence[str]], ledger: Path, windows: int, env: Mapping[str, str], seconds: float = 90
) -> None:
    """Start the programs of a coupled run and end them all at once, see `killed_after`."""
    streams: dict[str, Any] = {"env": dict(env), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, **streams) for command in commands]
    end = time.monotonic() + seconds
    while not any(process.poll() is not None for process in running) and time.monotonic() < end:
        if len(read_table(ledger).get("window", [])) >= windows:
            break
        time.sleep(0.01)
    assert all(process.poll() is None for process in running), "the run ended before it could be killed"
    for process in running:
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # of a launcher its ranks: it ends when they have gone
        for pid in ranks if launches(process) else [process.pid]:
            os.kill(int(pid), signal.SIGKILL)
    try:
        for process in running:
            process.wait(20)
    finally:
        for process in running:
            process.kill()
            process.wait()


def launches(process: subprocess.Popen[bytes]) -> bool:
    """Whether this is the launcher of an MPI job."""
    return Path(str(process.args[0])).name.startswith("mpi")  # type: ignore[index]
