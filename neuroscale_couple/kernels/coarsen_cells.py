"""Coarse-graining of unstructured cells through a CSR map, and its exact transpose."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.kernels import arrays
from neuroscale_couple.values import F64, I64

FAR = 64
"""Fine cells that lie further apart than this are hardly ever in the same page or line of a cache."""


@dataclass(frozen=True)
class CellMap:
    """Which fine cells make up a coarse cell, checked once.

    offsets: int64 [coarse + 1], cells: int64 [entries]; the fine cells of coarse cell c are
        cells[offsets[c]:offsets[c + 1]], each fine cell in at most one of them
    volumes: float64 [fine] m^d, positive
    complete: every fine cell is in a coarse cell; scattered: neighbours in the map lie far apart, by `FAR`
    Raises: ValueError naming the first entry that is wrong.
    """

    offsets: I64
    cells: I64
    volumes: F64
    coarse_volumes: F64 = field(init=False)
    complete: bool = field(init=False)
    scattered: bool = field(init=False)
    _kept: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        offsets = np.array(self.offsets, dtype=np.int64)
        cells = np.array(self.cells, dtype=np.int64)
        volumes = np.array(self.volumes, dtype=np.float64)
        n = len(volumes)
        if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(cells):
            raise ValueError(f"offsets: got {_ends(offsets)}, expected a row from 0 to {len(cells)}, the entries")
        if (bad := np.flatnonzero(np.diff(offsets) < 0)).size:
            raise ValueError(f"offsets: got a fall after entry {bad[0]}, expected a rising row")
        if (bad := np.flatnonzero((cells < 0) | (cells >= n))).size:
            raise ValueError(f"cells: got {cells[bad[0]]} at entry {bad[0]}, expected 0 to {n - 1}")
        if (bad := np.flatnonzero(~(np.isfinite(volumes) & (volumes > 0.0)))).size:
            raise ValueError(f"volumes: got {volumes[bad[0]]} for cell {bad[0]}, expected a positive number")
        seen = np.zeros(n, dtype=bool)
        seen[cells] = True
        if np.count_nonzero(seen) != len(cells):
            twice = np.flatnonzero(np.bincount(cells, minlength=1) > 1)[0]
            raise ValueError(f"cells: got cell {twice} more than once, expected each cell in one coarse cell at most")
        summed = np.add.reduceat(np.append(volumes[cells], 0.0), offsets[:-1]) if len(offsets) > 1 else np.zeros(0)
        coarse_volumes = np.where(np.diff(offsets) > 0, summed, 0.0)
        for name, value in (
            ("offsets", offsets), ("cells", cells), ("volumes", volumes), ("coarse_volumes", coarse_volumes)
        ):  # fmt: skip
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "complete", bool(seen.all()))
        far = np.count_nonzero(np.abs(np.diff(cells)) > FAR)
        object.__setattr__(self, "scattered", bool(2 * far > len(cells)))

    @property
    def shape(self) -> tuple[int, int]:
        """(coarse cells, fine cells)."""
        return len(self.offsets) - 1, len(self.volumes)

    def on(self, like: Any) -> tuple[Any, Any, Any, Any]:
        """(offsets, cells, volumes of the entries, 1 / coarse volumes), of the kind and place of `like`; kept."""
        key = (arrays.dtype_of(like), str(like.device) if arrays.is_tensor(like) else "numpy")
        if key not in self._kept:
            inverse = np.divide(1.0, self.coarse_volumes, where=self.coarse_volumes > 0.0, out=np.zeros(self.shape[0]))
            parts = self.offsets, self.cells, self.volumes[self.cells].astype(key[0]), inverse.astype(key[0])
            # torch knows no read-only tensors
            self._kept[key] = tuple(arrays.place(p.copy() if arrays.is_tensor(like) else p, like) for p in parts)
        kept: tuple[Any, Any, Any, Any] = self._kept[key]
        return kept

    def owner(self, like: Any) -> Any:
        """int64 [fine], the coarse cell of each fine cell of a complete map, of the kind and place of `like`; kept."""
        key = ("owner", str(like.device) if arrays.is_tensor(like) else "numpy")
        if key not in self._kept:
            owner = np.empty(self.shape[1], dtype=np.int64)
            owner[self.cells] = np.repeat(np.arange(self.shape[0]), np.diff(self.offsets))
            self._kept[key] = arrays.place(owner, like)
        return self._kept[key]


def _ends(row: npt.NDArray[Any]) -> str:
    return f"shape {row.shape}" if row.ndim != 1 or not len(row) else f"a row from {row[0]} to {row[-1]}"


def coarsen_cells(
    fine: Any, cells: CellMap, *, mean: bool = True, backend: arrays.Backend = "auto", out: Any = None
) -> Any:
    """Volume means, or sums, of the fine cells of each coarse cell.

    coarse[c, k] = s_c sum_(e in c) w_e fine[cells[e], k]; mean: w = V, s = 1 / sum_c V; else w = s = 1

    fine: float32 or float64 [fine cells, components], contiguous; NumPy or torch
    out: array of the result's shape to write into; not for tensors that require grad
    Returns: the same kind, [coarse cells, components]; 0 for a coarse cell without fine cells.
    Raises: TypeError, ValueError, each with got and expected.
    """
    _check(fine, "fine", cells.shape[1])
    offsets, index, weights, scale = cells.on(fine)
    if arrays.is_tensor(fine) and arrays.through_operator(fine, backend):
        from neuroscale_couple.kernels.torch_ops import coarsen_cells as operator

        _refuse_out(out)
        return operator(fine, offsets, index, weights if mean else None, scale if mean else None)
    return coarsen_by(fine, offsets, index, weights if mean else None, scale if mean else None, backend, out)


def refine_cells(
    coarse: Any, cells: CellMap, *, mean: bool = True, backend: arrays.Backend = "auto", out: Any = None
) -> Any:
    """Values of the coarse cells on their fine cells: conservative injection, or the shares of a sum.

    fine[cells[e], k] = w_e s_c coarse[c, k] for e in c; mean (the coarse values are means): w = s = 1, so that
    sum V fine = sum V_c coarse; else (they are sums): w = V, s = 1 / V_c, so that sum fine = sum coarse

    Each is the transpose of `coarsen_cells` with the other `mean`. Fine cells outside of the map become 0.
    coarse: float32 or float64 [coarse cells, components], contiguous; NumPy or torch
    out: array of the result's shape to write into; not for tensors that require grad
    Raises: TypeError, ValueError, each with got and expected.
    """
    _check(coarse, "coarse", cells.shape[0])
    offsets, index, weights, scale = cells.on(coarse)
    n = cells.shape[1]
    if arrays.is_tensor(coarse) and arrays.through_operator(coarse, backend):
        from neuroscale_couple.kernels.torch_ops import refine_cells as operator

        _refuse_out(out)
        return operator(coarse, offsets, index, None if mean else weights, None if mean else scale, n)
    if mean and backend == "auto" and arrays.is_tensor(coarse) and coarse.is_cpu and cells.scattered and cells.complete:
        return _select(coarse, cells.owner(coarse), out)
    w, s = (None, None) if mean else (weights, scale)
    return refine_by(coarse, offsets, index, w, s, n, backend, complete=cells.complete, out=out)


def _select(coarse: Any, owner: Any, out: Any) -> Any:
    """The same values by torch's index_select, which writes in order: faster than the kernel for a scattered map."""
    fine = arrays.output(out, "out", (len(owner), coarse.shape[1]), arrays.dtype_of(coarse), coarse)
    arrays.refuse_overlap({"out": fine}, {"coarse": coarse})
    return sys.modules["torch"].index_select(coarse, 0, owner, out=fine)


