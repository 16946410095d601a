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
