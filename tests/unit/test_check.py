"""`check` finds what can be found before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config.load import load
from neuroscale_couple.evaluation.check import Finding, check
from neuroscale_couple.ledger import Counts, Ledger
from neuroscale_couple.reasons import Reason
from neuroscale_couple.values import Audit, Reply
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


def test_a_run_without_a_model_needs_no_ranges(tmp_path: Path) -> None:
    config = tmp_path / "neuroscale.yaml"
    config.write_text("neuroscale: {problem: {name: composite, grid: 8}, learning: {mode: online}}")
    assert [finding.what for finding in check(load(config), tmp_path / "runs") if not finding.good] == []


def test_stages_and_balances_are_looked_at_without_a_model_too(tmp_path: Path) -> None:
    keys = {"gate.stages": ["domian"], "correction.conserve": [{"output": "stress"}]}
    loaded = load(copy_case(tmp_path / "plate", model=False), TINY | keys | {"model": None})
    found = {finding.what: finding.said for finding in check(loaded, tmp_path / "runs") if not finding.good}
    assert found == {
        "gate stages": "gate.stages: 'domian' is unknown; use one of ['audit', 'domain', 'physical', 'uncertainty'] or "
        "package.module:Class of your own",
        "correction": "correction.conserve: unknown output 'stress'; one of ['stress.xx', 'stress.yy', 'stress.xy']",
    }


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


def test_model_trained_on_less_than_the_range_is_found(tmp_path: Path) -> None:
    found = findings(copy_case(tmp_path / "plate"), training__load_range={"strain.xx": [-0.004, 0.08]})
    assert wrong(found) == ["model"]
    assert found["model"].said.startswith(
        "model.pt was trained on strain.xx -0.004..0.042, training.load_range says -0.004..0.08; train it again with"
    )


@pytest.mark.parametrize(("refused", "good"), [(1, True), (60, False)])
def test_loads_of_the_last_runs_are_held_against_the_range(tmp_path: Path, refused: int, good: bool) -> None:
    config = copy_case(tmp_path / "plate")
    assert "not known before a run" in findings(config)["loads"].said
    ledger = Ledger(config.parent / "run", inputs=("strain.xx", "strain.yy", "strain.xy"))
    counts, nobody, nothing = Counts(), np.zeros(0, dtype=np.int64), np.zeros(0)
    counts.source[0], counts.reason[Reason.OUT_OF_DOMAIN] = 100, refused
    answer = Reply(np.zeros((0, 3)), np.zeros((0, 3, 3)), nobody.astype(np.uint8), nobody.astype(np.uint8), nothing)
    said = []
    for window, strain in enumerate((0.03, 0.05)):
        ledger.add(
            window=window, time=1.0, iterations=1, points=2, counts=counts, reply=answer, seconds={}, model_version=0,
            audit=Audit(nobody, answer.source, nothing, nothing, nothing),
            inputs=np.array([[strain, 0.0, 0.0], [0.0, -0.01, -0.02]]),
        )  # fmt: skip
        said.append(findings(config)["loads"])
    assert said[0] == Finding(True, "loads", "those of the results that are there (run) lie within training.load_range")
    assert said[1].good == good
    assert said[1].said == (
        f"run reached strain.xx 0..0.05, beyond training.load_range: such points fall back to the fine solver "
        f"({refused} % of the answers of these runs); to spare them, widen the range and train again"
    )


def test_initial_value_outside_the_range_is_found(tmp_path: Path) -> None:
    loaded = load(copy_case(tmp_path / "plate"), TINY | {"precice.initial": {"strain.yy": 0.5}})
    said = [finding.said for finding in check(loaded, tmp_path / "runs") if not finding.good]
    assert said == ["precice.initial.strain.yy = 0.5 is outside training.load_range"]
