"""CUDA's conserve, gate_select and admissible on the host, at the edges of their chunks, parts and warps.

With a GPU, test_NAME.py runs them there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels
from neuroscale_couple.kernels import Balance, Plan, arrays
from neuroscale_couple.kernels.conserve import CHUNK, conserve_apply, conserve_sums
from neuroscale_couple.kernels.gate_select import DEVICE_ALONE, DEVICE_PART, DEVICE_PARTS, device_parts
from tests.kernels.host_cuda import cuda_on_host
from tests.kernels.test_cuda_on_host import order, same

__all__ = ["order"]  # a fixture
pytestmark = pytest.mark.timeout(400)  # they compile
Floats = npt.NDArray[Any]
DTYPES = [np.float32, np.float64]
CODES = (6, 5)


# --- conserve -------------------------------------------------------------------------------------------------


def balance(
    counts: list[int],
    dtype: Any,
    *,
    bounded: bool = False,
    shuffled: bool = False,
    chunk: int = CHUNK,
    columns: int = 2,
) -> Balance:
    """Groups of these many points (one group: in order, unless shuffled); a fifth has no variance, some no volume."""
    n = sum(counts)
    rng = np.random.default_rng(n)
    groups = np.repeat(np.arange(len(counts)), counts)
    if shuffled:
        groups = rng.permutation(groups)
    plan = Plan.of(n, groups if shuffled or len(counts) > 1 else None, len(counts), chunk)
    values = (rng.standard_normal((n, 4)) * 10.0 ** rng.integers(-3, 4, (n, 1))).astype(dtype)
    volumes, variance = rng.random(n).astype(dtype), rng.random(n).astype(dtype)
    variance[rng.random(n) < 0.2] = 0.0
    volumes[rng.random(n) < 0.1] = 0.0
    sides = ((values - dtype(0.1)).astype(dtype), (values + dtype(0.3)).astype(dtype)) if bounded else (None, None)
    at = np.array([3, 0, 2, 1][:columns], np.int64)
    return Balance(plan, values, at, volumes, variance, *sides)


def check_conserve(b: Balance) -> None:
    """Sums and change, compiled and reference."""
    nu = np.random.default_rng(1).standard_normal((b.plan.segments, len(b.columns)))
    same([conserve_sums(b, nu, "compiled")], [conserve_sums(b, nu, "reference")])
    mine, theirs = (replace(b, values=b.values.copy()) for _ in range(2))
    conserve_apply(mine, nu, "compiled")
    conserve_apply(theirs, nu, "reference")
    assert mine.values.tobytes() == theirs.values.tobytes()


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounded", [False, True])
def test_sums_and_change_at_the_edges_of_lanes_and_chunks(dtype: Any, bounded: bool) -> None:
    for n in (0, 1, 7, 8, 9, 63, 64, 65, 255, 256, 257, 511, 512, 513, 5 * 512 - 1, 5 * 512 + 1):
        check_conserve(balance([n], dtype, bounded=bounded))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("columns", [0, 1, 3, 4])
def test_any_number_of_columns(columns: int) -> None:
    check_conserve(balance([100, 1300], np.float64, columns=columns, bounded=True))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 31, 32, 33, 255, 256, 257, 600])
def test_segments_of_few_and_of_many_parts(parts: int, dtype: Any) -> None:
    """A thread adds up to four parts, a block more; chunks of two points make many."""
    check_conserve(balance([2 * parts - 1, 0, 5, 2 * parts], dtype, chunk=2))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("bounded", [False, True])
def test_many_tiny_groups_and_a_huge_one_in_any_order(bounded: bool) -> None:
    counts = [i % 4 for i in range(700)]
    counts[311] = 4000
    check_conserve(balance(counts, np.float64, bounded=bounded, shuffled=True, chunk=16))
    check_conserve(balance(counts, np.float32, bounded=bounded, chunk=16))


def test_a_thread_for_each_of_many_segments() -> None:
    """More segments than blocks, and more than a block has threads."""
    with cuda_on_host():
        check_conserve(balance([1] * 1500 + [40] + [0] * 20, np.float64, chunk=4, shuffled=True))


@pytest.mark.usefixtures("order")
def test_a_block_adds_up_one_long_segment_after_the_other() -> None:
    check_conserve(balance([0] * 514 + [70, 90], np.float64, chunk=1))


@pytest.mark.usefixtures("order")
def test_sums_that_are_not_finite_agree_too() -> None:
    b = balance([900, 40], np.float64)
    b.values[::100] = np.inf
    b.values[7] = np.nan
    check_conserve(b)


@given(
    counts=st.lists(st.integers(0, 90), min_size=1, max_size=6), chunk=st.integers(1, 40), bounded=st.booleans(),
    shuffled=st.booleans(), dtype=st.sampled_from(DTYPES), columns=st.integers(1, 4),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_groups(counts: list[int], chunk: int, bounded: bool, shuffled: bool, dtype: Any, columns: int) -> None:
    with cuda_on_host():
        check_conserve(balance(counts, dtype, bounded=bounded, shuffled=shuffled, chunk=chunk, columns=columns))


# --- gate_select ----------------------------------------------------------------------------------------------


def select(score: Floats, knots: int, before: Floats, threshold: float, parts: int, reference: bool) -> tuple[Any, ...]:
    """(refused rows, reasons, errors) with a curve of so many knots, in so many parts."""
    rng = np.random.default_rng(3)
    curve = np.sort(rng.random(knots)).astype(score.dtype), rng.random(knots).astype(score.dtype)
    if 0 < knots <= len(score):
        score[:knots] = curve[0]  # exactly on knots
    reason, error = before.copy(), np.full_like(score, -1.0)
    rows, work = np.full(len(score), -7), np.full(parts + 1, -7)
    arrays.call("gate_select", score, reference, score, threshold, *curve, *CODES, reason, error, rows, work)
    return rows[: work[parts]], reason, error


def check_gate(n: int, dtype: Any, parts: int, knots: int = 20, share: float = 0.1, threshold: float = 0.8) -> int:
    """How many points were refused; `share`: of points that are refused already, and a bit of NaN and inf."""
    rng = np.random.default_rng(n)
    score = rng.random(n).astype(dtype)
    score[rng.random(n) < 0.1 * share] = np.nan
    score[rng.random(n) < 0.1 * share] = np.inf
    before = np.where(rng.random(n) < share, 4, 0).astype(np.uint8)
    threshold = float(dtype(threshold))
    got = select(score, knots, before, threshold, parts, False)
    same(got, select(score, knots, before, threshold, parts, True))
    np.testing.assert_array_equal(got[0], np.flatnonzero(got[1]))
    return len(got[0])


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4097, 3 * 2048, 3 * 2048 + 1])
def test_rows_are_listed_in_order_at_the_edges_of_warps_and_tiles(n: int, parts: int, dtype: Any) -> None:
    check_gate(n, dtype, parts)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("parts", [2, 5, 64, 300])
def test_any_number_of_parts_gives_the_same(parts: int) -> None:
    """Also more than there are points, and more than a block has threads to add them up."""
    for n in (0, 3, 700) if parts < 300 else (200,):
        check_gate(n, np.float64, parts)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("parts", [1, 4])
def test_nobody_and_everybody_refused(parts: int) -> None:
    assert check_gate(5000, np.float64, parts, share=0.0, threshold=np.inf) == 0
    assert check_gate(5000, np.float64, parts, threshold=-np.inf) == 5000


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("knots", [0, 1, 2, 512, 513, 1025])
def test_curves_of_any_length(knots: int, dtype: Any) -> None:
    """Copied into shared memory up to 12 KB: 512 knots of float64, 1024 of float32."""
    for parts in (1, 2):
        check_gate(1500, dtype, parts, knots)


def test_the_parts_of_a_device_are_few_enough_and_long_enough() -> None:
    assert [device_parts(n) for n in (0, 1000, DEVICE_ALONE)] == [1, 1, 1]
    assert device_parts(DEVICE_ALONE + 1) == 3 and device_parts(100 * DEVICE_PART) == 100
    assert device_parts(10**9) == DEVICE_PARTS


# --- admissible -----------------------------------------------------------------------------------------------


def tensors(n: int, d: int, dtype: Any, share: float, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """(tensors, lower, upper); `share` of them violate, half of the others are not quite symmetric."""
    root, more = rng.standard_normal((2, n, d, d))
    lower = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(d)
    width = more @ more.transpose(0, 2, 1) + 0.1 * np.eye(d)
    lower, width = (0.5 * (a + a.transpose(0, 2, 1)).astype(dtype) for a in (lower, width))
    upper = lower + width
    t = 0.5 * (lower + upper)
    t[rng.random(n) < 0.5, 0, d - 1] *= dtype(1.0 + 1e-6)
    wrong = rng.random(n) < share
    t[wrong] += (10.0 * rng.standard_normal((np.count_nonzero(wrong), d, d))).astype(dtype)
    return t, lower, upper


def check_admissible(t: Floats, *bounds: Floats, first: int = 0, wanted: Floats | None = None) -> Floats:
    """What was found of each tensor."""
    done = []
    for backend in ("compiled", "reference"):
        copy = t.copy()
        out = np.full(len(t), 77, np.uint8)
        kernels.admissible(copy, *bounds, first=first, wanted=wanted, backend=backend, out=out)  # type: ignore[arg-type]
        done.append((copy, out))
    same(*done)
    return done[0][1]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("d", "n"), [(2, 700), (3, 300), (6, 150)])
def test_tensors_of_which_none_some_or_all_violate(d: int, n: int, share: float, dtype: Any) -> None:
    t, lower, upper = tensors(n, d, dtype, share, np.random.default_rng(d))
    for bounds in ((lower, upper), ()):
        found = check_admissible(t, *bounds)
        assert (found == 2).any() == (share > 0.0) and ((found == 1).any() or share == 1.0)
        assert (found <= 2).all()


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("d", [2, 3, 6])
def test_tensors_at_the_edges_of_warps_and_blocks(d: int) -> None:
    for n in (0, 1, 31, 32, 33, 127, 128, 129, 257):
        check_admissible(*tensors(n, d, np.float64, 0.3, np.random.default_rng(n)))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_unwanted_tensors_stay_whatever_they_hold(d: int, share: float) -> None:
    rng = np.random.default_rng(d)
    t, lower, upper = tensors(200, d, np.float64, 0.2, rng)
    wanted = (rng.random(len(t)) < share).astype(np.uint8)
    t[::7, 0, d - 1] = np.nan
    t[::11, d - 1, 0] = -np.inf
    for bounds in ((lower, upper), ()):
        found = check_admissible(t, *bounds, wanted=wanted)
        assert (found[wanted == 0] == 0).all()
        assert (found == 3).any() == (share > 0.0)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "columns", "first"), [(2, 5, 3), (3, 4, 0), (6, 7, 1), (6, 13, 6)])
def test_blocks_of_wider_rows(d: int, columns: int, first: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    square, lower, upper = tensors(70, d, dtype, 0.3, rng)
    t = rng.standard_normal((70, d, columns)).astype(dtype)
    t[:, :, first : first + d] = square
    check_admissible(t, lower, upper, first=first)
    check_admissible(t, first=first)


@pytest.mark.usefixtures("order")
def test_more_violating_tensors_than_a_block_lists_at_once() -> None:
    """The list of a block fills, is worked off, and fills again; 396 blocks take 256 tensors each in turn."""
    n = 396 * 256 * 4 + 3000
    t = np.tile(np.eye(2, dtype=np.float32), (n, 1, 1))
    rng = np.random.default_rng(0)
    at = np.concatenate([np.flatnonzero(rng.random(n) < 0.002), np.arange(1000), n - 1 - np.arange(1500)])
    t[at, 0, 0] = -1.0
    found = check_admissible(t)
    np.testing.assert_array_equal(np.flatnonzero(found), np.unique(at))


@given(n=st.integers(0, 80), d=st.sampled_from([2, 3, 6]), bounded=st.booleans(), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_any_tensors(n: int, d: int, bounded: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, lower, upper = tensors(n, d, DTYPES[seed % 2], rng.random(), rng)
    wanted = (rng.random(n) < 0.8).astype(np.uint8) if seed % 3 else None
    with cuda_on_host():
        check_admissible(t, *((lower, upper) if bounded else ()), wanted=wanted)
