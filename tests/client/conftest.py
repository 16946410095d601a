"""The programs of the client, built once into build/client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mpi.launch import environment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "client"


@dataclass(frozen=True)
class Programs:
    """Runs what csrc/client builds."""

    folder: Path

    def need(self, channel: str) -> None:
        """Skip the test where this channel could not be built."""
        if channel != "socket" and not (self.folder / f"libneuroscale_client_{channel}.so").exists():
            pytest.skip(f"needs channel {channel} of the client: its library was not found")

    def start(self, name: str, *arguments: object, **more: str) -> subprocess.Popen[str]:
        """Start a program. more: variables of its environment"""
        return subprocess.Popen(
            [str(self.folder / name), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment() | {"ASAN_OPTIONS": "allocator_may_return_null=1"} | more,
        )

    def run(self, name: str, *arguments: object, code: int = 0, **more: str) -> str:
        """Output of a program that must end with this status."""
        return finish(self.start(name, *arguments, **more), code)


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 60.0) -> str:
    """Output of a started program that must end with this status."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the program hung:\n{process.communicate()[0]}") from None
    assert process.returncode == code, f"status {process.returncode} instead of {code}:\n{output}"
    return output


def cmake() -> str:
    """The cmake of this environment, else the system's."""
    beside = Path(sys.executable).parent / "cmake"
    found = str(beside) if beside.exists() else shutil.which("cmake")
    assert found is not None, "cmake is needed to build the client"
    return found


@pytest.fixture(scope="session")
def programs() -> Programs:
    options = ["-DNEUROSCALE_CLIENT_TESTS=ON", "-DNEUROSCALE_CLIENT_WERROR=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (
        [cmake(), "-S", str(ROOT / "csrc" / "client"), "-B", str(FOLDER), *options],
        [cmake(), "--build", str(FOLDER), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return Programs(FOLDER)


@pytest.fixture
def drive(programs: Programs, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the driver in a character: drive(character, rank=0, ranks=1, timeout=20)."""

    def start(character: str, rank: int = 0, ranks: int = 1, timeout: float = 20.0) -> subprocess.Popen[str]:
        place = (tmp_path, "socket", tmp_path / "service", rank, ranks, timeout)
        return programs.start("client_driver", character, *place)

    return start
