"""`check` finds what can be found before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.config.load import load
from neuroscale_couple.evaluation.check import Finding, check
from tests.tiny_case import TINY, copy_case


def findings(config: Path, **keys: Any) -> dict[str, Finding]:
    overrides = TINY | {key.replace("__", "."): value for key, value in keys.items()}
    loaded = load(config, overrides)
    return {finding.what: finding for finding in check(loaded, config.parent / "runs")}


def wrong(found: dict[str, Finding]) -> list[str]:
    return [what for what, finding in found.items() if not finding.good]


def test_good_case_has_nothing_to_put_right(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate"))
    assert wrong(found) == []
    assert found["micro problem"].said == "composite on 8 x 8 pixels"
    assert "inclusion share 0." in found["micro structures"].said
    assert "fft_cell converges at the upper end of the range" in found["fine solver"].said
    assert "model.pt fits the micro problem; held-out error:" in found["model"].said
    assert found["gate"].said.startswith("promises 80 % of the accepted answers within 30 %; of the held-out answers")


def test_missing_model_names_the_command(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    found = findings(config)
    assert wrong(found) == ["model"]
    assert found["model"].said == (
        f"no file {config.parent / 'model.pt'}; make it with `neuroscale-couple train {config}`, "
        "or start without one: --cold"
    )


def test_no_model_named_is_no_mistake(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate", model=False), model=None, learning__mode="online")
    assert wrong(found) == []
    assert found["model"].said == "none named: every point starts on the fine solver, the run learns"


def test_damaged_model_is_found_by_its_hash(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate")
    path = config.parent / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = findings(config)
    assert wrong(found) == ["model"]
    assert f"{path}: is damaged: expected SHA-256 " in found["model"].said


def test_truncated_model_is_found(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate")
    path = config.parent / "model.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is truncated or not a surrogate artifact" in findings(config)["model"].said


def test_model_of_another_problem_names_the_difference(tmp_path: Path) -> None:
    matrix = {"E": 4000.0, "nu": 0.35, "exponent": 0.5, "reference_strain": 0.01}
    found = findings(copy_case(tmp_path / "plate"), problem__matrix=matrix)
    assert wrong(found) == ["model"]
    assert "4000" in found["model"].said
    assert "5000" in found["model"].said


def test_gate_that_cannot_certify_says_why(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate"), gate__tolerance=0.02, gate__confidence=0.99)
    assert wrong(found) == ["gate"]
    assert found["gate"].said.startswith("cannot promise 99 % of the accepted answers within 2 %: ")
    assert "held-out answers" in found["gate"].said


def test_missing_or_broken_script_is_found(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate")
    found = findings(config, macro="plat.py")
    assert wrong(found) == ["macro solver"]
    assert found["macro solver"].said == f"no file {config.parent / 'plat.py'}; correct neuroscale.macro in {config}"
    (config.parent / "plate.py").write_text("def (")
    assert "is not valid Python" in findings(config)["macro solver"].said


def test_no_script_is_for_solvers_that_connect_themselves(tmp_path: Path) -> None:
    assert findings(copy_case(tmp_path / "plate"), macro=None)["macro solver"].good


def test_unknown_problem_ends_the_list(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate"), problem__name="compsite")
    assert wrong(found) == ["micro problem"]
    assert "'compsite' is unknown; use one of ['composite', 'conduction', 'opaque']" in found["micro problem"].said
    assert "model" not in found


def test_grey_image_is_refused(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate")
    np.save(config.parent / "cell.npy", np.linspace(0, 1, 64).reshape(8, 8))
    found = findings(config, microstructure__kind="image", microstructure__path="cell.npy")
    assert "micro structures" in wrong(found)
    assert "cell.npy" in found["micro structures"].said


def test_range_of_no_input_is_found(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate"), training__load_range={"strain.zz": [0.0, 1.0]})
    assert "training.load_range.strain.zz: no such input; composite takes strain.xx, strain.yy, strain.xy" in (
        found["training range"].said
    )


def test_load_without_convergence_is_found(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate"), fine__max_newton=1, fine__max_cg=1)
    assert wrong(found) == ["fine solver"]
    assert found["fine solver"].said.startswith("does not converge at the upper end of training.load_range: point 0:")


def test_folder_that_cannot_be_made_is_found(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate")
    (config.parent / "runs").write_text("a file")
    found = findings(config)
    assert wrong(found) == ["results"]
    assert (
        found["results"].said
        == f"{config.parent / 'runs'} cannot be written; choose another folder with --out or output.folder"
    )
