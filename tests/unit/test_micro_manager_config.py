"""Configurations of the Micro Manager, old and new, become ours; what is wrong in them is said by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from neuroscale_couple.config.load import load
from neuroscale_couple.config.micro_manager import SECTIONS, replaced
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.physics import make_problem
from tests.precice.two_scale import Case


def written(folder: Path, dialect: str, change: dict[str, Any] | None = None, **case: Any) -> Path:
    """A case with keys changed, named by dotted path; a value None takes the key away."""
    Case(folder, dialect=dialect, **case).write()
    path = folder / "micro-manager-config.json"
    raw = json.loads(path.read_text())
    for key, value in (change or {}).items():
        *sections, last = key.split(".")
        section = raw
        for name in sections:
            section = section[name]
        section[last] = value
        if value is None:
            del section[last]
    path.write_text(json.dumps(raw))
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_both_dialects_mean_the_same(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old = load(written(tmp_path / "old", "old", {"diagnostics.data_from_micro_sims": None})).config.model_dump()
    new = load(written(tmp_path / "new", "new")).config.model_dump()
    assert old["neuroscale"]["fine"]["micro"].pop("folder") == str(tmp_path / "old")
    new["neuroscale"]["fine"]["micro"].pop("folder")
    assert old == new


def test_a_bare_json_is_gated_with_a_tolerance_and_learns(tmp_path: Path) -> None:
    config = load(written(tmp_path, "new")).config
    section = config.neuroscale
    assert (section.transport, section.gate.open, section.gate.tolerance) == ("precice", True, 0.01)
    assert section.learning.mode == "online" and not section.output.checkpoint
    assert section.fine.micro.file == "micro" and section.fine.micro.output_every == 2
    assert section.precice.max_step == 0.25 and section.precice.unconverged == "continue"
    assert section.precice.ids == "vertices"
    assert config.participant_name == "Micro-Manager" and config.interfaces[0].mesh_name == "macro-mesh"


def test_the_precice_configuration_says_what_is_a_vector(tmp_path: Path) -> None:
    problem = make_problem(load(written(tmp_path, "new")).config.neuroscale.problem)
    assert problem.inputs.columns == ("concentration", "flux.x", "flux.y")
    assert problem.outputs.columns == ("k_00", "turned.x", "turned.y")


def test_diagnostics_are_further_outputs_for_export_alone(tmp_path: Path) -> None:
    config = load(written(tmp_path, "old")).config
    assert make_problem(config.neuroscale.problem).outputs.columns[-1] == "size"
    assert [rule.name for rule in config.neuroscale.precice.data if rule.exported] == ["size"]


@pytest.mark.parametrize(("scheme", "rollback"), [("serial-explicit", False), ("parallel-implicit", True)])
def test_states_are_saved_where_windows_can_repeat(tmp_path: Path, scheme: str, rollback: bool) -> None:
    section = load(written(tmp_path, "new", scheme=scheme)).config.neuroscale
    assert section.fine.micro.rollback is rollback
    assert section.gate.iterations == (10 if rollback else None)  # half of max-iterations


def test_old_string_booleans_are_read(tmp_path: Path) -> None:
    keep = {"simulation_params.interpolate_crash": "True"}
    assert load(written(tmp_path, "old", keep)).config.neuroscale.fine.on_failure == "keep"
    said = refused(written(tmp_path, "old", {"simulation_params.interpolate_crash": "yes"}))
    assert "'interpolate_crash': got 'yes', expected true or false" in said


@pytest.mark.parametrize(
    ("flags", "history"),
    [(["False"], True), (["true"], False), ([True, False], False), ("True", False), (False, True), ([], True)],
)
def test_answers_that_depend_on_inputs_alone_are_a_truth_value_too(tmp_path: Path, flags: Any, history: bool) -> None:
    change = {"micro_manager.micro_stateless_flags": flags}
    assert load(written(tmp_path, "new", change)).config.neuroscale.problem.history is history


def test_a_section_of_ours_goes_before_the_defaults(tmp_path: Path) -> None:
    own = {"gate": {"tolerance": 0.05}, "fine": {"micro": {"workers": 3}}}
    section = load(written(tmp_path, "new", own=own)).config.neuroscale
    assert (section.gate.tolerance, section.fine.micro.workers, section.fine.micro.file) == (0.05, 3, "micro")


def test_a_yaml_may_name_the_json(tmp_path: Path) -> None:
    written(tmp_path, "old")
    ours = tmp_path / "neuroscale.yaml"
    ours.write_text("neuroscale: {micro_manager: micro-manager-config.json, gate: {tolerance: 0.03}}\n")
    config = load(ours, {"gate.audit": 0.5}).config
    assert (config.neuroscale.gate.tolerance, config.neuroscale.gate.audit) == (0.03, 0.5)
    assert config.participant_name == "Micro-Manager"


def test_a_decomposition_becomes_access_regions(tmp_path: Path) -> None:
    change = {"simulation_params.decomposition": [2, 1]}
    regions = load(written(tmp_path, "old", change)).config.neuroscale.precice.regions
    assert regions == (((0.0, 0.5), (0.0, 1.0)), ((0.5, 1.0), (0.0, 1.0)))
    change["simulation_params.macro_domain_bounds"] = [0, 1]
    assert "expected 4 numbers for a decomposition in 2 directions" in refused(written(tmp_path, "old", change))


@pytest.mark.parametrize(
    ("dialect", "change", "said"),
    [
        ("old", {"simulation_params.micro_tt": 1}, "'simulation_params.micro_tt'; did you mean 'micro_dt'?"),
        ("old", {"micro_fil_name": "x"}, "unknown key 'micro_fil_name'; did you mean 'micro_file_name'?"),
        ("new", {"micro_manager.simulation_parms": {}}, "'simulation_parms'; did you mean 'simulation_params'"),
        ("new", {"participant": "x"}, "unknown key 'participant'; did you mean 'participant_name'?"),
        ("old", {"diagnostics.micro_dt": 1}, "did you mean 'micro_dt' in simulation_params?"),
        ("old", {"micro_file_name": None}, "'micro_file_name' (or 'micro_manager.micro_file_names') is missing"),
        ("old", {"coupling_params.config_file_name": None}, "coupling_params.precice_config_file_name') is missing"),
        ("old", {"coupling_params.macro_mesh_name": None}, "coupling_params.macro_mesh_name') is missing"),
        ("old", {"coupling_params.read_data_names": {"flux": "tensor"}}, "got 'tensor', expected 'scalar' or 'vector'"),
        ("old", {"coupling_params.read_data_names": {"flux": "scalar"}}, "'flux' is a scalar here, but vector in"),
        ("old", {"coupling_params.read_data_names": 3}, "'read_data': got 3, expected a list of names"),
        ("old", {"coupling_params": 3}, "'coupling_params': got 3, expected a section of keys and values"),
        ("old", {"simulation_params.micro_dt": "0.1"}, "'micro_dt': got '0.1', expected a positive number"),
        ("old", {"simulation_params.model_adaptivity": True}, "say which model is the trusted one"),
        ("old", {"coupling_params.config_file_name": "gone.xml"}, "gone.xml: No such file or directory"),
        ("old", {"neuroscale": {"fine": {"micro": {"worker": 2}}}}, "did you mean 'neuroscale.fine.micro.workers'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_name(tmp_path: Path, dialect: str, change: dict[str, Any], said: str) -> None:
    assert said in refused(written(tmp_path, dialect, change))


def test_a_flag_that_is_no_truth_value_is_said(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "new", {"micro_manager.micro_stateless_flags": [1]}))
    assert "'micro_stateless_flags': got 1, expected true or false" in said


THEIRS = {
    "adaptivity_settings": (
        "type data similarity_measure history_param coarsening_constant refining_constant every_implicit_iteration "
        "adaptivity_every_n_time_windows lazy_initialization mappings output_type output_n"
    ),
    "load_balancing_settings": "every_n_time_windows type threshold partitioning balance_inactive_sims",
    "model_switching_settings": "switching_function",
    "interpolate_crash_params": "interp_id threshold",
    "snapshot_params": "output_file_name post_processing_file_name initialize_once",
    "tasking": "backend num_workers is_slurm mpi_impl hostfile",
}
"""Keys of 0.12 in sections that the reader does not look into; it knows the others by name itself."""


def test_the_page_says_of_every_key_of_theirs_what_it_is_here() -> None:
    page = (Path(__file__).parents[2] / "docs" / "micro_manager.md").read_text()
    rows = page.partition("## Each key of theirs")[2].partition("\n\n")[0].splitlines()
    named: dict[str, set[str]] = {"": set()}
    for code in re.findall(r"`([^`]*)`", "".join(row.split(" | ")[0] for row in rows if row.startswith("|"))):
        section, _, keys = code.replace("}", "").rpartition(".{") if "{" in code else code.rpartition(".")
        named.setdefault(section.rpartition(".")[2], set()).update(re.split(r"[, ]+|\[0\]", keys))
    everywhere = set(named).union(*named.values())
    known = {key for keys in SECTIONS.values() for key in keys} - {"neuroscale", "micro_manager", "diagnostics"}
    assert not known - everywhere - {"interfaces", "coupling_params", "simulation_params"}
    for section, keys in THEIRS.items():
        assert not set(keys.split()) - named.get(section, set()), section


def test_broken_json_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "micro-manager-config.json"
    path.write_text('{\n  "micro_file_name": micro\n}')
    assert "not valid JSON in line 2, column 22" in refused(path)


def test_what_is_there_by_other_means_is_told(tmp_path: Path) -> None:
    change = {"simulation_params.adaptivity": "True", "diagnostics.output_micro_sim_solve_time": "True"}
    told = list(replaced(written(tmp_path, "old", change)))
    assert [line.partition(":")[0] for line in told] == ["adaptivity", "output_micro_sim_solve_time"]
    assert not list(replaced(written(tmp_path, "old")))
