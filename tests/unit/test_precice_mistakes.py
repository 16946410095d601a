"""What `check` says about a preCICE case whose two files do not fit, mistake by mistake: the rest of the list."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple import assemble
from neuroscale_couple.config.load import load
from neuroscale_couple.errors import ConfigError, InputError
from neuroscale_couple.evaluation.check import check
from neuroscale_couple.transport.precice import _read_volumes
from tests.precice.coupling import Case, Setup
from tests.unit.test_precice_xml import change, fitted, interfaces, refused

ROOT = Path(__file__).parents[2]
STRAINS = ["Strain-XX", "Strain-YY", "Strain-XY"]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, Setup(scheme="serial-explicit"))


def without(case: Case, participant: str, line: str) -> None:
    """Remove a line of one participant."""
    head, start, rest = case.xml.read_text().partition(f'<participant name="{participant}">')
    body, end, tail = rest.partition("</participant>")
    assert line in body
    case.xml.write_text(head + start + body.replace(line, "", 1) + end + tail)


def test_data_that_is_not_declared(case: Case) -> None:
    case.replace('  <data:scalar name="Strain-XX" />\n', "")
    change(case, interfaces=interfaces(STRAINS, ["Stress"]))
    refused(
        case,
        "there is no data 'Strain-XX' (there is 'Strain-",
        'add to <precice-configuration>: <data:scalar name="Strain-XX" />',
    )


def test_macro_solver_that_is_no_participant(case: Case) -> None:
    case.replace('<participant name="Macro">', '<participant name="Plate">')
    refused(case, "mesh 'Macro-Mesh' comes from 'Macro', but there is no such participant")


@pytest.mark.parametrize(
    ("participant", "line", "said"),
    [
        ("Macro", '<write-data name="Strain-XX" mesh="Macro-Mesh" />', "participant 'Macro' has no <write-data> of"),
        ("Macro", '<read-data name="Stress-YY" mesh="Macro-Mesh" />', "participant 'Macro' has no <read-data> of"),
        ("NeuroScale", '<read-data name="Strain-XX" mesh="Macro-Mesh" />', "'NeuroScale' has no <read-data> of"),
        ("NeuroScale", '<write-data name="Stress-YY" mesh="Macro-Mesh" />', "'NeuroScale' has no <write-data> of"),
    ],
)
def test_participant_without_a_line(case: Case, participant: str, line: str, said: str) -> None:
    without(case, participant, line)
    assert len(refused(case, said, f"add to it: {line}").splitlines()) == 1


def test_another_xml(case: Case) -> None:
    case.xml.write_text("<html></html>")
    refused(case, "line 1: not a preCICE configuration: its first tag is <html>, expected <precice-configuration>")


def test_input_that_is_read_twice(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="serial-explicit", extra_read=("Elongation",)))
    rules = [{"name": "Elongation", "holds": ["strain.xx"]}]
    change(case, interfaces=interfaces(["Strain", "Elongation"], ["Stress"]), _data=rules)
    refused(case, "interfaces[0].read_data: strain.xx is read from two data fields; name one")


def test_nothing_that_is_written(case: Case) -> None:
    change(case, interfaces=interfaces(["Strain"], []))
    refused(case, "interfaces[0].write_data: nothing is written; name an output, e.g. {name: Stress}")


def test_no_interface(case: Case) -> None:
    change(case, interfaces=[])
    refused(case, "interfaces: none is named; name the macro mesh, what is read and what is written")


def test_factor_of_zero(case: Case) -> None:
    change(case, _data=[{"name": "Stress", "factor": 0.0}])
    refused(case, "'Stress-XX': its factor is 0")


def test_recording_is_for_other_transports(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="serial-explicit", ours={"record": "calls.npz"}))
    refused(case, "neuroscale.record: transport: precice does not record; use preCICE's own export, or embedded")


def test_volumes_are_looked_at_before_the_run(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="serial-explicit", ours={"precice": {"volumes": "volumes.npy"}}))
    wrong = [f.said for f in check(load(case.yaml), tmp_path / "runs") if f.what == "preCICE" and not f.good]
    assert f"neuroscale.precice.volumes: no file {tmp_path / 'volumes.npy'}" in wrong


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"no array", ConfigError, "neuroscale.precice.volumes: cannot read"),
        (np.zeros((6, 1)), InputError, r"has shape \(6, 1\), but there are 6 vertices"),
    ],
)
def test_volumes_that_cannot_be_used(tmp_path: Path, content: Any, error: type[Exception], said: str) -> None:
    path = tmp_path / "volumes.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(error, match=said):
        _read_volumes(path, np.arange(6), 6)


def test_precice_that_cannot_be_imported(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(case)
    monkeypatch.setitem(sys.modules, "precice", None)
    with pytest.raises(ConfigError, match=r"needs preCICE and its Python package, .*: install libprecice 3, then pip"):
        assemble.participate(case.yaml)


@pytest.mark.parametrize("page", ["README.md", "docs/precice.md"])
def test_files_of_the_pages_fit_the_coupling_that_they_speak_of(tmp_path: Path, page: str) -> None:
    """The first configuration with a participant that a page shows."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    shown = next(block for block in blocks if "participant_name" in block)
    case = Case(tmp_path, Setup(scheme="serial-explicit", extra_write=("Neuroscale-Source",)))
    case.yaml.write_text(shown.replace("../precice-config.xml", "precice-config.xml"))
    (found,) = fitted(case)
    assert [c.data for c in found.read] == STRAINS
