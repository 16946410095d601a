"""The whole service, with the real fine solver behind a closed gate: one answer, however it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.transport.replay import Script
from tests.mpi.launch import launch, run_serial

CASE = Path(__file__).parents[2] / "cases" / "01_fe2_plate" / "neuroscale.yaml"
CONFIG = """
neuroscale:
  problem: {name: composite, grid: 8}
  gate: {open: false}
  fine: {device: cpu}
  learning: {mode: "off"}
"""


def run(folder: Path, deployment: str, **more: Any) -> None:
    """Run program run.py in a folder."""
    folder.mkdir(exist_ok=True)
    config = folder / "neuroscale.yaml"
    config.write_text(CONFIG)
    kind, _, ranks = deployment.partition(" ")
    asked = {"role": "macro", "config": str(config), "out": str(folder), **more}
    asked.setdefault("transport", "mpi" if kind == "mpmd" else "embedded")
    if kind == "serial":
        run_serial("run.py", asked).expect(0)
    elif kind == "spmd":
        launch((int(ranks), "run.py", asked)).expect(0)
    else:
        macro, _, services = ranks.partition("+")
        launch((int(macro), "run.py", asked), (int(services), "run.py", {**asked, "role": "service"})).expect(0)


def answers(folder: Path, deployment: str, **more: Any) -> Any:
    """Answers [point, iteration, column] in the order of ids."""
    run(folder, deployment, **more)
    parts = [np.load(path) for path in sorted(folder.glob("macro*.npz"))]
    ids = np.concatenate([part["ids"] for part in parts])
    return np.concatenate([part["answers"].swapaxes(0, 1) for part in parts])[np.argsort(ids)]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The answers of a serial run."""
    return answers(tmp_path_factory.mktemp("serial"), "serial")


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1", "mpmd 1+2"])
def test_serial_spmd_and_mpmd_agree(deployment: str, serial: Any, tmp_path: Path) -> None:
    assert np.isfinite(serial).all()
    assert np.abs(serial).max() > 0
    scale = np.abs(serial).max(axis=(0, 1))
    np.testing.assert_allclose(answers(tmp_path / "other", deployment) / scale, serial / scale, rtol=0, atol=1e-6)


def test_permuting_the_points_permutes_the_answers(serial: Any, tmp_path: Path) -> None:
    """Bit for bit: the owner keeps its points in the order of their ids, so the service sees no difference."""
    np.testing.assert_array_equal(answers(tmp_path / "permuted", "serial", order=1), serial)


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1"])
def test_a_resumed_run_gives_each_macro_rank_its_state_and_the_same_answers(deployment: str, tmp_path: Path) -> None:
    whole = answers(tmp_path / "whole", deployment, windows=3)
    run(tmp_path / "parts", deployment, windows=2)
    rest = answers(tmp_path / "parts", deployment, windows=3, resume=True)
    np.testing.assert_allclose(rest, whole[:, 4:], rtol=1e-5, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("deployment", ["spmd 2"])
def test_the_configuration_records_and_replays(deployment: str, tmp_path: Path) -> None:
    run(tmp_path / "first", "serial", overrides={"record": "calls.npz"})
    (recording,) = (tmp_path / "first").rglob("calls.npz")
    again = {"record": "calls.npz", "replay": str(recording)}
    run(tmp_path / "second", deployment, role="replay", transport="replay", overrides=again)
    (copy,) = (tmp_path / "second").rglob("calls.npz")
    first, second = Script.load(recording), Script.load(copy)
    assert [call.kind for call in first.calls] == [call.kind for call in second.calls]
    np.testing.assert_array_equal(first.points.ids, second.points.ids)
    for one, two in zip(first.calls, second.calls, strict=True):
        assert (one.t, one.dt, sorted(one.inputs)) == (two.t, two.dt, sorted(two.inputs))
        assert all(np.array_equal(one.inputs[name], two.inputs[name]) for name in one.inputs)


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1"])
def test_answers_of_a_model_are_given_the_totals_of_a_group_and_of_all(deployment: str, tmp_path: Path) -> None:
    """The model of case 01 with refused points among its answers; points 0 ... 19 of 40, of volume 1, are `left`."""
    got = answers(
        tmp_path, deployment, config=str(CASE), totals={"stress.xx": 100.0, "stress.xx@left": 20.0},
        overrides={
            "learning.mode": "off", "gate.audit": 0.0, "correction.conserve": [{"output": "stress.xx"}],
            "correction.groups": [{"name": "left", "box": [[0.0, 1.95], [0.0, 9.0]]}],
        },
    )  # fmt: skip
    size = np.abs(got[:, :, 0]).sum(axis=0)
    assert (np.abs(got[:20, :, 0].sum(axis=0) - 20.0) <= 1e-13 * size).all()
    assert (np.abs(got[:, :, 0].sum(axis=0) - 100.0) <= 1e-13 * size).all()
