"""The smallest change that restores sums: against dense KKT systems, with groups, a whole, bounds and ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels
from neuroscale_couple.kernels import Balance, Plan
from neuroscale_couple.kernels.conserve import conserve_apply, conserve_sums

Floats = npt.NDArray[Any]
BACKENDS = ["compiled", "reference", "numpy", "auto"]


def balance(
    n: int, seed: int, *, dtype: Any = np.float64, segments: int = 0, bounded: bool = False, chunk: int = 7
) -> Balance:
    """Random points; a third of them exact."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.0, 10.0, (n, 3)).astype(dtype)
    variance = np.where(rng.random(n) < 0.3, 0.0, rng.uniform(0.1, 2.0, n)).astype(dtype)
    groups = rng.integers(0, segments, n) if segments else None
    plan = Plan.of(n, groups, max(segments, 1), chunk)
    width = rng.uniform(0.5, 5.0, (n, 3))
    lower, upper = ((values - width).astype(dtype), (values + width).astype(dtype)) if bounded else (None, None)
    volumes = rng.uniform(0.1, 2.0, n).astype(dtype)
    return Balance(plan, values, np.array([0, 2]), volumes, variance, lower, upper)


def sums_of(b: Balance, rows: Any = slice(None)) -> list[float]:
    v = b.volumes[rows].astype(np.float64)
    return [math.fsum(v * b.values[rows, j].astype(np.float64)) for j in b.columns]


