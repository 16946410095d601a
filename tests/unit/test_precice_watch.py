"""The watcher ends a process that waits too long or for nobody, and leaves every other one alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = f"""
import socket, sys, time
sys.path.insert(0, {str(ROOT)!r})
from neuroscale_couple.transport.precice_watch import Watch
watch = Watch()
"""
CONNECTED = """
server = socket.create_server(("127.0.0.1", 0))
mine = socket.create_connection(server.getsockname())
theirs, _ = server.accept()
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HEAD + body]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_wait_that_takes_too_long() -> None:
    done = run("watch.begin(1.0, 'window 3: waited for Macro')\ntime.sleep(50)")
    assert done.returncode != 0
    assert done.stderr == "neuroscale-couple: error: window 3: waited for Macro\n"


def test_waits_that_end_in_time() -> None:
    waits = "for _ in range(3):\n    watch.begin(1.0, 'late')\n    time.sleep(0.2)\n    watch.end()\n"
    done = run(waits + "time.sleep(2.5)\nwatch.stop()")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="the system does not tell about connections")
@pytest.mark.parametrize(("gone", "status"), [("'Macro has gone'", "ended"), ("''", "left alone")])
def test_other_side_that_closes_its_connection(gone: str, status: str) -> None:
    done = run(CONNECTED + f"watch.begin(50.0, 'late', {gone})\ntheirs.close()\ntime.sleep(7)\nwatch.stop()")
    said = "neuroscale-couple: error: Macro has gone\n"
    assert (done.returncode != 0, done.stderr) == ((True, said) if status == "ended" else (False, ""))


def test_connections_that_stay_open_disturb_nobody() -> None:
    done = run(CONNECTED + "watch.begin(50.0, 'late', 'gone')\ntime.sleep(6)\nwatch.end()\nwatch.stop()")
    assert (done.returncode, done.stderr) == (0, "")


def test_watcher_that_was_ended_is_not_missed() -> None:
    done = run("watch._process.kill()\nwatch._process.wait()\nwatch.begin(1.0, 'late')\nwatch.end()\nprint('goes on')")
    assert (done.returncode, done.stdout) == (0, "goes on\n")
