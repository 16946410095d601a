"""What `check` says about a preCICE case whose two files do not fit, mistake by mistake: the rest of the list."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neuroscale_couple import assemble
from neuroscale_couple.config.load import load
from neuroscale_couple.errors import ConfigError, InputError, NeuroscaleError
from neuroscale_couple.evaluation.check import check
from neuroscale_couple.evaluation.precice import adapter_schema
from neuroscale_couple.transport.precice import _read_volumes
from tests.precice.coupling import Case, Setup, xml
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


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"model": "gone.pt"}, "neuroscale.model: no file .*gone.pt; train it with"),
        ({"fine": {"solver": "no_such_package.of_ours:Solver"}}, "fine.solver: .*no_such_package"),
        ({"gate": {"stages": ["no_such_package.of_ours:Stage"]}}, "gate.stages.*no_such_package"),
    ],
)
def test_what_cannot_be_made_is_said_before_precice_is_asked_for(
    tmp_path: Path, ours: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "precice", None)  # a run that went on would say so
    case = Case(tmp_path, Setup(scheme="serial-explicit", ours=ours))
    with pytest.raises(NeuroscaleError, match=said):
        assemble.participate(case.yaml)


def newtons(case: Case, script: str = "from neuroscale_fenicsx import start\n") -> list[str]:
    """What `check` finds wrong with the macro script of a case and its preCICE configuration."""
    (case.folder / "macro.py").write_text(script)
    ours = yaml.safe_load(case.yaml.read_text())
    ours["neuroscale"]["macro"] = "macro.py"
    case.yaml.write_text(yaml.safe_dump(ours))
    found = check(load(case.yaml), case.folder / "runs")
    return [f.said for f in found if f.what in ("preCICE", "macro solver") and not f.good and "installed" not in f.said]


def test_check_knows_what_newtons_method_needs(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="parallel-implicit"))
    said = newtons(case)
    assert any("Newton's method is the iteration: write <coupling-scheme:serial-implicit>" in line for line in said)
    assert any("an acceleration would change what Newton's method asks; remove it" in line for line in said)
    assert newtons(case, "import precice\n") == [], "a macro solver of another kind may iterate as it likes"
    text = xml(Setup(scheme="serial-implicit", acceleration="")).replace(
        "<max-iterations", '<min-iterations value="2" /><max-iterations'
    )
    case.xml.write_text(text)
    assert newtons(case) == [
        "interfaces.write_data: Newton needs the whole tangent, d stress.xx / d strain.xx is not exchanged"
    ]


def test_macro_script_that_is_not_there(case: Case) -> None:
    newtons(case)
    (case.folder / "macro.py").unlink()
    wrong = [f.said for f in check(load(case.yaml), case.folder / "runs") if f.what == "macro solver" and not f.good]
    assert wrong == [f"no file {case.folder / 'macro.py'}; correct neuroscale.macro in {case.yaml}"]


@pytest.mark.parametrize("page", ["README.md", "docs/precice.md"])
def test_files_of_the_pages_fit_the_coupling_that_they_speak_of(tmp_path: Path, page: str) -> None:
    """The first configuration with a participant that a page shows."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    shown = next(block for block in blocks if "participant_name" in block)
    case = Case(tmp_path, Setup(scheme="serial-explicit", extra_write=("Neuroscale-Source",)))
    case.yaml.write_text(shown.replace("../precice-config.xml", "precice-config.xml"))
    (found,) = fitted(case)
    assert [c.data for c in found.read] == STRAINS


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return", "followed"),
        (
            "raise jsonschema.ValidationError('no such name', ['interfaces', 0, 'mesh_name'])",
            "differs from the convention at interfaces.0.mesh_name (no such name); taken all the same",
        ),
        (
            "raise jsonschema.ValidationError(sorted(top), [])",
            "differs from the convention at top of the file (['inter",
        ),
    ],
    ids=["followed", "a name", "the top"],
)
def test_adapter_schema_is_told_and_stops_nobody(case: Case, body: str, said: str, monkeypatch: Any) -> None:
    """Packages in place of precice-adapter-schema; ours alone is not shown to them."""
    (case.folder / "jsonschema.py").write_text(
        "class ValidationError(Exception):\n"
        "    def __init__(self, message, path):\n"
        "        self.message, self.absolute_path = message, path\n"
    )
    (case.folder / "preciceadapterschema.py").write_text(
        f"import jsonschema\ndef validate(top):\n    assert 'neuroscale' not in top\n    {body}\n"
    )
    for name in ("jsonschema", "preciceadapterschema"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(case.folder))
    found = next(f for f in check(load(case.yaml), case.folder / "runs") if f.what == "adapter schema")
    assert found.good and found.said.startswith(said)
    assert adapter_schema(case.folder / "micro-manager-config.json") is None
    for name in ("jsonschema", "preciceadapterschema"):
        sys.modules.pop(name, None)
