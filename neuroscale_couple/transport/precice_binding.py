"""Who calls preCICE for us: our own binding where the extension was built with preCICE, else preCICE's Python package.

The package takes vertex ids and data element by element (about 30 ns each), our binding as arrays. Methods, answers and
errors are the same.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from neuroscale_couple.values import I64

OURS = "neuroscale_couple.transport._precice"


def participant(package: Any, name: str, path: str, rank: int, size: int) -> Any:
    """A participant of preCICE. package: preCICE's Python package, imported: its library is found then."""
    kind = package.Participant
    with suppress(ImportError):  # not built, or for another version of the library
        kind = import_module(OURS).Participant
    return kind(name, path, rank, size)


def direct(participant: Any) -> bool:
    """Whether this is our binding: it takes arrays as they are, and lets other threads of Python run while it waits."""
    return type(participant).__module__ == OURS


def vertex_ids(ids: I64, direct: bool) -> Any:
    """Ids int64 [n] as they are taken: int32 [n] if `direct`, else a list, with which the package is twice as fast."""
    return np.ascontiguousarray(ids, dtype=np.int32) if direct else ids.tolist()
