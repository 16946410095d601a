"""A case of the Micro Manager as its users have them: preCICE configuration, JSON of either dialect, micro.py."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.killing import killed_together
from tests.mpi.launch import environment, mpirun

PROGRAMS = Path(__file__).parent / "programs"
READ = {"concentration": "scalar", "flux": "vector"}
WRITE = {"k_00": "scalar", "turned": "vector"}
HUNG = 999


@dataclass
class Case:
    """A case in a folder; `write` makes its files."""

    folder: Path
    scheme: str = "serial-explicit"
    dialect: str = "old"
    points: int = 6
    windows: int = 4
    window_size: float = 0.25
    micro_dt: float = 0.25
    feedback: float = 0.0
    spread: bool = True
    decomposition: tuple[int, int] = (1, 1)
    own: dict[str, Any] = field(default_factory=dict)
    done: int = 0
    """Windows that an earlier run has left behind."""

    def write(self, micro: str | None = None) -> Case:
        """Write all files. micro: text of micro.py instead of the one that writes down its calls"""
        (self.folder / "precice-config.xml").write_text(self.xml())
        text = (PROGRAMS / "micro.py").read_text() if micro is None else micro
        (self.folder / "micro.py").write_text(text)
        (self.folder / "micro-manager-config.json").write_text(json.dumps(getattr(self, self.dialect)(), indent=2))
        return self

    def old(self) -> dict[str, Any]:
        """The JSON up to 0.8."""
        return {
            "micro_file_name": "micro",
            "coupling_params": {
                "participant_name": "Micro-Manager",
                "config_file_name": "precice-config.xml",
                "macro_mesh_name": "macro-mesh",
                "read_data_names": READ,
                "write_data_names": WRITE,
            },
            "simulation_params": {
                "macro_domain_bounds": [0.0, 1.0, 0.0, 1.0], "micro_dt": self.micro_dt, "adaptivity": "False",
            },
            "diagnostics": {"data_from_micro_sims": {"size": "scalar"}, "micro_output_n": 2},
            "neuroscale": self.own,
        }  # fmt: skip

    def new(self) -> dict[str, Any]:
        """The JSON of 0.12."""
        return {
            "participant_name": "Micro-Manager",
            "precice_config_file_path": "precice-config.xml",
            "interfaces": [
                {
                    "mesh_name": "macro-mesh",
                    "read_data": [{"name": n} for n in READ],
                    "write_data": [{"name": n} for n in WRITE],
                }
            ],
            "micro_manager": {
                "micro_file_names": ["micro"],
                "simulation_params": {
                    "macro_domain_bounds": [0.0, 1.0, 0.0, 1.0], "micro_dt": self.micro_dt, "adaptivity": False,
                    "micro_output_n": 2, "decomposition": self.decomposition,
                },
            },
            "neuroscale": self.own,
        }  # fmt: skip

    def xml(self) -> str:
        """The preCICE configuration."""
        kinds = READ | WRITE | {"size": "scalar"}
        data = "".join(f'<data:{kind} name="{name}" />' for name, kind in kinds.items())
        uses = "".join(f'<use-data name="{name}" />' for name in kinds)

        def lines(tag: str, names: Any) -> str:
            return "".join(f'<{tag} name="{name}" mesh="macro-mesh" />' for name in names)

        def exchanges(names: Any, source: str, target: str) -> str:
            return "".join(f'<exchange data="{n}" mesh="macro-mesh" from="{source}" to="{target}" />' for n in names)

        converged = '<max-iterations value="20" /><relative-convergence-measure limit="1e-6" data="k_00" '
        implicit = converged + 'mesh="macro-mesh" />' if self.scheme.endswith("implicit") else ""
        return f"""<?xml version="1.0" encoding="UTF-8" ?>
<precice-configuration>
  <log><sink filter="%Severity% >= warning" /></log>
  {data}
  <mesh name="macro-mesh" dimensions="2">{uses}</mesh>
  <participant name="Macro">
    <provide-mesh name="macro-mesh" />
    {lines("write-data", READ)}{lines("read-data", WRITE)}
  </participant>
  <participant name="Micro-Manager">
    {'<export:vtu directory="exported" />' if self.dialect == "old" else ""}
    <receive-mesh name="macro-mesh" from="Macro" api-access="true" />
    {lines("read-data", READ)}{lines("write-data", [*WRITE, "size"])}
  </participant>
  <m2n:sockets acceptor="Macro" connector="Micro-Manager" />
  <coupling-scheme:{self.scheme}>
    <participants first="Macro" second="Micro-Manager" />
    <max-time-windows value="{self.windows - self.done}" /><time-window-size value="{self.window_size}" />
    {exchanges(READ, "Macro", "Micro-Manager")}{exchanges(WRITE, "Micro-Manager", "Macro")}{implicit}
  </coupling-scheme:{self.scheme}>
</precice-configuration>
"""

    def run(self, *options: str, timeout: float = 90.0, ranks: int = 1) -> Ended:
        """Start the macro solver and, on the command line, our participant; wait for both."""
        macro_command, command = self._commands(options, ranks)
        macro = self._start(macro_command, "macro")
        status = ended(self._start(command, "ours"), timeout)
        macro_status = ended(macro, 20.0 if status == 0 else 3.0)
        heard = dict(np.load(self.folder / "heard.npz")) if macro_status == 0 else {}
        said = (self.folder / "ours.log").read_text()
        return Ended(status, said, macro_status, (self.folder / "macro.log").read_text(), heard)

    def killed(self, *options: str, windows: int) -> None:
        """End both programs with SIGKILL once our ledger has that many windows."""
        lines = [shlex.join(command) for command in self._commands(options, pause=0.05)]  # not over before it is seen
        commands = [["sh", "-c", f"cd {shlex.quote(str(self.folder))} && exec {line}"] for line in lines]
        ledger = self.folder / "runs" / self.folder.name / ("fine_only" if "--fine-only" in options else "run")
        killed_together(commands, ledger / "ledger.csv", windows, self._environment())

    def _commands(self, options: Sequence[str], ranks: int = 1, pause: float = 0.0) -> tuple[list[str], list[str]]:
        """Macro solver and our participant, with what they read and without what an earlier run has left.

        pause: of the macro solver in each iteration, s
        """
        shutil.rmtree(self.folder / "precice-run", ignore_errors=True)
        for path in self.folder.glob("calls-*.txt"):
            path.unlink()
        x = np.linspace(0.0, 1.0, self.points)
        told = {
            "xml": "precice-config.xml", "points": np.stack([x, x * x], axis=1).tolist(), "out": "heard.npz",
            "spread": self.spread, "feedback": self.feedback, "start": self.done * self.window_size,
            "pause": pause,
        }  # fmt: skip
        (self.folder / "macro.json").write_text(json.dumps(told))
        program = [sys.executable, "-m", "neuroscale_couple.cli", "run", "micro-manager-config.json", *options]
        ours = [*([] if ranks == 1 else [mpirun(), "-n", str(ranks)]), *program]
        return [sys.executable, str(PROGRAMS / "two_scale.py"), "macro.json"], ours

    def calls(self, point: int) -> list[list[Any]]:
        """The calls that one micro simulation has had; none where it was never built."""
        path = self.folder / f"calls-{point}.txt"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def _start(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=self._environment(),
            )  # fmt: skip

    @staticmethod
    def _environment() -> dict[str, str]:
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        return environment() | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@dataclass
class Ended:
    """How a coupled run has ended."""

    status: int
    said: str
    macro_status: int
    macro_said: str
    heard: dict[str, Any]


def ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Exit status; a program that takes too long is ended and counts as HUNG."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return HUNG
