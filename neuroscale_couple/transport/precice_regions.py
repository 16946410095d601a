"""Which rank owns which vertex of a macro mesh that several of our ranks see through access regions.

Rank 0 sees the whole mesh, so that ids do not depend on our number of ranks (`precice_ids`) and a vertex in no region
is found. A vertex in several regions belongs to the lowest of their ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroscale_couple.errors import ConfigError
from neuroscale_couple.parallel import agree, rank, size
from neuroscale_couple.values import F64, I64

EVERYWHERE = 1e20
Region = Sequence[tuple[float, float]]


def check_regions(regions: Sequence[Region], ranks: int, dimensions: int, mesh: str) -> None:
    """Raises: ConfigError if there is not one region a rank, of the dimension of the mesh, the lower end first."""
    if not regions and ranks == 1:
        return
    example = ", ".join(["[0, 1]"] * dimensions)
    if len(regions) != ranks:
        raise ConfigError(
            f"neuroscale.precice.regions: got {len(regions)} access regions for {ranks} rank(s); give one each, "
            f"e.g. - [{example}]"
        )
    for number, region in enumerate(regions):
        if len(region) != dimensions:
            raise ConfigError(
                f"neuroscale.precice.regions[{number}]: got {len(region)} ranges, but mesh {mesh!r} has "
                f"{dimensions} dimensions; write [{example}]"
            )
        if any(low > high for low, high in region):
            raise ConfigError(f"neuroscale.precice.regions[{number}]: got {region}, expected the lower end first")


def access_region(regions: Sequence[Region], place: int, dimensions: int) -> list[float]:
    """The region that preCICE is told: all of the mesh on rank 0, else the rank's own."""
    if place == 0:
        return [-EVERYWHERE, EVERYWHERE] * dimensions
    return [float(end) for interval in regions[place] for end in interval]


@dataclass(frozen=True)
class Owned:
    """A rank's part of a mesh.

    rows: int64 [m] of the vertices that it sees; places: int64 [m] of the same in the whole mesh
    whole: float64 [n, dimensions], all vertices as rank 0 sees them
    """

    rows: I64
    places: I64
    whole: F64


def owned(regions: Sequence[Region], comm: Any, mesh: str, seen: F64) -> Owned:
    """Which of the vertices that this rank sees are its own.

    seen: float64 [n, dimensions], in the order of preCICE
    Raises: ConfigError on every rank. Collective: yes
    """
    if size(comm) == 1 and not regions:
        _refuse_empty(len(seen), mesh)
        return Owned(np.arange(len(seen)), np.arange(len(seen)), seen)
    whole: F64 = seen if size(comm) == 1 else comm.bcast(seen if rank(comm) == 0 else None, root=0)
    _refuse_empty(len(whole), mesh)
    owner = _owners(regions, whole)
    _refuse_outside(owner, whole, mesh)
    place = match(whole, seen)
    rows = np.flatnonzero(owner[place] == rank(comm))
    error = None
    if len(rows) != np.count_nonzero(owner == rank(comm)):
        error = ConfigError(
            f"mesh {mesh!r}: rank {rank(comm)} sees only {len(rows)} of the {np.count_nonzero(owner == rank(comm))} "
            f"vertices in its access region {list(regions[rank(comm)])}; make the region a little larger"
        )
    agree(comm, error, f"vertices of mesh {mesh!r}")
    return Owned(rows, place[rows], whole)


def _owners(regions: Sequence[Region], whole: F64) -> I64:
    """Lowest rank whose region holds each vertex, -1 for none: int64 [n]."""
    owner = np.full(len(whole), -1, dtype=np.int64)
    for number, region in enumerate(regions):
        low, high = np.asarray(region, dtype=np.float64).T
        inside = ((whole >= low) & (whole <= high)).all(axis=1)
        owner[inside & (owner < 0)] = number
    return owner


def _refuse_empty(vertices: int, mesh: str) -> None:
    if vertices == 0:
        raise ConfigError(f"mesh {mesh!r} has no vertices: the macro solver has defined none before it initialised")


def _refuse_outside(owner: I64, whole: F64, mesh: str) -> None:
    outside = np.flatnonzero(owner < 0)
    if len(outside):
        first = ", ".join(f"{x:g}" for x in whole[outside[0]])
        box = ", ".join(f"[{low:g}, {high:g}]" for low, high in zip(whole.min(0), whole.max(0), strict=True))
        raise ConfigError(
            f"mesh {mesh!r}: {len(outside)} of {len(whole)} points lie outside every access region, the first at "
            f"({first}); extend neuroscale.precice.regions so that together they cover {box}"
        )


def match(whole: F64, seen: F64) -> I64:
    """Places of the seen vertices among all: the k-th of equal coordinates is the k-th there.

    whole: float64 [n, d]; seen: float64 [m, d]; returns int64 [m]
    """
    if len(whole) == len(seen) and np.array_equal(whole, seen):
        return np.arange(len(whole))
    _, label = np.unique(np.concatenate([whole, seen]), axis=0, return_inverse=True)
    label = label.ravel()
    all_order = np.argsort(label[: len(whole)], kind="stable")
    mine = label[len(whole) :]
    order = np.argsort(mine, kind="stable")
    sorted_mine = mine[order]
    repeat = np.arange(len(mine)) - np.searchsorted(sorted_mine, sorted_mine)
    place = np.empty(len(mine), dtype=np.int64)
    place[order] = all_order[np.searchsorted(label[: len(whole)][all_order], sorted_mine) + repeat]
    return place
