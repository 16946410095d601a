"""Coarse cells through a CSR map: means, sums, the exact transpose, and how exact the sums are."""

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
from neuroscale_couple.kernels import CellMap
from neuroscale_couple.kernels import backend as module

Floats = npt.NDArray[Any]
BACKENDS = ["compiled", "reference", "numpy", "auto"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[CellMap, int, Any, int]:
    """A map with empty, one-cell and long segments that leaves some cells out; components; dtype; seed."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 7, 8, 9, 64, 65, 200]), min_size=0, max_size=6))
    left_out = draw(st.integers(0, 5))
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    n = sum(lengths) + left_out
    cells = rng.permutation(n)[: sum(lengths)]
    cell_map = CellMap(np.cumsum([0, *lengths]), cells, rng.uniform(0.1, 3.0, n))
    return cell_map, draw(st.sampled_from([1, 2, 3, 5, 9, 17])), draw(st.sampled_from([np.float32, np.float64])), seed


@given(case=cases(), mean=st.booleans())
@settings(deadline=None, max_examples=80)
@pytest.mark.parametrize("backend", BACKENDS)
def test_means_and_sums_against_loops(backend: Any, case: Any, mean: bool) -> None:
    cells, components, dtype, seed = case
    fine = np.random.default_rng(seed).normal(0.0, 10.0, (cells.shape[1], components)).astype(dtype)
    got = kernels.coarsen_cells(fine, cells, mean=mean, backend=backend)
    assert got.shape == (cells.shape[0], components) and got.dtype == dtype
    volumes = cells.volumes.astype(dtype).astype(np.float64)
    for c in range(cells.shape[0]):
        inside = cells.cells[cells.offsets[c] : cells.offsets[c + 1]]
        for k in range(components):
            weights = volumes[inside] if mean else np.ones(len(inside))
            total = math.fsum(w * float(f) for w, f in zip(weights, fine[inside, k], strict=True))
            expected = total / volumes[inside].sum() if mean and len(inside) else total
            assert abs(got[c, k] - expected) <= 8 * np.finfo(dtype).eps * (np.abs(fine).sum() + 1.0)


@given(case=cases(), mean=st.booleans())
@settings(deadline=None, max_examples=60)
def test_compiled_and_reference_agree_bit_for_bit(case: Any, mean: bool) -> None:
    cells, components, dtype, seed = case
    rng = np.random.default_rng(seed)
    fine = rng.normal(size=(cells.shape[1], components)).astype(dtype)
    coarse = rng.normal(size=(cells.shape[0], components)).astype(dtype)
    for function, values in ((kernels.coarsen_cells, fine), (kernels.refine_cells, coarse)):
        one, other = (function(values, cells, mean=mean, backend=b) for b in ("compiled", "reference"))  # type: ignore[arg-type]
        np.testing.assert_array_equal(one, other)
    tensor = kernels.coarsen_cells(torch.from_numpy(fine), cells, mean=mean)
    np.testing.assert_array_equal(tensor.numpy(), kernels.coarsen_cells(fine, cells, mean=mean))


@given(case=cases(), mean=st.booleans())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("backend", BACKENDS)
def test_refine_is_the_transpose(backend: Any, case: Any, mean: bool) -> None:
    """<coarsen x, y> = <x, refine y>, of the mean and the shares of a sum, of the sum and injection."""
    cells, components, _, seed = case
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(cells.shape[1], components)), rng.normal(size=(cells.shape[0], components))
    left = (kernels.coarsen_cells(x, cells, mean=mean, backend=backend) * y).sum()
    right = (x * kernels.refine_cells(y, cells, mean=not mean, backend=backend)).sum()
    assert left == pytest.approx(right, rel=1e-12, abs=1e-12)


@given(case=cases())
@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("backend", BACKENDS)
def test_injection_conserves(backend: Any, case: Any) -> None:
    """sum V fine = sum V_c coarse, per coarse cell; shares of a sum add up to it; cells left out are 0."""
    cells, _, _, seed = case
    coarse = np.random.default_rng(seed).uniform(1.0, 2.0, (cells.shape[0], 2))
    fine = kernels.refine_cells(coarse, cells, backend=backend)
    shares = kernels.refine_cells(coarse, cells, mean=False, backend=backend)
    inside = np.zeros(cells.shape[1], bool)
    inside[cells.cells] = True
    assert not fine[~inside].any() and not shares[~inside].any()
    whole = (cells.coarse_volumes[:, None] * coarse).sum(axis=0)
    np.testing.assert_allclose((cells.volumes[:, None] * fine).sum(axis=0), whole, rtol=1e-13)
    filled = np.diff(cells.offsets) > 0
    np.testing.assert_allclose(shares.sum(axis=0), coarse[filled].sum(axis=0), rtol=1e-13)
    # coarsening what was injected gives it back
    again = kernels.coarsen_cells(fine, cells, backend=backend)
    np.testing.assert_allclose(again[filled], coarse[filled], rtol=1e-14)


@pytest.mark.parametrize("components", [1, 3])
def test_a_scattered_map_is_refined_to_the_same_bits(components: int) -> None:
    rng = np.random.default_rng(3)
    n = 4000
    scattered = CellMap(np.arange(0, n + 1, 8), rng.permutation(n), rng.uniform(0.5, 2.0, n))
    assert scattered.scattered
    assert not CellMap(np.arange(0, n + 1, 8), np.arange(n), np.ones(n)).scattered
    coarse = torch.from_numpy(rng.standard_normal((n // 8, components)))
    out = torch.full((n, components), np.nan, dtype=torch.float64)
    assert kernels.refine_cells(coarse, scattered, out=out) is out
    expected = kernels.refine_cells(coarse.numpy(), scattered, backend="reference")
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(kernels.refine_cells(coarse, scattered).numpy(), expected)
    with pytest.raises(ValueError, match=r"out: got float64 \(3999, .*expected float64 \(4000"):
        kernels.refine_cells(coarse, scattered, out=out[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: Any) -> None:
    cells = CellMap(np.array([0, 2, 2, 3]), np.array([3, 0, 1]), np.array([1.0, 2.0, 9.0, 3.0]))
    fine = np.array([[4.0], [5.0], [7.0], [8.0]])
    assert kernels.coarsen_cells(fine, cells, backend=backend).tolist() == [[7.0], [0.0], [5.0]]
    assert kernels.coarsen_cells(fine, cells, mean=False, backend=backend).tolist() == [[12.0], [0.0], [5.0]]
    coarse = np.array([[4.0], [6.0], [5.0]])
    assert kernels.refine_cells(coarse, cells, backend=backend).tolist() == [[4.0], [5.0], [0.0], [4.0]]
    assert kernels.refine_cells(coarse, cells, mean=False, backend=backend).tolist() == [[1.0], [5.0], [0.0], [3.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_of_a_long_sum_does_not_grow_with_its_length(dtype: Any) -> None:
    """20 eps sum |x| whatever the length, against exact summation, with cancellation over twelve decades."""
    rng = np.random.default_rng(0)
    for n in (10, 1000, 100_000):
        values = (rng.standard_normal((n, 1)) * 10.0 ** rng.integers(-6, 6, (n, 1))).astype(dtype)
        cells = CellMap(np.array([0, n]), np.arange(n), np.ones(n))
        got = float(kernels.coarsen_cells(values, cells, mean=False)[0, 0])
        exact = math.fsum(float(v) for v in values[:, 0])
        size = math.fsum(abs(float(v)) for v in values[:, 0])
        # float32 sums are made in double; what is left is the rounding of the result
        bound = 20 * 2.0**-53 * size + float(np.finfo(dtype).eps) * abs(exact)
        assert abs(got - exact) <= bound


@pytest.mark.parametrize(
    ("offsets", "cells", "volumes", "text"),
    [
        ([0, 3], [0, 1], [1.0, 1.0], "offsets: got a row from 0 to 3, expected a row from 0 to 2, the entries"),
        ([], [], [1.0], "offsets: got shape (0,), expected a row from 0 to 0, the entries"),
        ([0, 2, 1, 2], [0, 1], [1.0, 1.0], "offsets: got a fall after entry 1, expected a rising row"),
        ([0, 2], [0, 2], [1.0, 1.0], "cells: got 2 at entry 1, expected 0 to 1"),
        ([0, 1], [-1], [1.0], "cells: got -1 at entry 0, expected 0 to 0"),
        ([0, 2], [1, 1], [1.0, 1.0], "cells: got cell 1 more than once, expected each cell in one coarse cell at most"),
        ([0, 1], [0], [1.0, 0.0], "volumes: got 0.0 for cell 1, expected a positive number"),
        ([0, 1], [0], [np.nan], "volumes: got nan for cell 0, expected a positive number"),
    ],
)
def test_a_wrong_map_is_refused(offsets: Any, cells: Any, volumes: Any, text: str) -> None:
    with pytest.raises(ValueError) as error:
        CellMap(np.array(offsets, np.int64), np.array(cells, np.int64), np.array(volumes))
    assert str(error.value) == text


def test_bad_input_is_refused_with_got_and_expected() -> None:
    cells = CellMap(np.array([0, 2]), np.array([0, 1]), np.ones(2))
    for values, text in (
        (np.ones((3, 1)), r"^fine: got shape \(3, 1\), expected \[2, components\]$"),
        (np.ones(2), r"^fine: got shape \(2,\), expected"),
        (np.ones((2, 2), np.int64), "^fine: got dtype int64, expected float32 or float64"),
        (np.ones((2, 4))[:, ::2], r"^fine: got strides \(4, 2\) \(elements\) for shape \(2, 2\), expected a contig"),
        ([[1.0]], "^fine: got list, expected a NumPy array or a torch tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            kernels.coarsen_cells(values, cells)
    with pytest.raises(ValueError, match=r"^backend: got 'fast', expected one of auto, compiled, reference, numpy"):
        kernels.coarsen_cells(np.ones((2, 1)), cells, backend="fast")  # type: ignore[arg-type]


def test_the_binding_checks_by_itself() -> None:
    offsets, cells, fine, coarse = np.array([0, 2]), np.array([0, 1]), np.ones((2, 3)), np.zeros((1, 3))
    run = module.compiled().coarsen_cells
    with pytest.raises(TypeError, match=r"^offsets: got dtype int32, expected int64"):
        run(offsets.astype(np.int32), cells, None, None, fine, coarse, False, 0)
    with pytest.raises(ValueError, match=r"^coarse: got float64 \(2, 3\) on cpu, expected float64 \(1, 3\) on cpu"):
        run(offsets, cells, None, None, fine, np.zeros((2, 3)), False, 0)
    with pytest.raises(ValueError, match=r"^weights: got float32 \(2,\) on cpu, expected float64 \(2,\) on cpu"):
        run(offsets, cells, np.ones(2, np.float32), None, fine, coarse, False, 0)
    with pytest.raises(ValueError, match=r"^coarse: got memory that overlaps fine, expected memory of its own"):
        run(offsets, cells, None, None, fine, fine[:1], False, 0)


@pytest.mark.needs("cuda")
def test_cuda_agrees_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    cells = CellMap(np.array([0, 1, 1, 300, 1000]), rng.permutation(1000), rng.uniform(1.0, 2.0, 1000))
    fine, coarse = rng.normal(size=(1000, 3)), rng.normal(size=(4, 3))
    for mean in (True, False):
        for function, values in ((kernels.coarsen_cells, fine), (kernels.refine_cells, coarse)):
            on_device = function(torch.from_numpy(values).cuda(), cells, mean=mean)
            np.testing.assert_array_equal(on_device.cpu().numpy(), function(values, cells, mean=mean))
