"""A small coupled case: the preCICE configuration, our configuration, a scripted macro solver, and how to run them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import yaml

from neuroscale_couple import connect
from neuroscale_couple.transport.precice_ids import by_coordinates
from neuroscale_couple.values import Points
from tests.mpi.launch import environment, mpirun

PROGRAMS = Path(__file__).parent / "programs"
COMPONENTS = ("XX", "YY", "XY")
STRAINS = [f"Strain-{c}" for c in COMPONENTS]
STRESSES = [f"Stress-{c}" for c in COMPONENTS]
GRID = 8
HUNG = 999
AITKEN = "aitken"
IQN = "iqn"
MICROSTRUCTURE = {"kind": "fibres", "size": [0.3, 0.5], "seed": 1}


@dataclass
class Setup:
    """What a case is made of; the defaults are a parallel-implicit coupling of six points on one mesh."""

    scheme: str = "parallel-implicit"
    first: str = "Macro"
    acceleration: str = IQN
    windows: int = 3
    window_size: float = 0.1
    method: str = "fixed"
    max_iterations: int = 50
    limit: float = 1e-6
    steps: list[float] = field(default_factory=list)
    substeps: int = 1
    compliance: float = 2e-5
    load: tuple[float, float, float] = (0.02, -0.01, 0.015)
    meshes: dict[str, list[list[float]]] = field(
        default_factory=lambda: {"Macro-Mesh": [[x, y] for y in (0.0, 1.0) for x in (0.0, 0.5, 1.0)]}
    )
    extra_write: tuple[str, ...] = ()
    extra_read: tuple[str, ...] = ()
    read_data: list[str] = field(default_factory=lambda: ["Strain"])
    ours: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    write_data: list[dict[str, str]] = field(default_factory=lambda: [{"name": "Stress"}])


def xml(setup: Setup) -> str:
    """The preCICE configuration."""
    written = STRESSES + list(setup.extra_write)
    read = STRAINS + list(setup.extra_read)
    names = read + written
    second = "NeuroScale" if setup.first == "Macro" else "Macro"
    data = "".join(f'  <data:scalar name="{n}" />\n' for n in names)
    uses = "".join(f'    <use-data name="{n}" />\n' for n in names)
    meshes = "".join(f'  <mesh name="{m}" dimensions="2">\n{uses}  </mesh>\n' for m in setup.meshes)

    def lines(tag: str, fields: list[str]) -> str:
        return "".join(f'    <{tag} name="{n}" mesh="{m}" />\n' for m in setup.meshes for n in fields)

    provide = "".join(f'    <provide-mesh name="{m}" />\n' for m in setup.meshes)
    receive = "".join(f'    <receive-mesh name="{m}" from="Macro" api-access="true" />\n' for m in setup.meshes)
    size = f'value="{setup.window_size}"' if setup.method == "fixed" else 'value="-1" method="first-participant"'
    end = f'<max-time value="{setup.windows * setup.window_size}" />'
    if setup.method != "fixed":
        end = f'<max-time-windows value="{setup.windows}" />'
    return f"""<?xml version="1.0" encoding="UTF-8" ?>
