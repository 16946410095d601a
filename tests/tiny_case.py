"""Case 01 made tiny: 32 points on 8 x 8 pixels, and a model trained on it in seconds; wrong by far more than 2 %."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

CASE = Path(__file__).parents[1] / "cases" / "01_fe2_plate"
TINY: dict[str, Any] = {
    "settings.cells": [4, 2],
    "settings.steps": 3,
    "problem.grid": 8,
    "fine.device": "cpu",
    "gate.tolerance": 0.3,
    "gate.confidence": 0.8,
    "gate.audit": 0.2,
    "gate.audit_every": 1,
    "learning.mode": "off",
    "training.structures": 60,
    "training.loads": 4,
    "training.epochs": 2,
    "training.members": 2,
    "training.width": 8,
}


def options(**more: Any) -> list[str]:
    """The tiny case's keys as options of the command line."""
    values = TINY | {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in values.items() for part in ("--set", f"{key}={_text(value)}")]


def _text(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, list)
        else str(value)
    )


def copy_case(folder: Path, model: bool = True) -> Path:
    """A case folder of one's own; returns its configuration file."""
    folder.mkdir(parents=True)
    for name in ("neuroscale.yaml", "plate.py", "mechanics.py"):
        shutil.copy(CASE / name, folder)
    if model:
        for path in trained().glob("model.*"):
            shutil.copy(path, folder)
    return folder / "neuroscale.yaml"


@functools.cache
def trained() -> Path:
    """A folder with the trained model; made once."""
    from neuroscale_couple.cli import main

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = copy_case(folder / "plate", model=False)
    assert main(["train", str(config), *options()]) == 0
    return config.parent
