"""Case 01 gives what its `expected.toml` says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.cli import FINE_ONLY, main
from neuroscale_couple.config.load import load
from tests.tiny_case import CASE, copy_case

EXPECTED = tomllib.loads((CASE / "expected.toml").read_text())


def test_settings_and_expectations_agree() -> None:
    config = load(CASE / "neuroscale.yaml").config.neuroscale
    around, outwards = config.settings["cells"]
    assert 4 * around * outwards == EXPECTED["size"]["points"] >= 1000
    assert config.settings["steps"] == EXPECTED["size"]["windows"] == len(EXPECTED["fine_only"]["values"])
    assert EXPECTED["gated"]["share_above_tolerance"] == pytest.approx(1 - config.gate.confidence)
    assert max(EXPECTED["fine_only"]["newton_iterations"]) < config.settings["max_iterations"]


def test_coupling_is_a_few_marked_lines() -> None:
    lines = (CASE / "plate.py").read_text().splitlines()
    assert sum("# coupling" in line for line in lines) <= 10
    assert not [line for line in lines if ("closure" in line and "coupling" not in line) and ".evaluate(" in line]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_first_load_step_of_the_whole_plate(tmp_path: Path) -> None:
    """The fine-only reaction and Newton iterations of the first step of the full case."""
    config = copy_case(tmp_path / "plate", model=False)
    settings = load(config).config.neuroscale.settings
    one = {"settings.steps": 1, "settings.mean_strain": settings["mean_strain"] / settings["steps"]}
    keys = [f"{key}={'null' if value is None else value}" for key, value in (FINE_ONLY | one).items()]
    arguments = [part for key in keys for part in ("--set", key.replace("False", "false"))]
    assert main(["run", str(config), "--out", str(tmp_path), *arguments]) == 0
    with np.load(tmp_path / "plate" / "run" / "macro.npz") as found:
        wanted = EXPECTED["fine_only"]
        assert found["reaction_force"][0, 0] == pytest.approx(wanted["values"][0], rel=wanted["relative_tolerance"])
        assert found["newton_iterations"].tolist() == wanted["newton_iterations"][:1]
