"""`expected.toml` against a summary: every promise is compared, and said whether it is met."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.evaluation.expected import as_dict, hold

TEXT = """
[size]
points = 10
windows = 2

[fine_only]
quantity = "reaction_force"
values = [2.0, 4.0]
relative_tolerance = 1.0e-3
newton_iterations = [3, 2]

[gated]
reaction_force = 0.01
share_above_tolerance = 0.05
speedup = 5.0
more_newton_iterations_per_step = 1
"""


def summary(**more: Any) -> dict[str, Any]:
    """A run that keeps all promises."""
    return {
        "points": 10, "windows": 2, "macro_error": {"reaction_force": 0.01}, "speedup": 5.0,
        "audit": {"share_above_tolerance": 0.05}, "newton_iterations": {"run": [3, 3], "fine_only": [3, 2]},
    } | more  # fmt: skip


@pytest.fixture
def case(tmp_path: Path) -> Path:
    (tmp_path / "expected.toml").write_text(TEXT)
    np.savez(tmp_path / "macro.npz", reaction_force=[[2.001, -9.0], [4.0, 0.0]], newton_iterations=[3, 2])
    return tmp_path


def missed(case: Path, **more: Any) -> list[str]:
    lines, said = hold(case / "expected.toml", summary(**more), case)
    assert len(lines) == 6
    assert said == ""
    return [str(line) for line in lines if not line.met]


def test_a_run_that_keeps_all_promises(case: Path) -> None:
    assert missed(case) == []
    lines, _ = hold(case / "expected.toml", summary(), case)
    assert str(lines[2]) == "met      error of reaction force: 0.01 (expected at most 0.01)"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"macro_error": {"reaction_force": 0.011}}, "error of reaction force: 0.011 (expected at most 0.01)"),
        ({"macro_error": {"reaction_force": float("nan")}}, "error of reaction force: nan (expected at most 0.01)"),
        ({"audit": {"share_above_tolerance": 0.06}}, "audits above the tolerance: 0.06 (expected at most 0.05)"),
        ({"audit": {"share_above_tolerance": None}}, "audits above the tolerance: none (expected at most 0.05)"),
        ({"speedup": 4.9}, "speed-up: 4.9 (expected at least 5)"),
        (
            {"newton_iterations": {"run": [3, 4], "fine_only": [3, 2]}},
            "more Newton iterations in a step than fine-only: 2 (expected at most 1)",
        ),
    ],
)
def test_a_promise_that_is_not_met_is_named(case: Path, more: dict[str, Any], said: str) -> None:
    assert missed(case, **more) == [f"not met  {said}"]


def test_the_fine_only_run_itself_is_held(case: Path) -> None:
    np.savez(case / "macro.npz", reaction_force=[[2.0], [4.1]], newton_iterations=[3, 3])
    assert missed(case) == [
        "not met  fine-only reaction force, relative difference: 0.025 (expected at most 0.001)",
        "not met  fine-only Newton iterations: 3 3 (expected 3 2)",
    ]


def test_time_alone_breaks_no_promise(case: Path) -> None:
    for more, met in (({"speedup": 1.0}, True), ({"macro_error": {"reaction_force": 1.0}}, False)):
        lines, _ = hold(case / "expected.toml", summary(**more), case)
        assert as_dict(lines)["met"] is met


def test_what_cannot_be_compared_is_said(case: Path) -> None:
    path = case / "expected.toml"
    assert hold(path, summary(points=4), case) == (
        [], "expected.toml: not compared, it is for 10 points, this run has 4"
    )  # fmt: skip
    assert hold(path, summary(), None)[1] == "expected.toml: not compared, there is no fine-only run"
    assert hold(case / "none.toml", summary(), case) == ([], "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[size]", "[sise]", r"unknown section \[sise\]; known: size, fine_only, gated"),
        ("points", "point", r"unknown key 'point' in \[size\]; known: points, windows"),
        ("speedup", "speed", r"nothing measures 'speed' of \[gated\]; there are reaction_force, share_above"),
        ("reaction_force", "force", "cannot be compared, 'force is not a file in the archive' is missing"),
        ("= 10\n", "= \n", r"expected.toml: cannot be read \(Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(case: Path, old: str, new: str, said: str) -> None:
    path = case / "expected.toml"
    path.write_text(TEXT.replace(old, new, 1))
    lines, told = hold(path, summary(), case)
    assert lines == []
    assert re.search(said, told), told