def _refuse_out(out: Any) -> None:
    if out is not None:
        raise ValueError("out: got an array for a tensor that requires grad or is traced, expected none")


def _check(array: Any, name: str, rows: int) -> None:
    arrays.check_kind(array, name)
    if array.ndim != 2 or array.shape[0] != rows:
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected [{rows}, components]")
    arrays.check_strides(array, name)


def coarsen_by(
    fine: Any, offsets: Any, cells: Any, weights: Any, scale: Any, backend: arrays.Backend = "auto", out: Any = None
) -> Any:
    """`coarsen_cells` with the parts of a checked map. weights: [entries] or None, scale: [coarse] or None."""
    chosen = arrays.choose(fine, backend)
    m, k = offsets.shape[0] - 1, fine.shape[1]
    coarse = arrays.output(out, "out", (m, k), arrays.dtype_of(fine), fine)
    if chosen != "numpy":
        arrays.call("coarsen_cells", fine, chosen == "reference", offsets, cells, weights, scale, fine, coarse)
        return coarse
    arrays.refuse_overlap({"out": coarse}, {"fine": fine})
    f, rows, w, s, to = (arrays.host(a) for a in (fine, cells, weights, scale, coarse))
    terms = f[rows].astype(np.float64) if w is None else w.astype(np.float64)[:, None] * f[rows]
    ends = arrays.host(offsets)
    filled = np.flatnonzero(np.diff(ends) > 0)
    to[:] = 0.0
    if len(filled):
        summed = np.add.reduceat(terms, ends[:-1][filled], axis=0)
        to[filled] = summed if s is None else s[filled].astype(np.float64)[:, None] * summed
    return coarse


def refine_by(
    coarse: Any, offsets: Any, cells: Any, weights: Any, scale: Any, n: int,
    backend: arrays.Backend = "auto", *, complete: bool = False, out: Any = None,
) -> Any:  # fmt: skip
    """`refine_cells` with the parts of a checked map. weights: [entries] or None, scale: [coarse] or None."""
    chosen = arrays.choose(coarse, backend)
    fine = arrays.output(out, "out", (n, coarse.shape[1]), arrays.dtype_of(coarse), coarse)
    if out is not None:
        arrays.refuse_overlap({"out": fine}, {"coarse": coarse})
    if not complete:
        fine[:] = 0.0
    if chosen != "numpy":
        arrays.call("refine_cells", coarse, chosen == "reference", offsets, cells, weights, scale, coarse, fine)
        return fine
    g, rows, w, s, to = (arrays.host(a) for a in (coarse, cells, weights, scale, fine))
    owner = np.repeat(np.arange(len(g)), np.diff(arrays.host(offsets)))
    factor = (1.0 if w is None else w.astype(np.float64)) * (1.0 if s is None else s[owner].astype(np.float64))
    to[rows] = np.reshape(factor, (-1, 1)) * g[owner]
    return fine
