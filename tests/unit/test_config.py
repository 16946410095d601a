"""Reading the configuration: every mistake is one plain sentence that names file, key, value and what is expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neuroscale_couple.config.load import Loaded, digest, dump, load, parse_value
from neuroscale_couple.errors import ConfigError

GOOD = "neuroscale: {problem: {name: composite}}"


def read(folder: Path, text: str, **overrides: object) -> Loaded:
    folder.mkdir(exist_ok=True)
    path = folder / "neuroscale.yaml"
    path.write_text(text)
    return load(path, overrides)


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    path = str(folder / "neuroscale.yaml")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def inside(section: str) -> str:
    return f"neuroscale: {{problem: {{name: composite}}, {section}}}"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            "gate: {tolernce: 0.1}",
            "unknown key 'neuroscale.gate.tolernce'; did you mean 'neuroscale.gate.tolerance'?",
        ),
        ("gat: {}", "unknown key 'neuroscale.gat'; did you mean 'neuroscale.gate'?"),
        (
            "confidence: 0.9",
            "unknown key 'neuroscale.confidence'; did you mean 'neuroscale.gate.confidence'?",
        ),
        ("gate: {zzz: 1}", "unknown key 'neuroscale.gate.zzz'; "),
        (
            "correction: {conserve: [{ouput: stress.xx}]}",
            "unknown key 'neuroscale.correction.conserve[0].ouput'; "
            "did you mean 'neuroscale.correction.conserve[0].output'?",
        ),
        ("gate: {tolerance: -1}", "'neuroscale.gate.tolerance': got -1, expected more than 0.0"),
        ("gate: {tolerance: small}", "'neuroscale.gate.tolerance': got 'small', expected a number"),
        ("gate: {tolerance: .inf}", "'neuroscale.gate.tolerance': got inf, expected a finite number"),
        (
            "training: {load_range: {strain.xx: [0, .inf]}}",
            "'neuroscale.training.load_range.strain.xx[1]': got inf, expected a finite number",
        ),
        (
            "learning: {mode: online, hold_out: 0}",
            "'neuroscale.learning.hold_out': got 0, expected more than 0 and less than 1 with learning.mode: online",
        ),
        ("training: {hold_out: 1}", "'neuroscale.training.hold_out': got 1, expected less than 1.0"),
        ("gate: {confidence: 1.0}", "'neuroscale.gate.confidence': got 1.0, expected less than 1.0"),
        ("gate: {audit: 1.5}", "'neuroscale.gate.audit': got 1.5, expected at most 1.0"),
        ("gate: {open: maybe}", "'neuroscale.gate.open': got 'maybe', expected true or false"),
        ("gate: {stages: 3}", "'neuroscale.gate.stages': got 3, expected a list"),
        ("gate: 3", "'neuroscale.gate': got 3, expected a section of keys and values"),
        ("fine: {max_cg: 1.5}", "'neuroscale.fine.max_cg': got 1.5, expected a whole number"),
        ("fine: {max_cg: 0}", "'neuroscale.fine.max_cg': got 0, expected at least 1"),
        ("macro: [a]", "'neuroscale.macro': got ['a'], expected a text"),
        (
            "microstructure: {kind: fibers}",
            "'neuroscale.microstructure.kind': got 'fibers', expected one of 'fibres', 'blobs', 'voronoi' or 'image'",
        ),
        (
            "microstructure: {size: [0.1]}",
            "'neuroscale.microstructure.size': got [0.1], expected 2 values",
        ),
        (
            "microstructure: {size: [1, 2, 3]}",
            "'neuroscale.microstructure.size': got [1, 2, 3], expected 2 values",
        ),
        (
            "microstructure: {size: [0.3, 0.1]}",
            "'neuroscale.microstructure.size': got [0.3, 0.1], expected the lower end first",
        ),
        (
            "microstructure: {kind: image}",
            "the key 'neuroscale.microstructure.path' is missing; kind 'image' needs a PNG or .npy file",
        ),
        (
            "training: {load_range: {strain.xx: [1, 1]}}",
            "'neuroscale.training.load_range.strain.xx': got [1, 1], expected the lower end first",
        ),
    ],
)
def test_mistake_is_one_sentence(tmp_path: Path, section: str, said: str) -> None:
    found = mistakes(tmp_path, inside(section))
    assert len(found) == 1
    assert found[0].startswith(said)


def test_unknown_key_without_a_near_one_lists_what_is_known(tmp_path: Path) -> None:
    (said,) = mistakes(tmp_path, inside("gate: {zzz: 1}"))
    assert "keys known here: open, tolerance, confidence, audit" in said


def test_key_of_several_sections_names_them_all(tmp_path: Path) -> None:
    (said,) = mistakes(tmp_path, inside("tolerance: 0.1"))
    assert "did you mean 'neuroscale.gate.tolerance' or 'neuroscale.fine.tolerance'?" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected keys and values, got nothing; the file must have a section 'neuroscale:'"),
        ("[1, 2]", "expected keys and values, got a list; the file must have a section 'neuroscale:'"),
        ("neurosale: {}", "the section 'neuroscale:' is missing; did you mean it by 'neurosale'?"),
        ("a: 1", "the section 'neuroscale:' is missing; it holds the problem, the gate and the rest"),
        ("neuroscale: {}", "the key 'neuroscale.problem' is missing; it is: the micro problem at"),
        ("neuroscale: {problem: {}}", "the key 'neuroscale.problem.name' is missing; it is: conduction | composite"),
        (GOOD + "\nneuroscale: 2", "not valid YAML in line 2, column 1: key 'neuroscale' comes twice"),
        ("1: 2", "not valid YAML in line 1, column 1: key 1 is not a text"),
        ("neuroscale: {problem: {name: composite}", "not valid YAML in line 1,"),
        (
            f"interfaces: [{{mesh_nam: a}}]\n{GOOD}",
            "unknown key 'interfaces[0].mesh_nam'; did you mean 'interfaces[0].mesh",
        ),
    ],
)
def test_wrong_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    found = mistakes(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(said)


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, inside("gate: {tolerance: -1, audit: 2}, fine: {max_cg: 0}"))) == 3


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "nowhere.yaml")


def test_binary_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "neuroscale.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a UTF-8 text"):
        load(tmp_path / "neuroscale.yaml")


def test_off_and_exponents_are_read_as_meant(tmp_path: Path) -> None:
    """YAML 1.1 would read `off` as false and `1e-6` as a text."""
    text = "neuroscale: {problem: {name: composite, own: 1e-6}, learning: {mode: off}, gate: {open: false}}"
    config = read(tmp_path, text).config.neuroscale
    assert config.learning.mode == "off"
    assert config.gate.open is False
    assert (config.problem.model_extra or {})["own"] == 1e-6


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    loaded = read(tmp_path / "my_case", inside("model: a/model.pt, macro: macro.py"))
    assert loaded.model == (tmp_path / "my_case/a/model.pt").resolve()
    assert loaded.macro == (tmp_path / "my_case/macro.py").resolve()
    assert loaded.case == "my_case"
    assert read(tmp_path / "my_case", GOOD).model is None


def test_overrides_replace_keys_with_and_without_prefix(tmp_path: Path) -> None:
    dotted = {"gate.tolerance": 0.1, "neuroscale.fine.max_cg": 7, "participant_name": "P", "learning": {"mode": "off"}}
    config = read(tmp_path, inside("gate: {audit: 0.5}, learning: {steps: 3}"), **dotted).config
    ours = config.neuroscale
    assert (ours.gate.tolerance, ours.gate.audit, ours.fine.max_cg, config.participant_name) == (0.1, 0.5, 7, "P")
    assert (ours.learning.mode, ours.learning.steps) == ("off", 3)


def test_override_finds_names_with_dots(tmp_path: Path) -> None:
    section = inside("training: {load_range: {strain.xx: [0, 1]}}")
    dotted = {"training.load_range.strain.xx": [0, 2], "training": {"load_range": {"strain.yy": [0, 3]}}}
    ranges = read(tmp_path, section, **dotted).config.neuroscale.training.load_range
    assert ranges == {"strain.xx": (0, 2), "strain.yy": (0, 3)}


def test_misspelt_override_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'neuroscale\.gate\.tolerance'"):
        read(tmp_path, GOOD, **{"gate.tolerence": 0.1})


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("neuroscale:", "gate.tolerance", "the key 'neuroscale.problem' is missing"),
        ("neuroscale: [1]", "gate.tolerance", "'neuroscale': got [1], expected a section of keys and values"),
        (
            "neuroscale: {problem: composite}", "problem.grid",
            "'neuroscale.problem': got 'composite', expected a section of keys and values; 'problem.grid' is to be set",
        ),
        ("neurscale: {}", "gate.tolerance", "the section 'neuroscale:' is missing; did you mean it by 'neurscale'?"),
    ],
)  # fmt: skip
def test_overrides_of_a_wrong_file_say_what_is_wrong_in_it(tmp_path: Path, text: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(tmp_path, text, **{key: 16})


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("off", "off"), ("false", False), ("[1, 2]", [1, 2]), ("null", None)]
)
def test_command_line_values_read_as_in_the_file(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_dump_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    first = read(tmp_path, inside("gate: {tolerance: 1e-7}, settings: {a: [1, 2], b: {c: off}}"))
    again = read(tmp_path, dump(first.config))
    assert again.config == first.config
    assert again.digest == first.digest


def test_digest_changes_with_the_answer_and_only_then(tmp_path: Path) -> None:
    base = digest(read(tmp_path, GOOD).config)
    same = ["output: {folder: other}", "fine: {device: cpu, memory_mb: 5}", "transport: mpi", "learning: {seconds: 1}"]
    other = ["gate: {tolerance: 0.1}", "fine: {tolerance: 1e-3}", "settings: {steps: 3}", "microstructure: {seed: 2}"]
    assert all(digest(read(tmp_path, inside(section)).config) == base for section in same)
    assert len({base, *(digest(read(tmp_path, inside(section)).config) for section in other)}) == 5


def test_digest_of_a_closed_gate_leaves_out_what_it_does_not_use(tmp_path: Path) -> None:
    """A fine-only run serves for the comparison with runs of other tolerances."""
    closed = digest(read(tmp_path, inside("gate: {open: false}")).config)
    same = ["gate: {open: false, tolerance: 0.1}", "gate: {open: false}, model: a.pt, learning: {mode: online}"]
    assert all(digest(read(tmp_path, inside(section)).config) == closed for section in same)
    other = ["gate: {open: true}", "gate: {open: false}, fine: {tolerance: 1e-3}"]
    assert all(digest(read(tmp_path, inside(section)).config) != closed for section in other)