@given(
    n=st.integers(0, 60), segments=st.integers(0, 4), bounded=st.booleans(), seed=st.integers(0, 999),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_compiled_and_reference_agree_bit_for_bit(n: int, segments: int, bounded: bool, seed: int, dtype: Any) -> None:
    b = balance(n, seed, dtype=dtype, segments=segments, bounded=bounded)
    nu = np.random.default_rng(seed).normal(size=(b.plan.segments, 2))
    one, other, third = (conserve_sums(b, nu, name) for name in ("compiled", "reference", "numpy"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one[..., 0] + one[..., 1], third[..., 0] + third[..., 1], rtol=1e-14, atol=1e-12)
    np.testing.assert_allclose(one[..., 2:], third[..., 2:], rtol=1e-13)
    results = []
    for name in ("compiled", "reference", "numpy"):
        copy = replace(b, values=b.values.copy())
        conserve_apply(copy, nu, name)  # type: ignore[arg-type]
        results.append(copy.values)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    exact = b.variance == 0.0
    np.testing.assert_array_equal(results[0][exact], b.values[exact])
    np.testing.assert_array_equal(results[0][:, 1], b.values[:, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: Any) -> None:
    """Variances 1 : 4 share a change of 5 as 1 : 4; an exact value stays; volumes count."""
    values = np.array([[1.0], [2.0], [7.0]])
    b = Balance(Plan.of(3), values, np.array([0]), np.ones(3), np.array([1.0, 4.0, 0.0]))
    done = kernels.conserve(b, np.array([[15.0]]), backend=backend)
    assert values.tolist() == [[2.0], [6.0], [7.0]]
    assert done.multiplier.tolist() == [[1.0]] and done.defect.tolist() == [[0.0]]
    assert done.change.tolist() == [[2.0]]  # nu V sqrt(v) of the second


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_are_kept_and_the_others_take_over(backend: Any) -> None:
    values = np.zeros((3, 1))
    lower, upper = np.full((3, 1), -10.0), np.array([[1.0], [10.0], [10.0]])
    b = Balance(Plan.of(3), values, np.array([0]), np.ones(3), np.array([2.0, 1.0, 1.0]), lower, upper)
    done = kernels.conserve(b, np.array([[7.0]]), backend=backend)
    np.testing.assert_allclose(values, [[1.0], [3.0], [3.0]], rtol=1e-14)
    assert abs(done.defect[0, 0]) <= 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_out_of_reach_of_the_bounds_leaves_a_defect(backend: Any) -> None:
    b = balance(30, 3, bounded=True)
    done = kernels.conserve(b, np.full((1, 2), 1e5), backend=backend)
    free = b.variance != 0.0
    np.testing.assert_array_equal(b.values[free][:, b.columns], b.upper[free][:, b.columns])
    np.testing.assert_allclose(done.defect[0], [1e5 - s for s in sums_of(b)], rtol=1e-12)


@given(seed=st.integers(0, 999), bounded=st.booleans())
@settings(deadline=None, max_examples=40)
def test_sums_of_groups_and_of_the_whole_at_once(seed: int, bounded: bool) -> None:
    """Three groups with sums of their own, two without; these meet the sum of the whole."""
    b = balance(200, seed, segments=5, bounded=bounded)
    before = b.values.copy()
    entries = [np.flatnonzero(_groups(b) == g) for g in range(5)]
    totals = np.full((5, 2), np.nan)
    for g in (0, 2, 3):
        totals[g] = np.array(sums_of(b, entries[g])) + [1.0, -2.0]
    whole = np.array(sums_of(b)) + [4.0, -5.0]
    done = kernels.conserve(b, totals, whole)
    size = np.abs(b.volumes[:, None] * b.values[:, b.columns]).sum(axis=0)
    for g in (0, 2, 3):
        assert (np.abs(sums_of(b, entries[g]) - totals[g]) <= 1e-13 * size).all()
    assert (np.abs(sums_of(b) - whole) <= 1e-13 * size).all()
    assert done.multiplier[1].tolist() == done.multiplier[4].tolist()
    if bounded:
        assert (b.values >= b.lower - 1e-300).all() and (b.values <= b.upper).all()
    else:
        kkt(b, before, entries, totals, whole)


def _groups(b: Balance) -> Floats:
    owner = np.repeat(b.plan.chunk_segment, np.diff(b.plan.chunks))
    groups = np.empty(len(owner), np.int64)
    groups[b.plan.entries] = owner
    return groups


def kkt(b: Balance, before: Floats, entries: list[Floats], totals: Floats, whole: Floats) -> None:
    """The dense system: minimise sum d^2 / v subject to the four sums."""
    free = np.flatnonzero(b.variance)
    rows = [np.isin(free, entries[g]) * b.volumes[free] for g in (0, 2, 3)] + [b.volumes[free]]
    a = np.array(rows)
    for at, j in enumerate(b.columns):
        first = [totals[g, at] - math.fsum(b.volumes[entries[g]] * before[entries[g], j]) for g in (0, 2, 3)]
        right = np.array([*first, whole[at] - math.fsum(b.volumes * before[:, j])])
        scaled = a * b.variance[free]
        change = scaled.T @ np.linalg.solve(scaled @ a.T, right)
        np.testing.assert_allclose(b.values[free, j] - before[free, j], change, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bounded", [False, True])
def test_the_sums_of_ranks_combine_to_those_of_one(bounded: bool) -> None:
    whole = balance(100, 8, bounded=bounded, chunk=16)
    totals = np.array([sums_of(whole)]) + 3.0
    parts = []
    for rows in (slice(0, 37), slice(37, 100)):
        sides = (None, None) if not bounded else (whole.lower[rows], whole.upper[rows])
        n = rows.stop - rows.start
        parts.append(
            Balance(
                Plan.of(n), whole.values[rows].copy(), whole.columns, whole.volumes[rows], whole.variance[rows], *sides
            )
        )
    nu = np.array([[0.3, -0.2]])
    together = kernels.combine_sums([conserve_sums(p, nu) for p in parts])
    np.testing.assert_allclose(together, conserve_sums(whole, nu), rtol=1e-12, atol=1e-12)
    kernels.conserve(whole, totals)
    assert (np.abs(sums_of(whole) - totals) <= 1e-13 * np.abs(whole.values).sum()).all()


def test_the_sum_is_exact_beyond_double_precision() -> None:
    """Against math.fsum, with terms that cancel over sixteen decades."""
    rng = np.random.default_rng(1)
    n = 50_000
    values = rng.standard_normal((n, 1)) * 10.0 ** rng.integers(-8, 8, (n, 1))
    b = Balance(Plan.of(n), values, np.array([0]), np.ones(n), np.zeros(n))
    sums = conserve_sums(b, np.zeros((1, 1)))
    assert sums[0, 0, 0] + sums[0, 0, 1] == math.fsum(values[:, 0])
    assert abs(math.fsum([*values[:, 0], -sums[0, 0, 0], -sums[0, 0, 1]])) <= 1e-25 * np.abs(values).sum()


def two_sum(one: list[float], other: list[float]) -> list[float]:
    """(high, low) of both, TwoSum of the highs."""
    total = one[0] + other[0]
    part = total - one[0]
    error = (one[0] - (total - part)) + (other[0] - part)
    return [total, (one[1] + error) + other[1]]


def in_lanes(terms: list[list[float]], lanes: int) -> list[float]:
    """Term p to lane p mod lanes in order; then lane i takes i + lanes / 2, i + lanes / 4 and so on."""
    sums = [[0.0, 0.0] for _ in range(lanes)]
    for p, term in enumerate(terms):
        sums[p % lanes] = two_sum(sums[p % lanes], term)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [two_sum(*pair) for pair in zip(sums[:half], sums[half:], strict=True)]
    return sums[0]


@pytest.mark.parametrize("n", [1, 50, 3 * 300, 3 * 700])
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_the_order_of_the_additions_is_that_of_the_specification(backend: Any, n: int) -> None:
    """Eight lanes in a chunk, 256 in a segment; with numbers of thirty decades, whose sums depend on the order."""
    rng = np.random.default_rng(n)
    values = rng.standard_normal((n, 1)) * 10.0 ** rng.integers(-15, 15, (n, 1))
    plan = Plan.of(n, rng.integers(0, 2, n), 3, chunk=17 if n < 100 else 3)
    sums = conserve_sums(Balance(plan, values, np.array([0]), np.ones(n), np.zeros(n)), np.zeros((3, 1)), backend)
    for g in range(3):
        chunks = range(plan.segment_chunks[g], plan.segment_chunks[g + 1])
        rows = [plan.entries[plan.chunks[c] : plan.chunks[c + 1]] for c in chunks]
        parts = [in_lanes([[float(y), 0.0] for y in values[r, 0]], 8) for r in rows]
        assert sums[g, 0, :2].tolist() == in_lanes(parts, 256)


def test_no_points_one_point_and_empty_groups() -> None:
    none = Balance(Plan.of(0), np.zeros((0, 2)), np.array([0]), np.zeros(0), np.zeros(0))
    done = kernels.conserve(none, np.array([[1.0]]))
    assert done.defect.tolist() == [[1.0]] and done.change.tolist() == [[0.0]]
    one = Balance(Plan.of(1, np.array([2]), 4), np.array([[1.0]]), np.array([0]), np.ones(1), np.ones(1))
    assert kernels.conserve(one, np.array([[np.nan], [np.nan], [3.0], [np.nan]])).defect.tolist() == [[0.0]] * 4
    assert one.values.tolist() == [[3.0]]


def test_bad_input_is_refused_with_got_and_expected() -> None:
    values = np.zeros((4, 2))
    good = (values, np.array([0]), np.ones(4), np.ones(4))
    for arguments, text in (
        ((np.zeros((3, 2)), *good[1:]), r"^values: got shape \(3, 2\), expected \[4, columns\]"),
        ((np.asfortranarray(np.ones((4, 2))), *good[1:]), r"^values: got strides \(1, 4\)"),
        ((values, np.array([2]), *good[2:]), r"^columns: got \[2\], expected numbers from 0 to 1"),
        ((values, np.array([0], np.int32), *good[2:]), r"^columns: got int32 \(1,\), expected int64 \(1,\)"),
        ((*good[:2], np.ones(3), np.ones(4)), r"^volumes: got float64 \(3,\), expected float64 \(4,\)"),
        ((*good, values, None), "^lower, upper: got one of the two, expected both or neither"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            Balance(Plan.of(4), *arguments)
    with pytest.raises(ValueError, match=r"^groups: got \(2,\), expected \(2,\) with numbers from 0 to 1"):
        Plan.of(2, np.array([0, 2]), 2)
    shared = Balance(Plan.of(4), values, np.array([0]), values[:2].reshape(-1), np.ones(4))
    with pytest.raises(ValueError, match=r"^values: got memory that overlaps volumes, expected memory of its own"):
        conserve_apply(shared, np.zeros((1, 1)))


@pytest.mark.needs("cuda")
def test_cuda_agrees_bit_for_bit() -> None:
    b = balance(1000, 5, segments=3, bounded=True)
    names = ("values", "columns", "volumes", "variance", "lower", "upper")
    device = Balance(b.plan, *(torch.from_numpy(getattr(b, name).copy()).cuda() for name in names))
    nu = np.random.default_rng(0).normal(size=(3, 2))
    np.testing.assert_array_equal(conserve_sums(device, nu), conserve_sums(b, nu))
    conserve_apply(device, nu)
    conserve_apply(b, nu)
    np.testing.assert_array_equal(device.values.cpu().numpy(), b.values)
