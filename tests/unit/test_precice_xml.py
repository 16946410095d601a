"""The preCICE configuration and ours, read together: what carries what, and what does not fit, with the line to add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from neuroscale_couple.config import precice_fields
from neuroscale_couple.config.load import load
from neuroscale_couple.config.precice_fields import find_interfaces, input_columns, output_columns
from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.evaluation.check import check
from neuroscale_couple.transport.precice_regions import check_regions, match, owned
from neuroscale_couple.values import FieldSpec, Layout
from tests.precice.coupling import Case, Setup

STRAIN = Layout((FieldSpec("strain", ("xx", "yy", "xy"), "1"),))
STRESS = Layout((FieldSpec("stress", ("xx", "yy", "xy"), "MPa"),))
GRADIENT = Layout((FieldSpec("gradient", ("x", "y"), "K/m"), FieldSpec("temperature", ("",), "K")))
PROVIDE = '<provide-mesh name="Macro-Mesh" />'
RECEIVE = '<receive-mesh name="Macro-Mesh" from="Macro" api-access="true" />'
EXCHANGE = '<exchange data="Strain-XX" mesh="Macro-Mesh" from="Macro" to="NeuroScale" />'
FLUX = Layout((FieldSpec("flux", ("x", "y"), "W/m2"),))


def fitted(case: Case, inputs: Layout = STRAIN, outputs: Layout = STRESS) -> list[precice_fields.Interface]:
    """The interfaces that are found. Raises: ConfigError"""
    loaded = load(case.yaml)
    return find_interfaces(loaded.config, loaded.folder, inputs, outputs)[1]


def carried(carriers: Any, columns: Any) -> dict[str, list[str]]:
    """Names of the columns by data field."""
    return {c.data: [columns[i].name for i in c.columns] for c in carriers}


def change(case: Case, **keys: Any) -> None:
    """Replace keys at the top of our configuration, or in `neuroscale.precice` (with a leading underscore)."""
    ours = yaml.safe_load(case.yaml.read_text())
    for key, value in keys.items():
        if key.startswith("_"):
            ours["neuroscale"].setdefault("precice", {})[key[1:]] = value
        else:
            ours[key] = value
    case.yaml.write_text(yaml.safe_dump(ours))


def interfaces(read: list[str], write: list[str], mesh: str = "Macro-Mesh") -> list[dict[str, Any]]:
    """The section `interfaces:` of one mesh."""
    return [{"mesh_name": mesh, "read_data": [{"name": n} for n in read], "write_data": [{"name": n} for n in write]}]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, Setup())


# -- what carries what ------------------------------------------------------------------------------------------


def test_tensor_is_put_together_by_name(case: Case) -> None:
    (found,) = fitted(case)
    assert carried(found.read, input_columns(STRAIN)) == {
        f"Strain-{c.upper()}": [f"strain.{c}"] for c in ("xx", "yy", "xy")
    }
    assert [c.factors for c in found.write] == [(1.0,)] * 3


@pytest.mark.parametrize("style", ["strain_{}", "Strain.{}", "STRAIN{}"])
def test_other_spellings_are_found(case: Case, style: str) -> None:
    for c in ("XX", "YY", "XY"):
        case.replace(f"Strain-{c}", style.format(c.lower()))
    (found,) = fitted(case)
    assert [c.data for c in found.read] == [style.format(c) for c in ("xx", "yy", "xy")]


def test_components_may_be_named_one_by_one(case: Case) -> None:
    case.replace("Stress-XY", "Stress-YX")
    change(
        case, interfaces=interfaces(["Strain-XY", "Strain-XX", "Strain-YY"], ["Stress-YY", "Stress-XX", "Stress-YX"])
    )
    (found,) = fitted(case)
    assert carried(found.read, input_columns(STRAIN))["Strain-XY"] == ["strain.xy"]
    assert carried(found.write, output_columns(STRAIN, STRESS))["Stress-YX"] == ["stress.xy"]


def test_components_of_a_tensor_that_is_not_symmetric_are_told_apart() -> None:
    velocity = Layout((FieldSpec("gradient", ("xx", "xy", "yx", "yy"), "1/s"),))
    columns = output_columns(STRAIN, velocity)
    assert columns[1].aliases == {"gradientxy"}
    assert columns[2].aliases == {"gradientyx"}


def test_names_of_the_users_own(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(extra_write=("cmat1", "cmat2")))
    case.replace('<data:scalar name="cmat1"', '<data:vector name="cmat1"')
    holds = ["tangent.xx.xx", "tangent.xx.yy"]
    change(case, interfaces=interfaces(["Strain"], ["Stress", "cmat1", "cmat2"]))
    change(case, _data=[{"name": "cmat1", "holds": holds, "unit": "Pa"}, {"name": "cmat2", "holds": ["tangent.xy.xy"]}])
    (found,) = fitted(case)
    written = carried(found.write, output_columns(STRAIN, STRESS))
    assert written["cmat1"] == holds
    assert written["cmat2"] == ["tangent.xy.xy"]
    assert next(c for c in found.write if c.data == "cmat1").factors == pytest.approx((1e-6, 1e-6))


def test_units_and_factors(case: Case) -> None:
    rules = [{"name": "Stress", "unit": "kPa"}, {"name": "Strain-XY", "factor": 2.0}, {"name": "Strain", "unit": "%"}]
    change(case, _data=rules)
    (found,) = fitted(case)
    assert {c.data: c.factors[0] for c in found.read} == pytest.approx(
        {"Strain-XX": 0.01, "Strain-YY": 0.01, "Strain-XY": 2}
    )
    assert [c.factors[0] for c in found.write] == pytest.approx([1e-3] * 3)


def test_tangent_by_letters_by_numbers_and_half_of_it(tmp_path: Path) -> None:
    half = ("Tangent-XXXX", "Tangent-XX-YY", "Tangent-13", "Tangent-22", "tangent_yy_xy", "Tangent-33")
    case = Case(tmp_path, Setup(extra_write=half))
    change(case, interfaces=interfaces(["Strain"], ["Stress", "Tangent"]))
    (found,) = fitted(case)
    assert [c.data for c in found.write[3:]] == list(half)
    columns = output_columns(STRAIN, STRESS)
    assert carried(found.write, columns)["Tangent-13"] == ["tangent.xx.xy"]
    assert columns[3].unit == "(MPa)/(1)"


def test_diagnostics(tmp_path: Path) -> None:
    names = ("Neuroscale-Source", "Neuroscale-Error-Estimate", "Neuroscale-Model-Version")
    case = Case(tmp_path, Setup(extra_write=names))
    change(case, interfaces=interfaces(["Strain"], ["Stress", *names]))
    (found,) = fitted(case)
    assert list(carried(found.write, output_columns(STRAIN, STRESS)).values())[3:] == [
        [n] for n in precice_fields.DIAGNOSTICS
    ]


def conduction(tmp_path: Path, dimensions: int = 2) -> Case:
    """A case with a vector and a scalar in, a vector out."""
    case = Case(tmp_path, Setup())
    names = {"Strain-XX": "Gradient", "Strain-YY": "Temperature", "Stress-XX": "Flux"}
    for old, new in names.items():
        case.replace(f'"{old}"', f'"{new}"')
    case.replace('data:scalar name="Gradient"', 'data:vector name="Gradient"')
    case.replace('data:scalar name="Flux"', 'data:vector name="Flux"')
    case.replace('dimensions="2"', f'dimensions="{dimensions}"')
    change(case, interfaces=interfaces(["Gradient", "Temperature"], ["Flux"]))
    return case


def test_vectors_and_scalars(tmp_path: Path) -> None:
    (found,) = fitted(conduction(tmp_path), GRADIENT, FLUX)
    assert carried(found.read, input_columns(GRADIENT)) == {
        "Gradient": ["gradient.x", "gradient.y"],
        "Temperature": ["temperature"],
    }
    assert [c.vector for c in found.read] == [True, False]


# -- what does not fit ------------------------------------------------------------------------------------------


def refused(case: Case, *said: str, inputs: Layout = STRAIN, outputs: Layout = STRESS) -> str:
    """The message, which must hold all of these texts."""
    with pytest.raises(ConfigError) as caught:
        fitted(case, inputs, outputs)
    for text in said:
        assert text in str(caught.value), str(caught.value)
    return str(caught.value)


def test_wrong_dimension(tmp_path: Path) -> None:
    refused(
        conduction(tmp_path, 3),
        "'Gradient' is a vector of 3 components on this mesh, but gradient has 2 (gradient.x, gradient.y)",
        '<data:scalar name="Gradient-X" />',
        inputs=GRADIENT,
        outputs=FLUX,
    )


def test_scalar_where_a_vector_is_needed(tmp_path: Path) -> None:
    case = conduction(tmp_path)
    case.replace('data:vector name="Flux"', 'data:scalar name="Flux"')
    refused(case, "'Flux' is a scalar", 'write <data:vector name="Flux" />', inputs=GRADIENT, outputs=FLUX)


def test_tensor_with_a_missing_component(case: Case) -> None:
    case.replace('"Strain-XY"', '"Something"')
    refused(
        case,
        "'Strain' has 3 components (xx, yy, xy), but there is no data for strain.xy",
        '<data:scalar name="Strain-XY" />',
    )


def test_tensor_named_in_part(case: Case) -> None:
    change(case, interfaces=interfaces(["Strain"], ["Stress-XX", "Stress-YY"]))
    refused(
        case, "interfaces[0].write_data: stress.xy [MPa] is not written, though the rest of it is", "{name: Stress-XY}"
    )
    change(case, interfaces=interfaces(["Strain-XX", "Strain-YY"], ["Stress"]))
    refused(case, "interfaces[0].read_data: strain.xy [1] is not read; add {name: Strain-XY}")


def test_field_that_we_do_not_know(case: Case) -> None:
    change(case, interfaces=interfaces(["Strian"], ["Stress"]))
    refused(case, "'Strian' is none of our fields; did you mean 'strain'?", "{name: Strian, holds: [strain.xx]}")


def test_wrong_rules(case: Case) -> None:
    change(case, _data=[{"name": "Strain", "unit": "MPa"}])
    refused(case, "'Strain-XX': the unit 'MPa' cannot be converted to '1'")
    change(case, _data=[{"name": "Strain-XX", "holds": ["strain.zz"]}, {"name": "Nobody"}])
    change(case, interfaces=interfaces(["Strain-XX", "Strain-YY", "Strain-XY"], ["Stress"]), _initial={"strain.z": 1.0})
    refused(
        case,
        "'Strain-XX' cannot hold 'strain.zz'; did you mean 'strain.",
        "'Nobody' is in no interface",
        "no input 'strain.z'",
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('mesh name="Macro-Mesh"', 'mesh name="Macro-Mash"', ["there is no mesh 'Macro-Mesh' (there is 'Macro-Mash'"]),
        ('<use-data name="Stress-YY" />', "", ["does not use data 'Stress-YY'", '<use-data name="Stress-YY" />']),
        (' api-access="true"', "", ["received without access for us", 'from="Macro" api-access="true" />']),
        ('<participant name="NeuroScale">', '<participant name="Micro">', [
            "there is no participant 'NeuroScale' (participants: Macro, Micro)",
            '<participant name="NeuroScale"><receive-mesh',
            '<read-data name="Strain-XX" mesh="Macro-Mesh" />',
        ]),
        (RECEIVE, "", ["does not receive mesh 'Macro-Mesh'"]),
        (RECEIVE, '<provide-mesh name="Macro-Mesh" />', [
            "provides mesh 'Macro-Mesh', but it works on the macro solver's mesh", "write instead: <receive-mesh",
        ]),
        (PROVIDE, "", ["'Macro' does not provide mesh", PROVIDE]),
        ('<m2n:sockets acceptor="Macro" connector="NeuroScale" exchange-directory="." />', "", [
            "nothing joins 'Macro' and 'NeuroScale'", '<m2n:sockets acceptor="Macro" connector="NeuroScale" />',
        ]),
        ("<m2n:sockets", "<m2n:mpi", ["joins programs of one mpirun", "<m2n:sockets"]),
        (EXCHANGE, "", ["does not exchange 'Strain-XX'", EXCHANGE]),
        (EXCHANGE,
         '<exchange data="Strain-XX" mesh="Macro-Mesh" from="NeuroScale" to="Macro" />', [
            "'Strain-XX' is exchanged in the wrong direction; write: <exchange",
        ]),
        ('data="Stress-XX" mesh="Macro-Mesh" from="NeuroScale" to="Macro" />',
         'data="Stress-XX" mesh="Macro-Mesh" from="NeuroScale" to="Macro" initialize="true" />', [
            "'NeuroScale' cannot give initial values of 'Stress-XX'",
        ]),
        ('second="NeuroScale"', 'second="Other"', ["no coupling scheme of 'Macro' and 'NeuroScale'"]),
        ('convergence-measure limit="1e-06" data="Strain', 'convergence-measure limit="1e-06" data="Stress', [
            "all convergence measures look at our data", '<relative-convergence-measure limit="1e-4" data="Strain-XX"',
        ]),
        ("<precice-configuration>", '<precice-configuration><solver-interface />', ["the form of preCICE 2"]),
        ("</precice-configuration>", "", ["not well-formed XML: no element found"]),
    ],
)  # fmt: skip
def test_line_to_add(case: Case, old: str, new: str, said: list[str]) -> None:
    case.replace(old, new)
    refused(case, *said, str(case.xml), ", line ")


def test_direction_of_our_own_data(case: Case) -> None:
    lines = case.xml.read_text().split('<participant name="NeuroScale">')
    lines[1] = lines[1].replace('<read-data name="Strain-XX"', '<write-data name="Strain-XX"')
    case.xml.write_text('<participant name="NeuroScale">'.join(lines))
    number = case.xml.read_text().split('<write-data name="Strain-XX"', 2)
    line = (number[0] + number[1]).count("\n") + 1
    refused(
        case,
        f"{case.xml}, line {line}: 'NeuroScale' has <write-data> of 'Strain-XX', the wrong direction",
        "write: <read-data",
    )


def test_all_mistakes_are_said_at_once(case: Case) -> None:
    case.replace(' api-access="true"', "")
    case.replace('<use-data name="Strain-XX" />', "")
    assert len(refused(case, "api-access", "does not use data").splitlines()) == 2


def test_file_that_is_not_there(case: Case) -> None:
    case.xml.unlink()
    refused(case, "precice_config_file_path: cannot read", "the path is relative to our file")
    change(case, precice_config_file_path=None)
    refused(case, "precice_config_file_path is missing")


def test_window_that_is_ours_to_choose(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(scheme="serial-explicit", first="NeuroScale", method="first-participant"))
    refused(case, "neuroscale.precice.window_size is missing", "first-participant")
    change(case, _window_size=0.1)
    assert fitted(case)


def test_field_of_ids_is_no_input(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(extra_read=("Point-Id",), scheme="serial-explicit"))
    change(case, interfaces=interfaces(["Strain", "Point-Id"], ["Stress"]), _ids="Point-Id")
    (found,) = fitted(case)
    assert found.ids == "Point-Id"
    assert len(found.read) == 3
    case.replace('<read-data name="Point-Id" mesh="Macro-Mesh" />', "")
    refused(case, 'add to it: <read-data name="Point-Id" mesh="Macro-Mesh" />')


def test_field_of_ids_that_does_not_fit(tmp_path: Path) -> None:
    case = Case(tmp_path, Setup(extra_read=("Point-Id",)))
    change(case, _ids="Point-Id")
    refused(
        case,
        "interfaces[0].read_data: neuroscale.precice.ids names 'Point-Id', which is not read over mesh 'Macro-Mesh'; "
        "add {name: Point-Id}, or write ids: coordinates | vertices",
    )
    change(case, interfaces=interfaces(["Strain", "Point-Id"], ["Stress"]))
    refused(case, "'Point-Id' holds the ids of the points (neuroscale.precice.ids) and comes too late; write its")
    sent = '<exchange data="Point-Id" mesh="Macro-Mesh" from="Macro" to="NeuroScale" />'
    case.replace(sent, sent.replace(" />", ' initialize="true" />'))
    assert fitted(case)
    case.replace('data:scalar name="Point-Id"', 'data:vector name="Point-Id"')
    refused(case, "'Point-Id' holds the ids and must be a scalar", '<data:scalar name="Point-Id" />')


def test_limits_are_read(case: Case) -> None:
    file = PreciceXml(case.xml)
    assert file.max_iterations("NeuroScale", "Macro") == 50
    assert file.max_iterations("NeuroScale", "Nobody") is None
    assert file.peers("NeuroScale", ["Macro-Mesh"]) == {"Macro-Mesh": "Macro"}


def test_check_tells_the_whole(case: Case) -> None:
    found = {f.what: f for f in check(load(case.yaml), case.folder / "runs")}
    assert "Macro-Mesh: reads Strain-XX (strain.xx)" in found["preCICE"].said or not found["preCICE"].good
    case.replace(' api-access="true"', "")
    wrong = [f.said for f in check(load(case.yaml), case.folder / "runs") if f.what == "preCICE" and not f.good]
    assert any("api-access" in said for said in wrong)


# -- regions ----------------------------------------------------------------------------------------------------

POINTS = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.5, 0.0]])


def test_point_belongs_to_the_lowest_region() -> None:
    part = owned([[(0.0, 0.5), (0.0, 1.0)]], None, "M", POINTS[[0, 1, 3]])
    assert (part.rows.tolist(), part.places.tolist(), len(part.whole)) == ([0, 1, 2], [0, 1, 2], 3)


def test_points_outside_every_region_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 of 4 points lie outside every access region, the first at \(1, 0\)"):
        owned([[(0.0, 0.5), (0.0, 1.0)]], None, "M", POINTS)


def test_mesh_without_vertices_is_refused() -> None:
    with pytest.raises(ConfigError, match="mesh 'M' has no vertices"):
        owned([], None, "M", np.zeros((0, 2)))


def test_equal_coordinates_are_told_apart_by_their_order() -> None:
    assert match(POINTS, POINTS[[1, 2, 3]]).tolist() == [1, 2, 3]
    assert match(POINTS, POINTS[[3]]).tolist() == [1]


@pytest.mark.parametrize(
    ("regions", "ranks", "said"),
    [
        ([], 2, r"got 0 access regions for 2 rank\(s\); give one each, e.g. - \[\[0, 1\], \[0, 1\]\]"),
        ([[(0, 1)]], 1, "got 1 ranges, but mesh 'M' has 2 dimensions"),
        ([[(0, 1), (1, 0)]], 1, "expected the lower end first"),
    ],
)
def test_wrong_regions(regions: Any, ranks: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_regions(regions, ranks, 2, "M")
