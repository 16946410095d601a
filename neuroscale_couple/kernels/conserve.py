"""The smallest variance-weighted change that restores given sums, with bounds kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuroscale_couple.kernels import arrays
from neuroscale_couple.kernels.meter import metered
from neuroscale_couple.values import F64, I64

HIGH, LOW, SIZE, STIFFNESS, LARGEST = range(5)
"""Columns of the sums, as in csrc/include/neuroscale/kernels/conserve.h."""
CHUNK = 512
"""Points that are added up one after the other: few enough that a GPU has work for all its threads."""
MOST_STEPS = 60
CLOSE = 4.0 * float(np.finfo(np.float64).eps)
"""A defect of this share of the summed sizes is round-off."""


@dataclass(frozen=True)
class Plan:
    """Which points are balanced together, cut into chunks; made once per set of points.

    entries: int64 [n], rows by segment, or None (one segment, in order); chunks: int64 [c + 1], from 0 to n
    chunk_segment: int64 [c]; segment_chunks: int64 [segments + 1], the first chunk of each group
    segments: number of groups
    """

    entries: Any
    chunks: I64
    chunk_segment: I64
    segment_chunks: I64
    segments: int
    _copies: dict[Any, tuple[Any, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, n: int, groups: I64 | None = None, segments: int = 1, chunk: int = CHUNK) -> Plan:
        """All n points together, or by group; groups: int64 [n] of 0 ... segments - 1. Raises: ValueError."""
        if groups is None:
            counts, entries = np.array([n]), None
        else:
            if groups.shape != (n,) or ((groups < 0) | (groups >= segments)).any():
                raise ValueError(f"groups: got {groups.shape}, expected ({n},) with numbers from 0 to {segments - 1}")
            counts = np.bincount(groups, minlength=segments)
            entries = np.argsort(groups, kind="stable").astype(np.int64)
        pieces = -(-counts // chunk)
        chunk_segment = np.repeat(np.arange(len(counts)), pieces)
        start = np.cumsum(counts) - counts
        number = np.arange(len(chunk_segment)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        chunks = np.append(start[chunk_segment] + number * chunk, n)
        first = np.append(0, np.cumsum(pieces))
        return cls(
            entries, chunks.astype(np.int64), chunk_segment.astype(np.int64), first.astype(np.int64), len(counts)
        )

    def placed(self, like: Any) -> tuple[Any, ...]:
        """(entries, chunks, chunk_segment, segment_chunks) where `like` lies; they are copied to a device once."""
        mine = self.entries, self.chunks, self.chunk_segment, self.segment_chunks
        if not arrays.is_tensor(like):
            return mine
        if like.device not in self._copies:
            self._copies[like.device] = tuple(None if a is None else arrays.place(a, like) for a in mine)
        return self._copies[like.device]


@dataclass(frozen=True)
class Balance:
    """What is balanced, all of one dtype and place.

    values: float32 or float64 [n, columns]; columns: int64 [k], which of them are balanced
    volumes: [n]; variance: [n], 0 for a value that is exact; lower, upper: [n, columns], or both None
    Raises: TypeError, ValueError, each with got and expected.
    """

    plan: Plan
    values: Any
    columns: Any
    volumes: Any
    variance: Any
    lower: Any = None
    upper: Any = None

    def __post_init__(self) -> None:
        arrays.check_kind(self.values, "values")
        if self.values.ndim != 2 or len(self.values) != self.plan.chunks[-1]:
            raise ValueError(
                f"values: got shape {tuple(self.values.shape)}, expected [{self.plan.chunks[-1]}, columns]"
            )
        arrays.check_strides(self.values, "values")
        dtype, shape = arrays.dtype_of(self.values), tuple(self.values.shape)
        if (self.lower is None) != (self.upper is None):
            raise ValueError("lower, upper: got one of the two, expected both or neither")
        for name, side in (("volumes", shape[:1]), ("variance", shape[:1]), ("lower", shape), ("upper", shape)):
            if getattr(self, name) is not None:
                arrays.check_like(getattr(self, name), name, side, dtype, self.values)
        arrays.check_like(self.columns, "columns", tuple(self.columns.shape), "int64", self.values)
        if len(self.columns) and not (int(self.columns.min()) >= 0 and int(self.columns.max()) < shape[1]):
            raise ValueError(f"columns: got {self.columns.tolist()}, expected numbers from 0 to {shape[1] - 1}")

    def arguments(self, multiplier: F64, bounded: bool = True) -> tuple[Any, ...]:
        """What the compiled kernels take first; multiplier: float64 [segments, k]."""
        bounds = (self.lower, self.upper) if bounded else (None, None)
        nu = arrays.place(np.ascontiguousarray(multiplier), self.values)
        return self.plan.placed(self.values), self.values, self.columns, self.volumes, self.variance, bounds, nu


@dataclass(frozen=True)
class Conserved:
    """How the balances came out: all float64 [segments, k].

    multiplier: nu; defect: what is left of each prescribed sum (0 where none is), in its unit; size: sum |V y|
    change: largest change in standard deviations
    """

    multiplier: F64
    defect: F64
    size: F64
    change: F64


def conserve_sums(balance: Balance, multiplier: F64, backend: arrays.Backend = "auto", *, bounded: bool = True) -> F64:
    """The sums of the changed values; those of several ranks are combined by `combine_sums`.

    multiplier: float64 [segments, k]
    Returns: float64 [segments, k, 5]: sum V y' as high + low, sum |V y'|, sum V^2 v of the points at no bound, and
        the largest V^2 v of them; y' = clip(y + nu V v, lower, upper), points with V v = 0 as they are.
    """
    chosen = arrays.choose(balance.values, backend)
    k, plan = len(balance.columns), balance.plan
    if chosen == "numpy":
        return _numpy_sums(balance, multiplier, bounded)
    parts = arrays.empty((len(plan.chunk_segment), k, 5), "float64", balance.values)
    sums = arrays.empty((plan.segments, k, 5), "float64", balance.values)
    arguments = balance.arguments(multiplier, bounded)
    arrays.call("conserve_sums", balance.values, chosen == "reference", *arguments, parts, sums)
    return np.asarray(sums.cpu() if arrays.is_tensor(sums) else sums)


def conserve_apply(balance: Balance, multiplier: F64, backend: arrays.Backend = "auto") -> None:
    """Write y' = clip(y + nu V v, lower, upper) into the values; points with V v = 0 stay as they are to the bit.

    multiplier: float64 [segments, k]
    """
    chosen = arrays.choose(balance.values, backend)
    if chosen == "numpy":
        changed, _free = _numpy_changed(balance, multiplier, True)
        values, at = arrays.host(balance.values), arrays.host(balance.columns)
        values[:, at] = changed
        return
    arrays.call("conserve_apply", balance.values, chosen == "reference", *balance.arguments(multiplier))


def combine_sums(parts: list[F64]) -> F64:
    """The sums over all ranks: float64 [segments, k, 5] each, in the order of the ranks."""
    whole = np.asarray(parts, dtype=np.longdouble)
    total = whole.sum(axis=0)
    exact = total[..., HIGH] + total[..., LOW]
    out: F64 = total.astype(np.float64)
    out[..., HIGH] = exact
    out[..., LOW] = exact - out[..., HIGH]
    out[..., LARGEST] = whole[..., LARGEST].max(axis=0)
    return out


@metered
def conserve(
    balance: Balance, totals: F64, whole: F64 | None = None, combine: Callable[[F64], F64] | None = None,
    backend: arrays.Backend = "auto",
) -> Conserved:  # fmt: skip
    """Restore prescribed sums by the smallest change, weighted with the variances; in place.

    minimise sum d^2 / v subject to sum_(i in g) V (y + d) = totals[g], sum of all = whole, lower <= y + d <= upper

    totals: float64 [segments, k], NaN where a segment has no prescribed sum
    whole: float64 [k], the sum over all segments, NaN or None: not prescribed; met by the segments without their own
    combine: adds the sums of all ranks (see `combine_sums`); called equally often on all ranks
    Collective: yes, if `combine` is.
    """
    combine = combine or (lambda sums: sums)
    target = _Target(np.asarray(totals, np.float64), whole)
    nu = np.zeros_like(target.totals)
    bounded = balance.lower is not None
    slope = None
    if bounded:
        slope = target.stiffness(combine(conserve_sums(balance, nu, backend, bounded=False)))
    low, high = np.full_like(nu, -np.inf), np.full_like(nu, np.inf)
    for _ in range(MOST_STEPS if bounded else 3):
        sums = combine(conserve_sums(balance, nu, backend))
        defect, stiffness = target.defect(sums), target.stiffness(sums)
        size = sums[..., SIZE] + np.abs(np.where(target.fixed, target.totals, 0.0))
        if (np.abs(defect) <= CLOSE * size).all():
            break
        low, high = np.where(defect > 0.0, nu, low), np.where(defect < 0.0, nu, high)
        safe = stiffness if slope is None else np.where(stiffness > 0.0, stiffness, slope)
        step = np.divide(defect, safe, out=np.zeros_like(nu), where=safe > 0.0)
        if not (nu + step != nu).any():
            break
        new = nu + step
        outside = ~((new > low) & (new < high)) & np.isfinite(low) & np.isfinite(high) & (step != 0.0)
        nu = np.where(outside, 0.5 * np.where(outside, low, 0.0) + 0.5 * np.where(outside, high, 0.0), new)
    sums = combine(conserve_sums(balance, nu, backend))
    conserve_apply(balance, nu, backend)
    return Conserved(nu, target.defect(sums), sums[..., SIZE], np.abs(nu) * np.sqrt(sums[..., LARGEST]))


class _Target:
    """Prescribed sums: of segments, and of all segments together."""

    def __init__(self, totals: F64, whole: F64 | None) -> None:
        self.totals = totals
        self.fixed = np.isfinite(totals)
        self.whole = np.full(totals.shape[1], np.nan) if whole is None else np.asarray(whole, np.float64)

    def defect(self, sums: F64) -> F64:
        """Prescribed minus present sum, float64 [segments, k]; segments without their own share that of the whole."""
        exact = sums[..., HIGH].astype(np.longdouble) + sums[..., LOW]
        own = np.where(self.fixed, self.totals - exact, 0.0)
        rest = self.whole - np.where(self.fixed, self.totals, exact).sum(axis=0)
        shared = np.where(np.isfinite(self.whole), rest, 0.0)
        return np.asarray(np.where(self.fixed, own, shared), dtype=np.float64)

    def stiffness(self, sums: F64) -> F64:
        """What a change of the multiplier moves, float64 [segments, k]."""
        mine = sums[..., STIFFNESS]
        shared = np.where(self.fixed, 0.0, mine).sum(axis=0)
        return np.asarray(np.where(self.fixed, mine, shared))


def _numpy_changed(balance: Balance, multiplier: F64, bounded: bool) -> tuple[Any, Any]:
    """(changed values [n, k], whether each is free and at no bound [n, k])."""
    values, at, volumes, variance, lower, upper = (
        arrays.host(a)
        for a in (balance.values, balance.columns, balance.volumes, balance.variance, balance.lower, balance.upper)
    )
    plan = balance.plan
    owner = np.repeat(plan.chunk_segment, np.diff(plan.chunks))
    segment = np.empty_like(owner)
    segment[slice(None) if plan.entries is None else plan.entries] = owner
    y = values[:, at]
    weight = volumes.astype(np.float64) * variance
    moved = (y.astype(np.float64) + multiplier[segment] * weight[:, None]).astype(y.dtype)
    free = np.ones(y.shape, dtype=bool)
    if bounded and lower is not None:
        kept = np.where(moved < lower[:, at], lower[:, at], np.where(moved > upper[:, at], upper[:, at], moved))
        free = ~((moved < lower[:, at]) | (moved > upper[:, at]))
        moved = kept
    exact = (weight == 0.0)[:, None]
    return np.where(exact, y, moved), free & ~exact


def _numpy_sums(balance: Balance, multiplier: F64, bounded: bool) -> F64:
    """The NumPy reference; its sums are made in extended precision."""
    changed, free = _numpy_changed(balance, multiplier, bounded)
    plan = balance.plan
    volumes = arrays.host(balance.volumes).astype(np.float64)[:, None]
    product = volumes * changed
    stiffness = np.where(free, volumes * (volumes * arrays.host(balance.variance)[:, None]), 0.0)
    sums = np.zeros((plan.segments, changed.shape[1], 5))
    ends = plan.chunks[plan.segment_chunks]
    for g in range(plan.segments):
        rows: Any = slice(ends[g], ends[g + 1])
        rows = rows if plan.entries is None else plan.entries[rows]
        exact = product[rows].sum(axis=0, dtype=np.longdouble)
        sums[g, :, HIGH] = exact
        sums[g, :, LOW] = exact - sums[g, :, HIGH]
        sums[g, :, SIZE] = np.abs(product[rows]).sum(axis=0)
        sums[g, :, STIFFNESS] = stiffness[rows].sum(axis=0)
        sums[g, :, LARGEST] = stiffness[rows].max(axis=0, initial=0.0)
    return sums
