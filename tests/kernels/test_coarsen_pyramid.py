"""The coarse-graining pyramid against its definition, on every backend that is built."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels
from neuroscale_couple.kernels import backend as module

Floats = npt.NDArray[Any]
Run = Callable[[Floats, int], list[Floats]]


def on_numpy(backend: str) -> Run:
    return lambda field, levels: list(kernels.coarsen_pyramid(field, levels, backend))


def on_torch(backend: str) -> Run:
    def run(field: Floats, levels: int) -> list[Floats]:
        return [c.numpy() for c in kernels.coarsen_pyramid(torch.from_numpy(field), levels, backend)]

    return run


EXACT = {
    "numpy": on_numpy("numpy"),
    "compiled": on_numpy("compiled"),
    "reference": on_numpy("reference"),
    "auto": on_numpy("auto"),
    "compiled, torch": on_torch("compiled"),
    "reference, torch": on_torch("reference"),
    "auto, torch": on_torch("auto"),
}
RUNS = {**EXACT, "torch": on_torch("torch")}


@pytest.fixture(params=list(RUNS))
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


@st.composite
def cases(draw: st.DrawFn, low: float = -1e3, high: float = 1e3) -> tuple[Floats, int]:
    dimension = draw(st.sampled_from([2, 3]))
    levels = draw(st.integers(1, 4 if dimension == 2 else 2))
    sides = [draw(st.integers(1, 3)) * 2**levels for _ in range(dimension)]
    shape = (draw(st.integers(0, 4)), draw(st.integers(1, 3)), *sides)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype), levels


def block_means(field: Floats, level: int) -> Floats:
    """The definition: means over blocks of 2^level cells per side, in float64."""
    side = 2**level
    split = [n for s in field.shape[2:] for n in (s // side, side)]
    axes = tuple(range(3, 2 + len(split), 2))
    return field.astype(np.float64).reshape(*field.shape[:2], *split).mean(axis=axes)


@given(case=cases())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("name", list(RUNS))
def test_levels_are_means_over_blocks(name: str, case: tuple[Floats, int]) -> None:
    field, levels = case
    coarse = RUNS[name](field, levels)
    assert len(coarse) == levels
    for level, got in enumerate(coarse, start=1):
        expected = block_means(field, level)
        assert got.shape == expected.shape
        assert got.dtype == field.dtype
        assert got.flags.c_contiguous
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e3 * 4 * level * np.finfo(field.dtype).eps)


@given(case=cases())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("name", [n for n in EXACT if n != "numpy"])
def test_backends_agree_bit_for_bit(name: str, case: tuple[Floats, int]) -> None:
    field, levels = case
    for got, expected in zip(EXACT[name](field, levels), EXACT["numpy"](field, levels), strict=True):
        np.testing.assert_array_equal(got, expected)


@given(case=cases(low=0.5, high=2.0))
@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize("name", list(RUNS))
def test_every_level_conserves_the_sum(name: str, case: tuple[Floats, int]) -> None:
    field = case[0].astype(np.float64)
    total = math.fsum(field.ravel())
    dimension = field.ndim - 2
    for level, coarse in enumerate(RUNS[name](field, case[1]), start=1):
        volume = 2.0 ** (dimension * level)
        assert math.fsum(coarse.ravel()) * volume == pytest.approx(total, rel=1e-14, abs=0)


def test_plane_by_hand(run: Run) -> None:
    field = np.arange(16.0).reshape(1, 1, 4, 4)
    first, second = run(field, 2)
    assert first[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert second[0, 0].tolist() == [[7.5]]


def test_volume_by_hand(run: Run) -> None:
    field = np.arange(16.0).reshape(1, 1, 2, 2, 4)
    (coarse,) = run(field, 1)
    assert coarse[0, 0].tolist() == [[[6.5, 8.5]]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 7, 8, 9, 16, 25, 32, 129, 515, 1025, 2501])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("volume", [False, True])
def test_factors_in_vectors_of_any_fit(volume: bool, k: int, blocks: int, dtype: Any) -> None:
    """Rows that share a vector, fill some, leave a rest, and go beyond a block that is fetched ahead."""
    for rows in (1, 3, 7):
        shape = (2, 1, 2 * k, k * rows, k * blocks) if volume else (3, 1, k * rows, k * blocks)
        field = np.random.default_rng(blocks).standard_normal(shape).astype(dtype)
        got = kernels.coarsen_moments(field, [k], backend="compiled")
        expected = kernels.coarsen_moments(field, [k], backend="reference")
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("factors", [[2, 2, 2, 3], [3, 2, 2], [4, 2, 3], [4, 4], [5, 2], [24], [2, 2, 2, 2, 2]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_chains_of_factors_agree_with_the_reference(factors: list[int], dtype: Any) -> None:
    whole = int(np.prod(factors))
    for shape in ((37, 2, 2 * whole, whole), (2, 1, whole, whole, 2 * whole), (2, 1, whole, 48 * whole)):
        field = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        got = kernels.coarsen_pyramid(field, factors, "compiled")
        for mine, theirs in zip(got, kernels.coarsen_pyramid(field, factors, "reference"), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_many_blocks_and_threads_agree_with_the_reference() -> None:
    field = np.random.default_rng(0).standard_normal((7, 3, 128, 96)).astype(np.float32)
    for got, expected in zip(EXACT["compiled"](field, 5), EXACT["reference"](field, 5), strict=True):
        np.testing.assert_array_equal(got, expected)
    slabs = np.random.default_rng(0).standard_normal((3, 2, 32, 16, 24))
    for got, expected in zip(EXACT["compiled"](slabs, 3), EXACT["reference"](slabs, 3), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [
        ((1000, 1, 32, 32), 5),  # in the caches, cut for threads
        ((1100, 1, 32, 32), 5),  # beyond: asked for ahead, in smaller groups
        ((1, 1, 1024, 1024), 10),  # the last levels have too few rows for all threads, and are too small for them
        ((1, 2, 1024, 1536), 9),
        ((7, 1, 32, 64, 64), 5),
        ((9, 3, 27, 27, 27), [3, 3, 3]),
        ((9, 3, 256, 128), [4, 4]),
    ],
)
@pytest.mark.parametrize("moments", [False, True])
def test_fields_in_and_beyond_the_caches_agree_with_the_reference(
    shape: tuple[int, ...], levels: Any, moments: bool
) -> None:
    field = np.random.default_rng(0).standard_normal(shape)
    assert field.nbytes > 4 << 20 or moments
    got, expected = (
        kernels.coarsen_moments(field, levels, variance=moments, total=moments, backend=backend)  # type: ignore[arg-type]
        for backend in ("compiled", "reference")
    )
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine is None) == (theirs is None)
        for m, t in zip(mine or (), theirs or (), strict=True):
            np.testing.assert_array_equal(m, t)


def test_permuted_points_give_permuted_answers(run: Run) -> None:
    rng = np.random.default_rng(1)
    field = rng.standard_normal((9, 2, 16, 8))
    order = rng.permutation(9)
    for permuted, plain in zip(run(field[order], 3), run(field, 3), strict=True):
        np.testing.assert_array_equal(permuted, plain[order])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_in_its_block(run: Run, value: float) -> None:
    field = np.random.default_rng(2).standard_normal((3, 2, 8, 8))
    clean = [c.copy() for c in run(field, 2)]
    field[1, 0, 5, 2] = value
    for level, (got, before) in enumerate(zip(run(field, 2), clean, strict=True), start=1):
        touched = np.zeros(got.shape, bool)
        touched[1, 0, 5 >> level, 2 >> level] = True
        assert not np.isfinite(got[touched]).any()
        np.testing.assert_array_equal(got[~touched], before[~touched])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 0, 8, 8), (0, 1, 4, 4, 4)])
def test_empty_batch(run: Run, shape: tuple[int, ...]) -> None:
    first, second = run(np.empty(shape), 2)
    assert first.shape == shape[:2] + tuple(s // 2 for s in shape[2:])
    assert second.shape == shape[:2] + tuple(s // 4 for s in shape[2:])


def test_huge_and_tiny_values_are_scaled_exactly(run: Run) -> None:
    for scale in (2.0**900, 2.0**-900):
        (coarse,) = run(np.full((1, 1, 2, 2), scale), 1)
        assert coarse.item() == scale


def test_adjoint_through_autograd() -> None:
    rng = np.random.default_rng(3)
    for shape in ((2, 3, 8, 16), (2, 1, 8, 4, 4)):
        field = torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
        coarse = kernels.coarsen_pyramid(field, 2)
        duals = [torch.from_numpy(rng.standard_normal(c.shape)) for c in coarse]
        forward = sum((d * c).sum() for d, c in zip(duals, coarse, strict=True))
        forward.backward()
        assert field.grad is not None
        cells = 2.0 ** (len(shape) - 2)
        expected = torch.zeros(shape, dtype=torch.float64)
        for level, dual in enumerate(duals, start=1):
            for axis in range(2, len(shape)):
                dual = dual.repeat_interleave(2**level, dim=axis)
            expected += dual / cells**level
        torch.testing.assert_close(field.grad, expected, rtol=1e-14, atol=1e-15)
        # <dual, C field> = <C^T dual, field>
        torch.testing.assert_close(forward.detach(), (field.grad * field.detach()).sum(), rtol=1e-13, atol=1e-13)


def refused(field: Any, levels: int = 1, backend: str = "auto") -> str:
    with pytest.raises((TypeError, ValueError)) as error:
        kernels.coarsen_pyramid(field, levels, backend)
    return str(error.value)


FIELD = np.zeros((2, 3, 8, 8))


@pytest.mark.parametrize("backend", ["auto", "compiled", "numpy"])
def test_bad_numpy_input_is_refused_with_got_and_expected(backend: str) -> None:
    text = refused(FIELD.astype(np.int64), backend=backend)
    assert text == "field: got dtype int64, expected float32 or float64 in native byte order"
    assert refused(FIELD.astype(">f8"), backend=backend) == text.replace("int64", ">f8")
    text = refused(FIELD[:, :, :, ::2], backend=backend)
    assert text == (
        "field: got strides (192, 64, 8, 2) (elements) for shape (2, 3, 8, 4), expected a contiguous row-major array"
    )
    assert "expected a contiguous" in refused(np.asfortranarray(FIELD + np.arange(8)), backend=backend)
    text = refused(FIELD[:, :, :6].copy(), 2, backend=backend)
    assert text == "field: got shape (2, 3, 6, 8) with levels 2, expected sides that are positive multiples of 4"
    assert "expected sides that are positive multiples of 2" in refused(np.zeros((1, 1, 0, 4)), backend=backend)
    assert "expected sides that are positive multiples of 2" in refused(np.zeros((1, 1, 3, 4, 4)), backend=backend)
    assert "expected [points, components, y, x] or" in refused(FIELD[0], backend=backend)
    assert refused(FIELD, 0, backend=backend) == "levels: got 0, expected 1 to 30"
    assert refused(FIELD, 31, backend=backend) == "levels: got 31, expected 1 to 30"


def test_bad_tensors_are_refused_with_got_and_expected() -> None:
    field = torch.zeros(2, 3, 8, 8)
    assert refused(field.to(torch.int32)) == (
        "field: got dtype torch.int32, expected float32 or float64 in native byte order"
    )
    assert "dtype torch.float16" in refused(field.half())
    assert "got strides (192, 64, 1, 8)" in refused(field.transpose(2, 3))
    assert "that requires grad" in refused(field.requires_grad_(), backend="compiled")


def test_bad_backends_are_refused() -> None:
    text = refused(FIELD, backend="fast")
    assert text == "backend: got 'fast', expected one of auto, compiled, reference, numpy, torch"
    assert refused(torch.zeros(1, 1, 2, 2), backend="numpy") == (
        "field: got Tensor for backend 'numpy', expected a NumPy array"
    )
    assert refused(FIELD, backend="torch") == "field: got ndarray for backend 'torch', expected a torch tensor"
    assert refused([[1.0]]) == "field: got list, expected a NumPy array or a torch tensor"


@given(shape=arrays.array_shapes(min_dims=1, max_dims=6, max_side=9), levels=st.integers(-1, 4))
@settings(deadline=None, max_examples=100)
def test_any_shape_is_answered_or_refused(shape: tuple[int, ...], levels: int) -> None:
    fits = len(shape) in (4, 5) and levels >= 1 and all(s % 2**levels == 0 for s in shape[2:])
    if fits:
        assert len(kernels.coarsen_pyramid(np.zeros(shape), levels)) == levels
    else:
        refused(np.zeros(shape), levels)


class TestBinding:
    """The binding checks by itself: it is reached without the Python face as well."""

    @staticmethod
    def compiled(field: Any, mean: list[Any], reference: bool = False) -> None:
        module.compiled().coarsen_pyramid(field, [2] * len(mean), mean, None, None, None, reference, 0)

    def refused(self, field: Any, mean: list[Any]) -> str:
        with pytest.raises((TypeError, ValueError)) as error:
            self.compiled(field, mean)
        return str(error.value)

    def test_outputs_must_fit(self) -> None:
        assert self.refused(FIELD, [np.zeros((2, 3, 4, 5))]) == (
            "mean[0]: got float64 (2, 3, 4, 5) on cpu, expected float64 (2, 3, 4, 4) on cpu"
        )
        assert self.refused(FIELD, [np.zeros((2, 3, 4, 4), np.float32)]) == (
            "mean[0]: got float32 (2, 3, 4, 4) on cpu, expected float64 (2, 3, 4, 4) on cpu"
        )
        text = self.refused(FIELD, [np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 2, 4))[..., ::2]])
        assert text == (
            "mean[1]: got strides (24, 8, 4, 2) (elements) for shape (2, 3, 2, 2), "
            "expected a contiguous row-major array"
        )

    def test_memory_that_overlaps_is_refused(self) -> None:
        both = np.zeros(2 * 3 * 8 * 8)
        field = both.reshape(2, 3, 8, 8)
        assert self.refused(field, [both[:96].reshape(2, 3, 4, 4)]) == (
            "mean[0]: got memory that overlaps field, expected memory of its own"
        )
        one = np.zeros((2, 3, 4, 4))
        with pytest.raises(
            ValueError, match=r"^mean\[0\]: got memory that overlaps total\[0\], expected memory of its own"
        ):
            module.compiled().coarsen_pyramid(FIELD, [2], [one], None, [one], None, False, 0)

    def test_unaligned_data_are_refused(self) -> None:
        odd = np.zeros(8 * 384 + 1, np.uint8)[1:].view(np.float64).reshape(2, 3, 8, 8)
        assert self.refused(odd, [np.zeros((2, 3, 4, 4))]) == (
            "field: got data at an address that is no multiple of 8 bytes, expected aligned data"
        )
        assert "expected aligned data" in refused(odd)

    def test_a_read_only_output_is_refused(self) -> None:
        coarse = np.zeros((2, 3, 4, 4))
        coarse.flags.writeable = False
        assert self.refused(FIELD, [coarse]) == "mean[0]: got a read-only array, expected a writeable one"

    def test_a_read_only_input_is_read(self) -> None:
        field = np.ones((1, 1, 2, 2))
        field.flags.writeable = False
        assert kernels.coarsen_pyramid(field, 1, "compiled")[0].item() == 1.0

    def test_inputs_must_fit(self) -> None:
        assert "expected at least 1 level" in self.refused(FIELD, [])
        assert "got dtype int64" in self.refused(FIELD.astype(np.int64), [FIELD])
        assert "got dtype >f8" in self.refused(FIELD.astype(">f8"), [FIELD])
        assert "expected a NumPy array or a DLPack tensor" in self.refused("text", [FIELD])
        assert "got dtype DLPack code 0 with 32 bits" in self.refused(torch.zeros(1, 1, 2, 2, dtype=torch.int32), [])
        assert "expected [points, components, y, x]" in self.refused(torch.zeros(2), [FIELD])
        assert "got strides (8, 8, 1, 2)" in self.refused(torch.zeros(1, 1, 4, 2).transpose(2, 3), [FIELD])


@pytest.mark.needs("cuda")
def test_cuda_agrees_bit_for_bit() -> None:
    assert kernels.has_cuda()
    field = np.random.default_rng(4).standard_normal((5, 3, 64, 32))
    on_device = kernels.coarsen_pyramid(torch.from_numpy(field).cuda(), 5)
    for got, expected in zip(on_device, EXACT["reference"](field, 5), strict=True):
        assert got.device.type == "cuda"
        np.testing.assert_array_equal(got.cpu().numpy(), expected)


def test_the_extension_is_built() -> None:
    assert kernels.has_compiled()
    assert kernels.has_cuda() == (module.compiled().built_with_cuda and torch.cuda.is_available())


def test_without_the_extension_the_references_answer_after_one_warning() -> None:
    program = """
import sys, warnings
sys.modules["neuroscale_couple.kernels._compiled"] = None
import numpy as np
from neuroscale_couple import kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first = kernels.coarsen_pyramid(np.ones((1, 1, 2, 2)), 1)[0]
    second = kernels.coarsen_pyramid(np.ones((1, 1, 2, 2)), 1)[0]
    assert first.item() == second.item() == 1.0
    assert not kernels.has_compiled() and not kernels.has_cuda()
    try:
        kernels.coarsen_pyramid(np.ones((1, 1, 2, 2)), 1, "compiled")
    except ValueError as error:
        print(error)
    import torch
    assert kernels.coarsen_pyramid(torch.ones(1, 1, 2, 2), 1)[0].item() == 1.0
ours = [str(w.message) for w in caught if "compiled kernels" in str(w.message)]
assert len(ours) == 1, ours
print(ours[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "the extension is not built; expected 'numpy' or 'torch'" in done.stdout
    assert "the slower NumPy and torch references are used" in done.stdout
