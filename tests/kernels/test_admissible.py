"""Small tensors projected onto the admissible ones, against NumPy's eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels

Floats = npt.NDArray[Any]
BACKENDS = ["compiled", "reference", "numpy", "auto"]


def bounds_of(n: int, d: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    root = rng.normal(size=(n, d, d))
    lower = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(d)
    width = rng.normal(size=(n, d, d))
    upper = lower + width @ width.transpose(0, 2, 1) + 0.1 * np.eye(d)
    return tuple(np.ascontiguousarray(0.5 * (m + m.transpose(0, 2, 1))) for m in (lower, upper))  # type: ignore[return-value]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats, Floats, Floats]:
    """Tensors (some admissible, some lopsided, some far out), bounds, and who is wanted."""
    n, d = draw(st.integers(0, 30)), draw(st.sampled_from([2, 3, 6]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    lower, upper = bounds_of(n, d, rng)
    share = rng.uniform(0.05, 0.95, (n, 1, 1))
    t = lower + share * (upper - lower)
    kind = rng.integers(0, 3, n)
    t[kind == 1] += 0.01 * rng.normal(size=(np.count_nonzero(kind == 1), d, d))
    t[kind == 2] += 10.0 * rng.normal(size=(np.count_nonzero(kind == 2), d, d))
    return t, lower, upper, (rng.random(n) < 0.8).astype(np.uint8)


def eigenvalues(t: Floats) -> Floats:
    return np.asarray(np.linalg.eigvalsh(t.astype(np.float64)))


@given(case=cases(), bounded=st.booleans())
@settings(deadline=None, max_examples=80)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_is_admissible_and_the_others_stay_to_the_bit(backend: Any, case: Any, bounded: bool) -> None:
    before, lower, upper, wanted = case
    t = before.copy()
    sides = (lower, upper) if bounded else (None, None)
    changed = kernels.admissible(t, *sides, wanted=wanted, backend=backend)
    same = (changed == 0) | (wanted == 0)
    np.testing.assert_array_equal(t[same], before[same])
    done = t[wanted == 1]
    np.testing.assert_array_equal(done, done.transpose(0, 2, 1))
    size = np.abs(before).max(initial=1.0)
    if bounded:
        assert (eigenvalues(done - lower[wanted == 1]) >= -1e-7 * size).all()
        assert (eigenvalues(upper[wanted == 1] - done) >= -1e-7 * size).all()
    else:
        assert (eigenvalues(done) > 0.0).all()
    again = t.copy()
    kernels.admissible(again, *sides, wanted=wanted, slack=1e-7, backend=backend)
    np.testing.assert_allclose(again, t, rtol=0, atol=1e-7 * size)


@given(case=cases(), bounded=st.booleans(), dtype=st.sampled_from([np.float32, np.float64]))
@settings(deadline=None, max_examples=60)
def test_backends_agree(case: Any, bounded: bool, dtype: Any) -> None:
    before, lower, upper, wanted = (a if a.dtype == np.uint8 else a.astype(dtype) for a in case)
    lower, upper = (0.5 * (b + b.transpose(0, 2, 1)) for b in (lower, upper))
    sides = (lower, upper) if bounded else (None, None)
    results = {}
    for backend in ("compiled", "reference", "numpy"):
        t = before.copy()
        results[backend] = (t, kernels.admissible(t, *sides, wanted=wanted, backend=backend))  # type: ignore[arg-type]
    for got, expected in zip(results["compiled"], results["reference"], strict=True):
        np.testing.assert_array_equal(got, expected)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(
        results["compiled"][0], results["numpy"][0], rtol=0, atol=2e4 * eps * np.abs(before).max(initial=1.0)
    )
    np.testing.assert_array_equal(results["compiled"][1], results["numpy"][1])


@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("bounded", [True, False])
def test_many_that_violate_in_a_row_and_bounds_that_touch_agree_with_the_reference(d: int, bounded: bool) -> None:
    """More than a part of the batch: eight at a time and what is left over, bounds with and without any width."""
    rng = np.random.default_rng(d)
    n = 1003
    lower, upper = bounds_of(n, d, rng)
    upper[::3] = lower[::3]
    upper[1::3, -1, :] = lower[1::3, -1, :]
    upper[1::3, :, -1] = lower[1::3, :, -1]
    before = lower + 0.5 * (upper - lower)
    before[300:721] += rng.normal(size=(421, d, d))
    before[333, 0, 0] = np.nan
    wanted = (np.arange(n) % 11 != 0).astype(np.uint8)
    results = []
    for backend in ("compiled", "reference"):
        t = before.copy()
        sides = (lower, upper) if bounded else (None, None)
        changed = kernels.admissible(t, *sides, wanted=wanted, backend=backend)  # type: ignore[arg-type]
        results.append((t.tobytes(), changed.tolist()))
    assert results[0] == results[1]
    assert results[0][1][333] == 3 and set(results[0][1][300:721]) >= {0, 2, 3}


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("least", [1e-6, 1e-10, 0.0])
def test_bounds_that_nearly_touch_in_some_directions_are_kept_in_the_others(backend: Any, least: float) -> None:
    """Tensor and bounds share their axes, so that the answer is known: each eigenvalue is clipped on its own."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(50, 6, 6)))[0]
    width = np.tile([0.3, least, 1.0, 0.7, least, 0.5], (50, 1))
    above = rng.normal(size=(50, 6))

    def along(values: Floats) -> Floats:
        t = np.einsum("nik,nk,njk->nij", axes, values, axes)
        return np.asarray(0.5 * (t + t.transpose(0, 2, 1)))

    lower = along(np.ones((50, 6)))
    upper, t = lower + along(width), lower + along(above)
    assert (kernels.admissible(t, lower, upper, backend=backend) == 2).all()
    np.testing.assert_allclose(t, lower + along(np.clip(above, 0.0, width)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: Any) -> None:
    """Bounds I and 3 I: the eigenvalues are clipped, the axes stay."""
    lower, upper = np.eye(2)[None].repeat(5, 0).copy(), 3.0 * np.eye(2)[None].repeat(5, 0)
    t = np.array(
        [
            [[2.0, 0.5], [0.5, 2.0]],  # inside
            [[5.0, 0.0], [0.0, 0.5]],  # both out
            [[2.0, 0.5], [0.3, 2.0]],  # inside but lopsided
            [[3.0, 2.0], [2.0, 3.0]],  # eigenvalues 5 and 1
            [[np.nan, 0.0], [0.0, 2.0]],
        ]
    )
    changed = kernels.admissible(t, lower, upper, backend=backend)
    assert changed.tolist() == [0, 2, 1, 2, 3]
    np.testing.assert_allclose(
        t[:4], [[[2, 0.5], [0.5, 2]], [[3, 0], [0, 1]], [[2, 0.4], [0.4, 2]], [[2, 1], [1, 2]]], atol=1e-12
    )
    assert np.isnan(t[4, 0, 0]) and t[4, 1, 1] == 2.0
    lone = np.array([[[1.0, 2.0], [2.0, 1.0]]])  # eigenvalues 3 and -1
    assert kernels.admissible(lone, lowest=0.1, backend=backend).tolist() == [2]
    np.testing.assert_allclose(np.linalg.eigvalsh(lone[0]), [0.3, 3.0], rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_left_and_named(backend: Any, value: float) -> None:
    t = np.eye(3)[None].repeat(20, 0).copy()
    t[11, 2, 2] = value
    before = t.copy()
    changed = kernels.admissible(t, backend=backend)
    assert np.flatnonzero(changed).tolist() == [11] and changed[11] == 3
    np.testing.assert_array_equal(t, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_of_wider_rows_is_projected_and_the_rest_left(backend: Any) -> None:
    """A tangent with a column that does not drive the answer, e.g. the temperature of a conductivity."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=(40, 2, 4))
    before = t.copy()
    kernels.admissible(t, first=1, backend=backend)
    np.testing.assert_array_equal(t[:, :, [0, 3]], before[:, :, [0, 3]])
    assert (np.linalg.eigvalsh(t[:, :, 1:3]) > 0.0).all()


def test_other_sides_go_through_numpy() -> None:
    t = np.random.default_rng(0).normal(size=(10, 4, 4))
    kernels.admissible(t)
    assert (np.linalg.eigvalsh(t) > 0.0).all()
    with pytest.raises(ValueError, match=r"^tensors: got shape \(10, 4, 4\) with first column 0, expected"):
        kernels.admissible(t, backend="compiled")


def test_bad_input_is_refused_with_got_and_expected() -> None:
    t = np.zeros((4, 3, 3))
    for arguments, text in (
        (
            (np.zeros((4, 3)),),
            r"^tensors: got shape \(4, 3\) with first column 0, expected \[tensors, d, columns\]",
        ),
        ((np.zeros((4, 3, 2)),), r"^tensors: got shape \(4, 3, 2\)"),
        ((t, t.copy()), "^lower, upper: got one of the two, expected both or neither"),
        ((t, t[:3].copy(), t[:3].copy()), r"^lower: got float64 \(3, 3, 3\), expected float64 \(4, 3, 3\)"),
        ((t, t, t.copy()), "^tensors: got memory that overlaps lower, expected memory of its own"),
        ((t[:, ::-1],), r"^tensors: got strides \(9, -3, 1\)"),
        ((t.astype(np.float16),), "^tensors: got dtype float16, expected float32 or float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            kernels.admissible(*arguments)
    with pytest.raises(ValueError, match=r"^wanted: got bool \(4,\), expected uint8 \(4,\)"):
        kernels.admissible(t, wanted=np.ones(4, bool))


@pytest.mark.needs("cuda")
def test_cuda_agrees_with_the_reference() -> None:
    rng = np.random.default_rng(0)
    for d in (2, 3, 6):
        lower, upper = bounds_of(100, d, rng)
        t = rng.normal(size=(100, d, d)) * 5.0
        on_device = torch.from_numpy(t).cuda()
        kernels.admissible(on_device, torch.from_numpy(lower).cuda(), torch.from_numpy(upper).cuda())
        kernels.admissible(t, lower, upper, backend="reference")
        np.testing.assert_allclose(on_device.cpu().numpy(), t, rtol=1e-12, atol=1e-12)
