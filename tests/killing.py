"""Ends a run with SIGKILL in its middle, as a machine that fails does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuroscale_couple.ledger import read_table


def killed_after(
    command: Sequence[str], ledger: Path, windows: int, env: Mapping[str, str], seconds: float = 90
) -> None:
    """Start a run and end all its processes with SIGKILL once that many windows are in the ledger."""
    process = subprocess.Popen(command, env=dict(env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if len(read_table(ledger).get("window", [])) >= windows:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in ranks or [process.pid]:  # of a launcher its ranks: it ends when they have gone
        os.kill(int(pid), signal.SIGKILL)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()
