"""The CUDA kernels against the reference, bit for bit, without a GPU; with one, test_NAME.py runs them there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels
from tests.kernels.host_cuda import CSRC, CUDA, MEMORY, RACES, RACES_HOST, REFERENCE, cuda_on_host, program, run

pytestmark = pytest.mark.timeout(400)  # they compile
MAIN = CSRC / "tests/kernels_main.cpp"
ORDERS = ("backward", "7")


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The order in which the threads of a block run between two barriers."""
    monkeypatch.setenv("HOST_CUDA_ORDER", request.param)
    with cuda_on_host():
        yield


def same(got: Any, expected: Any) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


PYRAMIDS: list[tuple[tuple[int, ...], Any]] = [
    ((5, 2, 32, 32), 5),  # a field to a tile
    ((700, 1, 8, 8), 3),  # fields fewer than a tile's rows, and a rest
    ((1, 1, 256, 640), [2, 2, 2, 2, 2, 2, 2]),  # tiles end inside the field
    ((1, 1, 1024, 512), 9),  # more levels than one launch makes
    ((2, 1, 128, 96), [2, 4, 2]),
    ((1, 2, 60, 90), [3, 5, 2]),  # sums of columns, then others
    ((1, 1, 128, 384), [64, 2]),  # a wide block of columns
    ((1, 1, 14, 5000), [2]),  # rows longer than the threads of a block
    ((1, 1, 6, 4098), [3]),  # and than a tile
    ((3, 1, 2, 2), [2]),
    ((2, 1, 16, 16, 16), 4),
    ((1, 2, 6, 12, 36), [3, 2]),
    ((1, 1, 8, 16, 200), [4, 2]),
    ((2, 1, 2, 6, 10), [2]),
]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "levels"), PYRAMIDS)
def test_pyramid(shape: tuple[int, ...], levels: Any, dtype: Any) -> None:
    field = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    same(kernels.coarsen_pyramid(field, levels, "compiled"), kernels.coarsen_pyramid(field, levels, "reference"))


@pytest.mark.parametrize("shape", [(3, 1, 16, 24), (1, 2, 8, 8, 8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pyramid_of_a_field_that_pairs_do_not_fit(shape: tuple[int, ...], dtype: Any) -> None:
    """Aligned for its numbers, not for two of them at once."""
    size = int(np.prod(shape))
    field = np.random.default_rng(0).standard_normal(size + 4).astype(dtype)
    at = next(i for i in range(4) if field[i:].ctypes.data % (2 * field.itemsize))
    field = field[at : at + size].reshape(shape)
    with cuda_on_host():
        same(kernels.coarsen_pyramid(field, 3, "compiled"), kernels.coarsen_pyramid(field, 3, "reference"))


@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(deadline=None, max_examples=60)
def test_pyramid_of_any_shape(seed: int, data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from([2, 2, 2, 3, 4, 5]), min_size=1, max_size=4))
    whole = int(np.prod(factors))
    volume = whole <= 12 and data.draw(st.booleans())
    sides = [whole * data.draw(st.integers(1, 3)) for _ in range(3 if volume else 2)]
    shape = (data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3)), *sides)
    field = np.random.default_rng(seed).standard_normal(shape).astype(data.draw(st.sampled_from(["f4", "f8"])))
    with cuda_on_host():
        same(kernels.coarsen_pyramid(field, factors, "compiled"), kernels.coarsen_pyramid(field, factors, "reference"))


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 24, 12), (2, 1, 6, 12, 6)])
def test_moments(shape: tuple[int, ...], unequal: bool) -> None:
    rng = np.random.default_rng(0)
    field = rng.standard_normal(shape)
    volumes = rng.random(shape[2:]) + 0.5 if unequal else None
    got = kernels.coarsen_moments(field, [3, 2], backend="compiled", volumes=volumes)
    expected = kernels.coarsen_moments(field, [3, 2], backend="reference", volumes=volumes)
    for mine, theirs in zip(got, expected, strict=True):
        same(mine, theirs)


def test_threads_of_cuda_do_not_race(tmp_path: Path) -> None:
    """What orders threads are barriers; the order in which they run here hides no race."""
    built = program(tmp_path, [*CUDA, *REFERENCE, MAIN], *RACES, host_options=RACES_HOST)
    done = run(built, "200", order="7")
    assert done.returncode == 0 and "WARNING: ThreadSanitizer" not in done.stderr, done.stdout + done.stderr


def test_cuda_uses_memory_as_it_should(tmp_path: Path) -> None:
    built = program(tmp_path, [*CUDA, *REFERENCE, MAIN], *MEMORY)
    for order in ORDERS:
        done = run(built, "100", order=order)
        assert done.returncode == 0, done.stdout + done.stderr
