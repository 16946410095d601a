"""The CUDA kernels over the cells of a map, on the host: every way through a tile, bit for bit the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple import kernels
from tests.kernels.test_cuda_on_host import order  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("order")]

MIXED = [0, 1, 7, 8, 9, 63, 64, 65, 500, 3000, 0, 0, 129, 128, *[2, 3, 5] * 100, 2500, *[0, 1] * 200, 65, 0]
"""Lengths of segments: many short ones, more of them than a block has threads, and a few long ones among them."""


def arrays(lengths: list[int], components: int, dtype: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """offsets, cells in no order, weights, scale, fine and coarse values; fine cells that no coarse cell has."""
    rng = np.random.default_rng(len(lengths) + components)
    offsets = np.cumsum([0, *lengths])
    n = int(offsets[-1]) + 3
    cells = rng.permutation(n)[: n - 3]
    weights, scale = rng.uniform(0.5, 2.0, n - 3).astype(dtype), rng.uniform(0.5, 2.0, len(lengths)).astype(dtype)
    fine = (rng.standard_normal((n, components)) * 10.0 ** rng.integers(-6, 6, (n, 1))).astype(dtype)
    return offsets, cells, weights, scale, fine, rng.standard_normal((len(lengths), components)).astype(dtype)


def check(lengths: list[int], components: int, dtype: Any, weighted: bool) -> None:
    offsets, cells, weights, scale, fine, coarse = arrays(lengths, components, dtype)
    w, s = (weights, scale) if weighted else (None, None)
    down, up = {}, {}
    for backend in ("compiled", "reference"):
        down[backend] = np.full_like(coarse, np.nan)
        up[backend] = np.full_like(fine, np.nan)
        run = kernels.backend.compiled()
        run.coarsen_cells(offsets, cells, w, s, fine, down[backend], backend == "reference", 0)
        run.refine_cells(offsets, cells, w, s, coarse, up[backend], backend == "reference", 0)
    np.testing.assert_array_equal(down["compiled"], down["reference"])
    np.testing.assert_array_equal(up["compiled"], up["reference"])
    assert np.isnan(up["compiled"]).any(axis=1).sum() == (3 if components else 0)  # those outside of the map


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("components", [1, 2, 3, 6, 9, 17, 32, 33, 70])
def test_segments_of_all_lengths_in_one_map(components: int, dtype: Any) -> None:
    check(MIXED, components, dtype, True)
    check(MIXED[::-1], components, dtype, False)


@pytest.mark.parametrize("components", [1, 3, 9])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 63, 64, 65, 128, 129, 500, 2048, 2049, 6000])
def test_segments_of_one_length(length: int, components: int) -> None:
    check([length] * max(2, min(400, 4000 // max(length, 1))), components, np.float64, True)


def test_nothing() -> None:
    check([], 3, np.float64, True)
    check([0, 0, 0], 1, np.float32, False)
    check([4, 5], 0, np.float32, False)
