"""How the vertices of a macro mesh become points with ids: ids choose the micro structures and deal out the work.

The order in which preCICE hands vertices over changes with the number of macro ranks. So an id comes from where the
vertex is (`coordinates`), or from a data field that the macro solver writes; `vertices` takes that order all the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError
from neuroscale_couple.values import F64, I64

SAME = 1e-9
"""Coordinates closer than this part of the mesh's extent are taken for equal: round-off must not change an order."""
LARGEST = 2**53
"""Largest whole number up to which a double holds every one."""


def by_coordinates(whole: F64) -> I64:
    """Place of each vertex in the order of coordinates, the first direction first: int64 [n].

    whole: float64 [n, dimensions], all vertices of the mesh. Vertices at one place keep their order.
    """
    labels = [_labels(values) for values in whole.T]
    order = np.lexsort(labels[::-1])
    ids: I64 = np.empty(len(whole), dtype=np.int64)
    ids[order] = np.arange(len(whole))
    return ids


def _labels(values: F64) -> I64:
    """Number of each value among the distinct ones: float64 [n] -> int64 [n]."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    apart = SAME * float(np.abs(values).max(initial=0.0) + np.ptp(values)) if len(values) else 0.0
    label: I64 = np.empty(len(values), dtype=np.int64)
    label[order] = np.concatenate([[0], np.cumsum(np.diff(ascending) > apart)])[: len(values)]
    return label


def from_field(values: npt.ArrayLike, places: F64, mesh: str, data: str) -> I64:
    """Ids that the macro solver has written: float64 [n] -> int64 [n].

    places: float64 [n, dimensions], for the message
    Raises: InputError for what is no whole number, and where nothing was written
    """
    found = np.asarray(values, dtype=np.float64).reshape(-1)
    said = f"mesh {mesh!r}: data {data!r} (neuroscale.precice.ids)"
    wrong = np.flatnonzero(~((found >= 0) & (found < LARGEST) & (found == np.rint(found))))
    if len(wrong):
        place = ", ".join(f"{x:g}" for x in places[wrong[0]])
        raise InputError(
            f"{said} holds {found[wrong[0]]:g} at the vertex ({place}): an id is a whole number from 0 on, "
            "one of its own for each point"
        )
    if len(found) > 1 and not found.any():
        raise InputError(
            f"{said} is 0 at all {len(found)} vertices: the macro solver must write it before its first advance"
            ' (exchange with initialize="true": before it initialises)'
        )
    return found.astype(np.int64)


def in_order_of(ids: I64, everyone: Callable[[I64], list[I64]]) -> I64:
    """Place of each id among those of all ranks, ascending: int64 [n]. everyone: allgather. Collective: yes"""
    return np.searchsorted(np.sort(np.concatenate(everyone(ids))), ids).astype(np.int64)
