"""Cases of OpenFOAM for tests: copied, made small, run with a time-out, all output shown on failure."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.mpi.launch import environment

ROOT = Path(__file__).parents[2]
ADAPTER, BUILD, CASES = ROOT / "adapters" / "openfoam", ROOT / "build" / "openfoam", ROOT / "cases"
CAVITY, HEAT = CASES / "05_openfoam_cavity_closure", CASES / "04_openfoam_two_scale_heat"
SERVICE = Path(sys.executable).parent / "neuroscale-couple"

sys.path.insert(0, str(ADAPTER))
from foam_case import internal_field, relative_l2, times  # noqa: E402, F401


@functools.cache
def plug_in() -> Path:
    """The plug-in, built with warnings as errors; its folder."""
    strict = f"-DNEUROSCALE_WERROR=ON -DNEUROSCALE_CLIENT_WERROR=ON -DPython_EXECUTABLE={sys.executable}"
    done = subprocess.run(
        [str(ADAPTER / "build"), str(BUILD)], env=surroundings() | {"NEUROSCALE_FOAM_OPTIONS": strict},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return BUILD


def surroundings(*folders: Path) -> dict[str, str]:
    """Environment of the solver. folders: where Python and the service look for modules"""
    mine = environment() | {"NEUROSCALE_COUPLE": str(SERVICE)}
    mine["LD_LIBRARY_PATH"] = os.pathsep.join([str(BUILD), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    mine["PYTHONPATH"] = os.pathsep.join(map(str, [*folders, ADAPTER, ROOT]))
    mine["PATH"] = os.pathsep.join([str(SERVICE.parent), os.environ["PATH"]])
    if "WM_PROJECT_DIR" not in mine and Path("/usr/share/openfoam/etc").is_dir():
        mine["WM_PROJECT_DIR"] = "/usr/share/openfoam"
    return mine


def mpirun() -> str:
    """The launcher of OpenFOAM's MPI: the system's, whatever a virtual environment brings."""
    return "/usr/bin/mpirun" if Path("/usr/bin/mpirun").exists() else str(shutil.which("mpirun"))


@dataclass
class Case:
    """A copy of a case that lies in a folder of the test."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)  # variables of the environment

    @classmethod
    def copy(cls, case: Path, folder: Path) -> Case:
        """A clean copy of a case of the repository, with its model where it has one beside it."""
        ignored = shutil.ignore_patterns("run", "reference", "runs", "log.*", "[1-9]*", "polyMesh", "processor*")
        copied = Path(shutil.copytree(case, folder / case.name, ignore=ignored))
        for text in re.findall(r"model: \.\./(\w+)/", (copied / "neuroscale.yaml").read_text()):
            if not (folder / text).exists():
                (folder / text).symlink_to(CASES / text)
        return cls(copied)

    def edit(self, file: str, *changes: tuple[str, str]) -> Case:
        """Replace what patterns match, each of which must be there."""
        path = self.folder / file
        text = path.read_text()
        for pattern, new in changes:
            text, found = re.subn(pattern, lambda _, new=new: new, text, flags=re.MULTILINE)
            assert found, f"{file}: nothing matches {pattern!r}"
        path.write_text(text)
        return self

    def run(self, *command: str, code: int = 0, seconds: float = 60.0) -> str:
        """Output of a program in the case's folder; whatever it started is ended with it."""
        process = self.start(*command)
        try:
            output = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{command} hung:\n{process.communicate()[0][-4000:]}") from None
        assert (process.returncode != 0) == (code != 0), f"{command}: {process.returncode}\n{output[-6000:]}"
        return output

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program in the case's folder."""
        plug_in()
        return subprocess.Popen(
            command, cwd=self.folder, env=surroundings(self.folder) | self.extra, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def solve(self, solver: str, ranks: int = 1, code: int = 0, seconds: float = 60.0) -> str:
        """Run the solver; on several ranks decompose before and reconstruct after."""
        if ranks == 1:
            return self.run(solver, code=code, seconds=seconds)
        self.run("decomposePar", "-force")
        output = self.run(mpirun(), "-n", str(ranks), solver, "-parallel", code=code, seconds=seconds)
        if code == 0:
            self.run("reconstructPar")
        return output

    def value(self, time: str, name: str) -> np.ndarray:
        """Cell values of a field."""
        return internal_field(self.folder / time / name)

    def services(self) -> list[int]:
        """Processes of this case's service that run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_service(pid)]

    def _is_service(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        return "serve" in words and any(str(self.folder) in word for word in words)

    def no_service_left(self, seconds: float = 15.0) -> None:
        """Fail if a service of this case still runs after a while."""
        end = time.monotonic() + seconds
        while self.services() and time.monotonic() < end:
            time.sleep(0.1)
        assert not self.services()


def wait_for(program: subprocess.Popen[str], text: str, seconds: float = 60.0) -> None:
    """Read what a started program says until a line has this text."""
    assert program.stdout is not None
    end, said = time.monotonic() + seconds, ""
    while text not in (line := program.stdout.readline()):
        said += line
        assert line and time.monotonic() < end, f"nothing said {text!r}:\n{said[-4000:]}"


def end(program: subprocess.Popen[str]) -> None:
    """End a started program with all that it started, if it still runs."""
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


def cavity(folder: Path, cells: int = 8, steps: int = 10) -> Case:
    """The cavity of case 05, small."""
    case = Case.copy(CAVITY, folder)
    case.edit("system/blockMeshDict", (r"^cells .*", f"cells {cells};"))
    case.edit(
        "system/controlDict",
        (r"^deltaT .*", f"deltaT {0.64 / cells};"),
        (r"^endTime .*", f"endTime {steps * 0.64 / cells};"),
        (r"^writeInterval .*", f"writeInterval {steps};"),
    )
    case.run("blockMesh")
    return case


def heat(folder: Path, along: int = 32, across: int = 24) -> Case:
    """The plate of case 04, with few cells."""
    case = Case.copy(HEAT, folder)
    case.edit("system/blockMeshDict", (r"^along .*", f"along {along};"), (r"^across .*", f"across {across};"))
    case.run("blockMesh")
    case.run("postProcess", "-func", "writeCellCentres", "-time", "0")
    case.run(sys.executable, "structure.py")
    return case