<precice-configuration>
{data}{meshes}
  <participant name="Macro">
{provide}{lines("write-data", read)}{lines("read-data", written)}  </participant>
  <participant name="NeuroScale">
{receive}{lines("read-data", read)}{lines("write-data", written)}  </participant>
  <m2n:sockets acceptor="Macro" connector="NeuroScale" exchange-directory="." />
  <coupling-scheme:{setup.scheme}>
    <participants first="{setup.first}" second="{second}" />
    {end}
    <time-window-size {size} />
{_exchanges(setup, written)}{_implicit(setup)}  </coupling-scheme:{setup.scheme}>
</precice-configuration>
"""


def _exchanges(setup: Setup, written: list[str]) -> str:
    def line(name: str, mesh: str, source: str, target: str) -> str:
        return f'    <exchange data="{name}" mesh="{mesh}" from="{source}" to="{target}" />\n'

    there = "".join(line(n, m, "Macro", "NeuroScale") for m in setup.meshes for n in (*STRAINS, *setup.extra_read))
    return there + "".join(line(n, m, "NeuroScale", "Macro") for m in setup.meshes for n in written)


def _implicit(setup: Setup) -> str:
    if "explicit" in setup.scheme:
        return ""
    parallel = setup.scheme.startswith("parallel")
    accelerated = STRAINS + STRESSES if parallel and setup.acceleration == IQN else None
    if accelerated is None:
        accelerated = STRESSES if setup.first == "Macro" else STRAINS
    pairs = [(n, m) for m in setup.meshes for n in accelerated]
    measures = "".join(
        f'    <relative-convergence-measure limit="{setup.limit}" data="{n}" mesh="{m}" />\n'
        for m in setup.meshes
        for n in (STRAINS + STRESSES if parallel else STRESSES if setup.first == "Macro" else STRAINS)
    )
    data = "".join(f'      <data name="{n}" mesh="{m}" />\n' for n, m in pairs)
    kind, inner = {
        AITKEN: ("aitken", '      <initial-relaxation value="0.5" />\n'),
        IQN: (
            "IQN-ILS",
            '      <preconditioner type="residual-sum" />\n      <filter type="QR2" limit="1e-2" />\n'
            '      <initial-relaxation value="0.5" />\n      <max-used-iterations value="12" />\n'
            '      <time-windows-reused value="2" />\n',
        ),
        "": ("", ""),
    }[setup.acceleration]
    acceleration = f"    <acceleration:{kind}>\n{data}{inner}    </acceleration:{kind}>\n" if kind else ""
    return f'    <max-iterations value="{setup.max_iterations}" />\n{measures}{acceleration}'


def config(setup: Setup) -> dict[str, Any]:
    """Our configuration."""
    ours: dict[str, Any] = {
        "transport": "precice",
        "problem": {"name": "composite", "grid": GRID},
        "microstructure": MICROSTRUCTURE,
        "gate": {"audit": 0.0},
        "fine": {"tolerance": 1e-9},
        "learning": {"mode": "off"},
        "output": {"folder": "runs"},
    }
    for key, value in setup.ours.items():
        ours[key] = {**ours[key], **value} if isinstance(ours.get(key), dict) else value
    interfaces = [
        {"mesh_name": m, "read_data": [{"name": n} for n in setup.read_data], "write_data": setup.write_data}
        for m in setup.meshes
    ]
    return {
        "participant_name": "NeuroScale",
        "precice_config_file_path": "precice-config.xml",
        "interfaces": interfaces,
        "neuroscale": ours,
    }


@dataclass
class Ended:
    """Both programs have ended: exit status and output of each, and what the macro solver wrote down."""

    status: int
    output: str
    macro_status: int
    macro_output: str
    heard: dict[str, Any]
    calls: list[list[dict[str, Any]]]

    @property
    def good(self) -> Ended:
        """Fail, showing all output, unless both programs ended well."""
        assert (self.status, self.macro_status) == (0, 0), self.output[-3000:] + self.macro_output[-3000:]
        return self

    def failed(self, *said: str) -> None:
        """Fail, showing all output, unless ours ended by itself, non-zero, with these texts."""
        assert self.status not in (0, HUNG), f"status {self.status}\n{self.output[-3000:]}"
        for text in said:
            assert text in self.output, self.output[-3000:]


class Case:
    """A folder with all files of a coupled case."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.folder, self.setup = folder, setup
        self.xml = folder / "precice-config.xml"
        self.xml.write_text(xml(setup))
        self.yaml = folder / "neuroscale.yaml"
        self.yaml.write_text(yaml.safe_dump(config(setup), sort_keys=False))
        self.out = folder / "heard"

    def replace(self, old: str, new: str) -> None:
        """Change the preCICE configuration."""
        text = self.xml.read_text()
        assert old in text, old
        self.xml.write_text(text.replace(old, new))

    def run(self, ranks: int = 1, timeout: float = 90.0, command_line: bool = False, macro_ranks: int = 1) -> Ended:
        """Start the macro solver and our participant, and wait for both.

        macro_ranks: ranks of the macro solver, each with every so-manieth point of the meshes
        """
        shutil.rmtree(self.folder / "precice-run", ignore_errors=True)
        for path in self.folder.glob("heard-*.npz"):
            path.unlink()
        s = self.setup
        told = {
            "xml": str(self.xml), "meshes": s.meshes, "read": STRESSES + list(s.extra_write), "write": STRAINS,
            "steps": s.steps, "substeps": s.substeps, "load": s.load, "compliance": s.compliance,
            "out": str(self.out), "ids": s.extra_read, "ranks": macro_ranks,
        }  # fmt: skip
        (self.folder / "macro.json").write_text(json.dumps(told | s.told))
        macro = self._start([*launcher(macro_ranks), sys.executable, str(PROGRAMS / "macro.py"), "macro.json"], "macro")
        # the command line where it is asked for; else the same run without its report, which is faster
        program = ["-m", "neuroscale_couple.cli", "run"] if command_line else [str(PROGRAMS / "participant.py")]
        mine = self._start([*launcher(ranks), sys.executable, *program, str(self.yaml)], "neuroscale")
        status = _wait(mine, timeout)
        macro_status = _wait(macro, 20.0 if status == 0 else 3.0)
        heard = self._heard(macro_ranks)
        calls = [json.loads(path.read_text()) for path in sorted(self.folder.glob("calls-*.json"))]
        return Ended(status, self._output("neuroscale"), macro_status, self._output("macro"), heard, calls)

    def _heard(self, ranks: int) -> dict[str, Any]:
        """What the macro solver wrote down, in the order of the points whatever its ranks."""
        parts = [dict(np.load(path)) for path in sorted(self.folder.glob("heard-*.npz"))]
        if len(parts) < ranks:
            return {}
        together = dict(parts[0])
        for name in [name for name in together if "/" in name]:
            n = len(self.setup.meshes[name.partition("/")[0]])
            whole = np.empty((len(parts[0][name]), n, parts[0][name].shape[2]))
            for rank, part in enumerate(parts):
                whole[:, rank::ranks] = part[name]
            together[name] = whole
        return together

    def _start(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )

    def _output(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Exit status; a program that takes too long is ended and counts as HUNG."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return HUNG


def launcher(ranks: int) -> list[str]:
    """What starts our participant on several ranks; nothing for one."""
    return [] if ranks == 1 else [mpirun(), "-n", str(ranks)]


def embedded(case: Case, strain: Any, tangent: bool = False, ids: Any = None) -> Any:
    """Stress [n, 3] (or tangent [n, 3, 3]) that the embedded transport gives for strain [n, 3] of the same points.

    ids: of the points; None: by the coordinates of the meshes, one mesh after the other
    """
    ours = yaml.safe_load(case.yaml.read_text())
    ours["neuroscale"] |= {"transport": "embedded", "output": {"folder": str(case.folder / "embedded")}}
    path = case.folder / "embedded.yaml"
    path.write_text(yaml.safe_dump(ours))
    n = len(strain)
    if ids is None:
        numbers = [by_coordinates(np.array(points)) for points in case.setup.meshes.values()]
        ids = np.concatenate([own + sum(map(len, numbers[:k])) for k, own in enumerate(numbers)])
    # as many threads as the coupled programs have: round-off of other sums grows to 1e-4 in a small model's answers
    with (
        patch.dict(os.environ, OMP_NUM_THREADS=environment()["OMP_NUM_THREADS"]),
        connect(path, None, Points(np.asarray(ids)[:n], np.zeros((n, 2)), np.ones(n))) as closure,
    ):
        answer = closure.evaluate({"strain": strain}, 0.0, 1.0)
        closure.commit()
    return answer.tangent if tangent else answer["stress"]
