"""Any factors, variances and sums of the pyramid, and how exact its means are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels

Floats = npt.NDArray[Any]
FACTORS = st.lists(st.sampled_from([2, 3, 4, 5, 7]), min_size=1, max_size=2)


@st.composite
def moment_cases(draw: st.DrawFn) -> tuple[Floats, list[int]]:
    """Factors that are not all two, and rows wider than a tile of the CPU kernel now and then."""
    dimension, factors = draw(st.sampled_from([2, 3])), draw(FACTORS)
    wide = draw(st.sampled_from([1, 2, 3, 90])) if dimension == 2 else 1
    sides = [draw(st.integers(1, 2)) * math.prod(factors) for _ in range(dimension - 1)] + [wide * math.prod(factors)]
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *sides)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return np.random.default_rng(draw(st.integers(0, 999))).uniform(-3.0, 7.0, shape).astype(dtype), factors


@given(case=moment_cases())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("name", ["compiled", "reference", "numpy"])
def test_moments_for_any_factors(name: Any, case: tuple[Floats, list[int]]) -> None:
    """Against sums over blocks in float64; and all backends bit for bit."""
    field, factors = case
    eps = np.finfo(field.dtype).eps
    moments = kernels.coarsen_moments(field, factors, backend=name)
    assert moments.variance is not None and moments.total is not None
    same = kernels.coarsen_moments(field, factors, backend="numpy")
    assert same.variance is not None and same.total is not None
    for level in range(len(factors)):
        side = math.prod(factors[: level + 1])
        split = [n for s in field.shape[2:] for n in (s // side, side)]
        blocks = field.astype(np.float64).reshape(*field.shape[:2], *split)
        axes = tuple(range(3, 2 + len(split), 2))
        cells = side ** (field.ndim - 2)
        np.testing.assert_allclose(moments.mean[level], blocks.mean(axis=axes), rtol=0, atol=400 * eps)
        np.testing.assert_allclose(moments.variance[level], blocks.var(axis=axes), rtol=0, atol=4000 * eps)
        np.testing.assert_allclose(moments.total[level], blocks.sum(axis=axes), rtol=0, atol=400 * eps * cells)
        for got, expected in zip(moments, same, strict=True):
            np.testing.assert_array_equal(got[level], expected[level])  # type: ignore[index]
    plain = kernels.coarsen_pyramid(field, factors, name)
    for mean, expected in zip(plain, moments.mean, strict=True):
        np.testing.assert_array_equal(mean, expected)


def test_moments_by_hand() -> None:
    field = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).reshape(1, 1, 3, 3)
    mean, variance, total = kernels.coarsen_moments(field, [3])
    assert variance is not None and total is not None
    assert (mean[0].item(), total[0].item()) == (5.0, 45.0)
    assert variance[0].item() == pytest.approx(60.0 / 9.0, rel=1e-15)
    only = kernels.coarsen_moments(torch.from_numpy(field), [3], variance=False)
    assert only.variance is None and only.total is not None and only.total[0].item() == 45.0


def test_the_variance_of_a_large_mean_keeps_its_digits() -> None:
    """E[x^2] - E[x]^2 would lose all of them."""
    field = 1e8 + np.random.default_rng(0).standard_normal((1, 1, 64, 64))
    _, variance, _ = kernels.coarsen_moments(field, 6, total=False)
    assert variance is not None
    assert variance[-1].item() == pytest.approx(field.var(), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_of_a_mean_keeps_its_bound(dtype: Any) -> None:
    """(k + k) eps mean |.| per level in the plane, against exact summation."""
    rng = np.random.default_rng(5)
    field = (rng.standard_normal((1, 1, 256, 256)) * 10.0 ** rng.integers(-6, 6, (1, 1, 256, 256))).astype(dtype)
    for factors in ([2] * 8, [16, 16], [256]):
        exact = math.fsum(float(x) for x in field.ravel()) / field.size
        bound = (
            sum(2 * k for k in factors) * float(np.finfo(dtype).eps) * float(np.abs(field).astype(np.float64).mean())
        )
        assert abs(float(kernels.coarsen_pyramid(field, factors)[-1].item()) - exact) <= bound


@given(case=moment_cases())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("name", ["compiled", "reference", "numpy"])
def test_means_are_weighted_with_unequal_volumes(name: Any, case: tuple[Floats, list[int]]) -> None:
    """Against weighted sums over blocks in float64; and all backends bit for bit, whatever else is asked for."""
    field, factors = case
    eps = np.finfo(field.dtype).eps
    volumes = np.random.default_rng(1).uniform(0.5, 2.0, field.shape[2:]).astype(field.dtype)
    moments = kernels.coarsen_moments(field, factors, backend=name, volumes=volumes)
    same = kernels.coarsen_moments(field, factors, backend="numpy", volumes=volumes)
    assert moments.variance is not None and moments.total is not None
    weight, value = volumes.astype(np.float64), field.astype(np.float64)
    for level in range(len(factors)):
        side = math.prod(factors[: level + 1])
        split = [n for s in field.shape[2:] for n in (s // side, side)]
        axes = tuple(range(1, len(split), 2))
        inner = tuple(2 + a for a in axes)
        v, f = weight.reshape(split), value.reshape(*field.shape[:2], *split)
        size = v.sum(axis=axes)
        total = (v * f).sum(axis=inner)
        mean = total / size
        about = np.expand_dims(mean, inner)
        spread = (v * (f - about) ** 2).sum(axis=inner) / size
        cells = side ** (field.ndim - 2)
        np.testing.assert_allclose(moments.total[level], total, rtol=0, atol=1000 * eps * cells)
        np.testing.assert_allclose(moments.mean[level], mean, rtol=0, atol=1000 * eps)
        np.testing.assert_allclose(moments.variance[level], spread, rtol=0, atol=10000 * eps)
        for got, expected in zip(moments, same, strict=True):
            np.testing.assert_array_equal(got[level], expected[level])  # type: ignore[index]
    alone = kernels.coarsen_moments(field, factors, backend=name, volumes=volumes, variance=False, total=False)
    assert alone.variance is None and alone.total is None
    for mean, expected in zip(alone.mean, moments.mean, strict=True):
        np.testing.assert_array_equal(mean, expected)


def test_weighted_means_by_hand() -> None:
    field = np.array([[1.0, 2.0], [3.0, 5.0]]).reshape(1, 1, 2, 2)
    volumes = np.array([[1.0, 1.0], [2.0, 4.0]])
    mean, variance, total = kernels.coarsen_moments(field, 1, volumes=volumes)
    assert variance is not None and total is not None
    assert (mean[0].item(), total[0].item()) == (29.0 / 8.0, 29.0)
    exact = sum(v * (f - 29.0 / 8.0) ** 2 for v, f in ((1.0, 1.0), (1.0, 2.0), (2.0, 3.0), (4.0, 5.0))) / 8.0
    assert variance[0].item() == pytest.approx(exact, rel=1e-15)
    tensors = kernels.coarsen_moments(torch.from_numpy(field), 1, volumes=torch.from_numpy(volumes))
    assert tensors.mean[0].item() == 29.0 / 8.0


@pytest.mark.parametrize("name", ["compiled", "reference", "numpy"])
def test_equal_volumes_change_nothing_but_the_unit_of_the_sum(name: Any) -> None:
    """Volumes of 1/4 are exact in binary, so even the bits are the same."""
    field = np.random.default_rng(2).standard_normal((2, 3, 8, 16))
    plain = kernels.coarsen_moments(field, 3, backend=name)
    weighted = kernels.coarsen_moments(field, 3, backend=name, volumes=np.full((8, 16), 0.25))
    for level in range(3):
        np.testing.assert_array_equal(plain.mean[level], weighted.mean[level])
        np.testing.assert_array_equal(plain.variance[level], weighted.variance[level])  # type: ignore[index]
        np.testing.assert_array_equal(plain.total[level] / 4.0, weighted.total[level])  # type: ignore[index]


@pytest.mark.parametrize(
    ("volumes", "text"),
    [
        (np.ones((8, 4)), r"volumes: got float64 \(8, 4\), expected float64 \(8, 8\)"),
        (np.ones((8, 8), np.float32), r"volumes: got float32 \(8, 8\), expected float64"),
        (np.zeros((8, 8)), r"volumes: got 0\.0 to 0\.0, expected positive numbers"),
        (np.full((8, 8), np.nan), r"volumes: got nan to nan, expected positive numbers"),
        (np.ones((8, 16))[:, ::2], r"volumes: got strides \(16, 2\)"),
    ],
)
def test_refuses_wrong_volumes(volumes: Floats, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kernels.coarsen_moments(np.zeros((1, 1, 8, 8)), 2, volumes=volumes)
