"""Results written into arrays of the caller: the same bits, the same checks as for inputs, nothing new allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple import kernels

RNG = np.random.default_rng(3)
CELLS = kernels.CellMap(np.array([0, 3, 3, 8]), RNG.permutation(10)[:8], RNG.uniform(1.0, 2.0, 10))
FIELD = RNG.standard_normal((2, 3, 8, 8))
FINE, COARSE = RNG.standard_normal((10, 2)), RNG.standard_normal((3, 2))
TENSORS = RNG.standard_normal((5, 3, 3))
SCORE = RNG.random(7)

Kernel = Callable[[Any, str, Any], Any]


def select(score: Any, backend: str, out: Any) -> Any:
    place = torch.from_numpy if isinstance(score, torch.Tensor) else np.asarray
    curve = place(np.array([0.0, 1.0])), place(np.array([0.0, 2.0]))
    reason, error = place(np.zeros(len(score), np.uint8)), place(np.zeros(len(score)))
    return kernels.gate_select(score, 0.5, curve, (6, 5), reason, error, backend, out=out)  # type: ignore[arg-type]


def project(tensors: Any, backend: str, out: Any) -> Any:
    work = tensors.clone() if isinstance(tensors, torch.Tensor) else tensors.copy()
    return kernels.admissible(work, backend=backend, out=out)  # type: ignore[arg-type]


CALLS: dict[str, tuple[Any, Kernel]] = {
    "coarsen_cells": (FINE, lambda a, b, out: kernels.coarsen_cells(a, CELLS, backend=b, out=out)),  # type: ignore[arg-type]
    "refine_cells": (COARSE, lambda a, b, out: kernels.refine_cells(a, CELLS, backend=b, out=out)),  # type: ignore[arg-type]
    "admissible": (TENSORS, project),
    "gate_select": (SCORE, select),
}
ROOM = {"coarsen_cells": (3, 2), "refine_cells": (10, 2), "admissible": (5,), "gate_select": (7,)}
DTYPE = {"admissible": np.uint8, "gate_select": np.int64}


@pytest.fixture(params=["compiled", "reference", "numpy", "auto"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param in ("compiled", "reference") and not kernels.has_compiled():
        pytest.skip("the extension is not built")
    return str(request.param)


@pytest.fixture(params=["numpy", "torch"])
def place(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return torch.from_numpy if request.param == "torch" else np.asarray


@pytest.mark.parametrize("name", list(CALLS))
def test_writes_into_the_array_of_the_caller(name: str, backend: str, place: Callable[[Any], Any]) -> None:
    given, call = CALLS[name]
    room = place(np.full(ROOM[name], 7, DTYPE.get(name, np.float64)))
    expected = call(place(given.copy()), backend, None)
    got = call(place(given.copy()), backend, room)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(room)[: len(got)], np.asarray(expected))


def test_levels_are_written_into_the_arrays_of_the_caller(backend: str, place: Callable[[Any], Any]) -> None:
    place = np.asarray if backend == "numpy" else place  # which takes no tensors
    room = [place(np.zeros((2, 3, n, n))) for n in (4, 2, 1)]
    got = kernels.coarsen_pyramid(place(FIELD), 3, backend, out=room)  # type: ignore[arg-type]
    for g, r, expected in zip(got, room, kernels.coarsen_pyramid(place(FIELD), 3, backend), strict=True):  # type: ignore[arg-type]
        assert g is r
        np.testing.assert_array_equal(np.asarray(r), np.asarray(expected))


def test_moments_are_written_into_the_arrays_of_the_caller(backend: str) -> None:
    shapes = [(2, 3, n, n) for n in (4, 2, 1)]
    room = kernels.Moments(*(tuple(np.zeros(s) for s in shapes) for _ in range(3)))
    got = kernels.coarsen_moments(FIELD, 3, backend=backend, out=room)  # type: ignore[arg-type]
    assert got is not room
    for mine, expected in zip(room, kernels.coarsen_moments(FIELD, 3, backend=backend), strict=True):  # type: ignore[arg-type]
        assert mine is not None
        assert expected is not None
        for m, e in zip(mine, expected, strict=True):
            np.testing.assert_array_equal(m, e)


@pytest.mark.parametrize("name", list(CALLS))
def test_refuses_a_wrong_array(name: str, backend: str) -> None:
    given, call = CALLS[name]
    dtype, shape = DTYPE.get(name, np.float64), ROOM[name]
    with pytest.raises(ValueError, match=r"out: got .* expected"):
        call(given.copy(), backend, np.zeros((shape[0] + 1, *shape[1:]), dtype))
    with pytest.raises(ValueError, match=r"out: got float32 .* expected"):
        call(given.copy(), backend, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="out: got strides"):
        call(given.copy(), backend, np.zeros((2 * shape[0], *shape[1:]), dtype)[::2])
    sealed = np.zeros(shape, dtype)
    sealed.flags.writeable = False
    with pytest.raises(ValueError, match="out: got a read-only array, expected a writeable one"):
        call(given.copy(), backend, sealed)
    with pytest.raises(TypeError, match="out: got Tensor, expected ndarray"):
        call(given.copy(), backend, torch.from_numpy(np.zeros(shape, dtype)))


def test_refuses_levels_that_do_not_fit(backend: str) -> None:
    good = [np.zeros((2, 3, n, n)) for n in (4, 2)]
    with pytest.raises(ValueError, match=r"out\.mean: got 2 levels, expected 3"):
        kernels.coarsen_pyramid(FIELD, 3, backend, out=good)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"out\.mean\[1\]: got float64 \(2, 3, 4, 4\), expected float64 \(2, 3, 2, 2\)"
    ):
        kernels.coarsen_pyramid(FIELD, 2, backend, out=[good[0], good[0].copy()])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"out\.variance: got none, expected arrays"):
        kernels.coarsen_moments(FIELD, 2, backend=backend, out=kernels.Moments(tuple(good), None, None))  # type: ignore[arg-type]


def test_refuses_memory_of_the_input_and_leaves_it_alone(backend: str) -> None:
    block = RNG.standard_normal((13, 2))
    before = block.copy()
    with pytest.raises(ValueError, match=r"(out|coarse): got memory that overlaps fine, expected memory of its own"):
        kernels.coarsen_cells(block[:10], CELLS, backend=backend, out=block[9:12])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"(out|fine): got memory that overlaps coarse, expected memory of its own"):
        kernels.refine_cells(block[:3], CELLS, backend=backend, out=block[2:12])  # type: ignore[arg-type]
    np.testing.assert_array_equal(block, before)
    field = FIELD.copy()
    inside = field.reshape(-1)[:96].reshape(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"mean\[0\]: got memory that overlaps field"):
        kernels.coarsen_pyramid(field, 1, backend, out=[inside])  # type: ignore[arg-type]
    twice = np.zeros((2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"mean\[0\]: got memory that overlaps mean\[1\]"):
        kernels.coarsen_pyramid(field, 2, backend, out=[twice, twice.reshape(-1)[:24].reshape(2, 3, 2, 2)])  # type: ignore[arg-type]
    np.testing.assert_array_equal(field, FIELD)


def test_refuses_out_where_a_gradient_is_wanted() -> None:
    field = torch.from_numpy(FIELD.copy()).requires_grad_()
    room = [torch.zeros(2, 3, 4, 4, dtype=torch.float64)]
    with pytest.raises(ValueError, match="requires grad"):
        kernels.coarsen_pyramid(field, 1, out=room)
    fine = torch.from_numpy(FINE.copy()).requires_grad_()
    with pytest.raises(ValueError, match="requires grad"):
        kernels.coarsen_cells(fine, CELLS, out=torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out\.mean\[0\]: got a tensor that requires grad, expected one without"):
        kernels.coarsen_pyramid(field.detach(), 1, out=[room[0].requires_grad_()])
