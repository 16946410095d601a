"""What a resumed run refuses to go on from: other points, another model."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple import Points, assemble, connect
from neuroscale_couple.errors import CheckpointError
from neuroscale_couple.surrogate.artifact import write
from tests.small_models import artifact

CONFIG = """
neuroscale:
  problem: {name: composite, grid: 16}
  model: model.pt
  microstructure: {size: [0.2, 0.4]}
  fine: {device: cpu}
  gate: {tolerance: 0.5}
  learning: {mode: "off"}
  output: {every: 0}
"""
IDS = np.arange(4)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A case with one committed window."""
    shutil.copy(artifact("composite"), tmp_path / "model.pt")
    (tmp_path / "neuroscale.yaml").write_text(CONFIG)
    run(tmp_path, IDS)
    return tmp_path


def run(folder: Path, ids: Any, resume: bool = False) -> int:
    """Windows that were committed before this part of the run, which commits one more."""
    former = assemble.run_options
    assemble.run_options = assemble.RunOptions({"output.folder": str(folder)}, resume)
    try:
        with connect(folder / "neuroscale.yaml", None, Points(ids, np.zeros((len(ids), 2)), np.ones(len(ids)))) as made:
            done, _ = made.resumed() or (0, {})
            made.evaluate({"strain": np.full((len(ids), 3), 1e-3)}, 0.0, 1.0)
            made.commit()
            return done
    finally:
        assemble.run_options = former


def test_the_same_case_goes_on(case: Path) -> None:
    assert run(case, IDS[::-1], resume=True) == 1  # in whatever order the macro solver lists its points


@pytest.mark.parametrize("ids", [np.arange(5), np.arange(4) + 1])
def test_other_points_are_refused(case: Path, ids: Any) -> None:
    said = rf"is of 4 points, this rank has {len(ids)}, or others; undo the change of the macro solver's mesh"
    with pytest.raises(CheckpointError, match=said):
        run(case, ids, resume=True)


def test_a_model_that_was_trained_again_is_refused(case: Path) -> None:
    buffer = io.BytesIO((case / "model.pt").read_bytes())
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b""
        file.writestr("archive/extra/note", "trained again")
    write(case / "model.pt", buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"model\.pt, which answered .* has changed since; put it back"):
        run(case, IDS, resume=True)


def test_a_promoted_model_that_is_lost_is_named(case: Path) -> None:
    manifest = case / case.name / "run" / "checkpoint" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("model.pt", "v001.pt"))
    with pytest.raises(CheckpointError, match=r"v001\.pt, which answered .* is not there; put it back"):
        run(case, IDS, resume=True)
