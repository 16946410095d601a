"""Two macro solvers, each with a mesh and a coupling scheme of its own: all points are those of one service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.mpi.launch import environment
from tests.precice.coupling import PROGRAMS, Case, Setup, embedded, xml
from tests.precice.test_coupling import close, evaluations

pytestmark = [pytest.mark.needs("precice"), pytest.mark.slow, pytest.mark.timeout(300)]
MESHES = {"Macro-Mesh": [[0.0, 0.0], [0.5, 0.0]], "Other-Mesh": [[1.0, 0.0], [1.0, 1.0], [1.5, 1.0]]}


def for_two(text: str) -> str:
    """A preCICE configuration in which `Macro` has both meshes, with the second one given to `Other`."""
    mine, others = ("\n".join(x for x in text.splitlines() if f'mesh="{m}"' not in x) for m in reversed(MESHES))
    others = others.replace('"Macro"', '"Other"')
    provide = '    <provide-mesh name="{}" />'.format

    def part(of: str, tag: str) -> str:
        found = re.search(rf"  <{tag}.*?</{tag.split()[0]}>\n", of, re.DOTALL)
        assert found is not None
        return found[0]

    first, second = part(mine, 'participant name="Macro"'), part(others, 'participant name="Other"')
    scheme = "coupling-scheme:parallel-explicit"
    joined = text.replace(part(text, 'participant name="Macro"'), "@participants@")
    joined = joined.replace(part(text, scheme), part(mine, scheme) + part(others, scheme))
    joined = joined.replace('name="Other-Mesh" from="Macro"', 'name="Other-Mesh" from="Other"')
    m2n = re.search(r"  <m2n.*\n", text)
    assert m2n is not None
    joined = joined.replace(m2n[0], m2n[0] + m2n[0].replace('"Macro"', '"Other"'))
    first, second = first.replace(provide("Other-Mesh") + "\n", ""), second.replace(provide("Macro-Mesh") + "\n", "")
    return joined.replace("@participants@", first + second)


def test_two_macro_solvers(tmp_path: Path) -> None:
    setup = Setup(scheme="parallel-explicit", meshes=MESHES)
    setup.told = {"meshes": {"Macro-Mesh": MESHES["Macro-Mesh"]}}
    case = Case(tmp_path, setup)
    case.xml.write_text(for_two(xml(setup)))
    told = {
        "xml": str(case.xml), "name": "Other", "meshes": {"Other-Mesh": MESHES["Other-Mesh"]}, "steps": [], "ids": [],
        "read": ["Stress-XX", "Stress-YY", "Stress-XY"], "write": ["Strain-XX", "Strain-YY", "Strain-XY"],
        "substeps": 1, "load": setup.load, "compliance": setup.compliance, "out": str(tmp_path / "other"), "ranks": 1,
    }  # fmt: skip
    (tmp_path / "other.json").write_text(json.dumps(told))
    other = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "macro.py"), "other.json"], cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        ended = case.run().good
        assert other.wait(30) == 0
    finally:
        other.kill()
        other.wait()
    assert [len(call["ids"]) for call in evaluations(ended)] == [5] * 3
    heard = ended.heard | dict(np.load(tmp_path / "other-0.npz"))
    sent = np.concatenate([heard[f"{mesh}/sent"][1] for mesh in MESHES])
    after = np.concatenate([heard[f"{mesh}/after"][2] for mesh in MESHES])
    close(after, embedded(case, sent))


def test_a_solver_that_nothing_joins_to_us_is_said(tmp_path: Path) -> None:
    setup = Setup(scheme="parallel-explicit", meshes=MESHES)
    case = Case(tmp_path, setup)
    text = for_two(xml(setup))
    case.xml.write_text(re.sub(r'  <m2n:sockets acceptor="Other".*\n', "", text))
    ended = case.run(command_line=True)
    ended.failed("nothing joins 'Other' and 'NeuroScale'", '<m2n:sockets acceptor="Other" connector="NeuroScale" />')
