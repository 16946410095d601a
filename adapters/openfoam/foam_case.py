# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what an OpenFOAM run has written in ascii, for the scripts and tests of the cases. Needs numpy alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

_COMPONENTS = {"scalar": 1, "vector": 3, "symmTensor": 6, "tensor": 9}


def times(case: Path) -> list[str]:
    """Names of the time folders, in order."""
    found = [d.name for d in case.iterdir() if d.is_dir() and re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", d.name)]
    return sorted(found, key=float)


def internal_field(file: Path, cells: int | None = None) -> np.ndarray:
    """The values in the cells, float64 [cell] or [cell, component]; a uniform field takes the number of cells.

    Raises: ValueError if the file holds no internal field in ascii
    """
    text = file.read_text(errors="replace")
    uniform = re.search(r"internalField\s+uniform\s+([^;]+);", text)
    if uniform is not None:
        value = np.array(uniform[1].strip("() ").split(), dtype=np.float64)
        return np.repeat(value[None, :], cells or 1, axis=0).squeeze()
    found = re.search(r"internalField\s+nonuniform\s+List<(\w+)>\s*(\d+)\s*\(", text)
    if found is None:
        raise ValueError(f"{file}: no internal field in ascii; set writeFormat ascii in system/controlDict")
    size = int(found[2]) * _COMPONENTS[found[1]]
    numbers = text[found.end() : text.index(";", found.end())].replace("(", " ").replace(")", " ").split()
    values = np.array(numbers, dtype=np.float64)
    if len(values) != size:
        raise ValueError(f"{file}: {len(values)} numbers where {size} were announced")
    return values.reshape(int(found[2]), -1).squeeze()


def relative_l2(field: np.ndarray, reference: np.ndarray, volumes: np.ndarray | float = 1.0) -> float:
    """Relative L2 difference of two fields [cell, ...]; volumes: float64 [cell]."""
    rows = len(reference)
    weight = np.broadcast_to(volumes, (rows,))
    square = ((field - reference).reshape(rows, -1) ** 2).sum(axis=1)
    return float(np.sqrt((weight * square).sum() / (weight * (reference.reshape(rows, -1) ** 2).sum(axis=1)).sum()))
