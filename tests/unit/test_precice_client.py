"""What the client's channel `precice` is told: where its columns lie in preCICE, whatever their order and units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuroscale_couple import errors
from neuroscale_couple.config.load import load
from neuroscale_couple.errors import ConfigError, InputError, NeuroscaleError
from neuroscale_couple.physics import make_problem
from neuroscale_couple.transport.frames import HEADER, Failure, Kind, Reader, Writer, put_fields
from neuroscale_couple.transport.precice_client import NOWHERE, Names, names_of
from neuroscale_couple.values import FieldSpec, Layout
from tests.client.test_precice_channel import write

INPUTS = Layout((FieldSpec("temperature", ("",), "K"), FieldSpec("gradient", ("y", "x"), "K/mm")))
OUTPUTS = Layout((FieldSpec("flux", ("y", "x"), "kW/m2"),))


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return write(tmp_path, "serial-implicit", 2)


def names(path: Path, outputs: Layout = OUTPUTS) -> Names:
    loaded = load(path, {})
    problem = make_problem(loaded.config.neuroscale.problem)
    return names_of(loaded.config, loaded.folder, (problem.inputs, problem.outputs), (INPUTS, outputs))


def change(case: Path, old: str, new: str) -> None:
    path = case.parent / "precice-config.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_columns_are_found_with_their_factors(case: Path) -> None:
    found = names(case)
    assert (found.participant, found.service, found.mesh, found.dimensions) == ("Solver", "NeuroScale", "Points", 2)
    assert (found.ids, found.implicit, found.free_window) == ("Point-Id", True, False)
    sent = {data: [(column, pytest.approx(factor)) for column, factor in columns] for data, columns in found.sent}
    assert sent == {"gradient": [(2, 1e3), (1, 1e3)], "temperature": [(0, 1.0)]}, "x, y in K/m from y, x in K/mm"
    assert found.got[0] == ("flux", 2)
    assert [(data, at, factor) for data, at, factor in found.outputs] == [
        (0, 1, pytest.approx(1e3)), (0, 0, pytest.approx(1e3))
    ], "y, x in kW/m2 from x, y in MW/m2"  # fmt: skip
    data = [name for name, _ in found.got]
    assert [data[number] for number, _, _ in found.tangent] == [
        f"tangent-{row}-{column}" for row in ("y", "x") for column in ("temperature", "y", "x")
    ]
    # d (kW/m2) / d K and d (kW/m2) / d (K/mm), of values in W/m2 per K and per K/m
    assert [factor for _, _, factor in found.tangent] == pytest.approx(2 * [1e-3, 1.0, 1.0])
    assert [data[number] for number, _, _ in found.diagnostics] == [
        "Neuroscale-Source", "Neuroscale-Error-Estimate", "Neuroscale-Model-Version"
    ]  # fmt: skip


def test_what_is_not_exchanged_is_said(case: Path) -> None:
    config = yaml.safe_load(case.read_text())
    config["interfaces"][0]["write_data"] = [{"name": "flux"}]
    case.write_text(yaml.safe_dump(config))
    found = names(case)
    assert found.tangent == [] and found.diagnostics == 3 * [NOWHERE]
    assert found.no_tangent.endswith("d flux.x / d gradient.x is not exchanged")


def test_a_window_that_the_solver_chooses(case: Path) -> None:
    change(case, "serial-implicit", "serial-explicit")
    change(case, '<time-window-size value="0.1" />', '<time-window-size value="-1" method="first-participant" />')
    assert (names(case).implicit, names(case).free_window) == (False, True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('first="Solver" second="NeuroScale"', 'first="NeuroScale" second="Solver"', "serial-explicit> for one eval"),
        ("serial-implicit", "parallel-implicit", "write <coupling-scheme:serial-implicit> "),
        ('<min-iterations value="2" />', "", "when the same data come twice"),
    ],
)
def test_a_scheme_that_answers_something_else_is_refused(case: Path, old: str, new: str, said: str) -> None:
    exchange = '<exchange data="Point-Id" mesh="Points" from="Solver" to="NeuroScale" />'
    change(case, exchange, exchange.replace(" />", ' initialize="true" />'))
    change(case, old, new)
    with pytest.raises(ConfigError, match=said):
        names(case)


def test_fields_that_are_none_of_the_problem(case: Path) -> None:
    with pytest.raises(InputError, match="the solver declares output 'stress'"):
        names(case, Layout((FieldSpec("stress", ("",), "Pa"),)))


def asked(case: Path, question: bytes) -> tuple[int, Kind, Any]:
    """What the command line answers: status, kind and text of the message."""
    command = [sys.executable, "-m", "neuroscale_couple.cli", "serve", str(case), "--precice-names"]
    done = subprocess.run(command, input=question, capture_output=True, timeout=100, check=False)
    _, _, kind, size, _ = HEADER.unpack(done.stdout[: HEADER.size])
    assert len(done.stdout) == HEADER.size + size, done.stdout
    return done.returncode, Kind(kind), Reader(done.stdout[HEADER.size :])


def test_the_command_answers_with_one_message(case: Path) -> None:
    to = Writer()
    put_fields(to, INPUTS)
    put_fields(to, OUTPUTS)
    status, kind, text = asked(case, to.bytes())
    assert (status, kind, text.text()) == (0, Kind.READY, "Solver")
    case.write_text(case.read_text().replace("mesh_name", "mesh_nmae"))
    for question, said in ((to.bytes(), "mesh_nmae"), (to.bytes()[:-3], "a message is truncated")):
        status, kind, text = asked(case, question)
        failure = Failure.parse(text)
        assert (status, kind, failure.fatal) == (1, Kind.ERROR, True)
        assert said in failure.message
        assert issubclass(getattr(errors, failure.kind), NeuroscaleError)
