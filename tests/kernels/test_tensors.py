"""Tensors on their way into the extension: C functions and capsules of DLPack give the same views and refusals."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple import kernels
from neuroscale_couple.kernels import arrays
from neuroscale_couple.kernels.backend import compiled

pytestmark = pytest.mark.skipif(not kernels.has_compiled(), reason="the extension is not built")


class Capsules:
    """An array of a library that has capsules and nothing else."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self) -> Any:
        return self.tensor.__dlpack__()


class Subclass(torch.Tensor):
    """Has no C functions of its own, and might see to its export by itself."""


WAYS: dict[str, Callable[[torch.Tensor], Any]] = {
    "functions": lambda tensor: tensor,
    "capsules": Capsules,
    "subclass": lambda tensor: tensor.as_subclass(Subclass),
}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Callable[[torch.Tensor], Any]:
    return WAYS[request.param]


def coarsen(field: Any, mean: list[Any]) -> None:
    module: Any = compiled()
    module.coarsen_pyramid(field, [2] * len(mean), mean, None, None, None, False, 0)


def refused(field: Any, mean: list[Any] | None = None) -> str:
    with pytest.raises((TypeError, ValueError)) as error:
        coarsen(field, [np.zeros((1, 1, 2, 2))] if mean is None else mean)
    return str(error.value)


def has_functions(kind: type) -> bool:
    module: Any = compiled()
    return bool(module.has_functions(kind))


FIELD = torch.arange(16.0, dtype=torch.float64).reshape(1, 1, 4, 4)


def test_torch_has_functions_where_it_says_so() -> None:
    assert has_functions(torch.Tensor) == hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert not has_functions(Subclass)
    assert not has_functions(Capsules)
    assert not has_functions(np.ndarray)
    assert not has_functions(int)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_read_and_write_the_same(way: Callable[[Any], Any], dtype: torch.dtype) -> None:
    whole = torch.randn(3, 2, 8, 4, dtype=dtype)
    coarse = torch.full((3, 2, 2, 2), 7.0, dtype=dtype)
    coarser = torch.zeros(3, 1, 2, 1, 1, dtype=dtype)[:, 0]
    part, target = whole[1:, :, 4:].contiguous(), coarse[1:]  # which begins inside its memory
    coarsen(way(part), [way(target), way(coarser[1:])])
    expected = kernels.coarsen_pyramid(part.numpy(), 2, "numpy")
    np.testing.assert_array_equal(target.numpy(), expected[0])
    np.testing.assert_array_equal(coarser[1:].numpy(), expected[1])
    assert bool((coarse[0] == 7.0).all())
    assert bool((coarser[0] == 0.0).all())


def test_tensors_are_filled_in_place_and_released(way: Callable[[Any], Any]) -> None:
    field, coarse = way(FIELD), way(torch.zeros(1, 1, 2, 2, dtype=torch.float64))
    references = sys.getrefcount(field), sys.getrefcount(coarse)
    for _ in range(100):
        coarsen(field, [coarse])
    assert getattr(coarse, "tensor", coarse).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert (sys.getrefcount(field), sys.getrefcount(coarse)) == references


def test_numpy_and_tensors_may_be_mixed(way: Callable[[Any], Any]) -> None:
    coarse = np.zeros((1, 1, 2, 2))
    coarsen(way(torch.ones(1, 1, 4, 4, dtype=torch.float64)), [coarse])
    assert coarse.tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


def test_empty_tensors_are_taken(way: Callable[[Any], Any]) -> None:
    coarsen(way(torch.zeros(0, 1, 4, 4)), [way(torch.zeros(0, 1, 2, 2))])


def test_both_ways_refuse_alike(way: Callable[[Any], Any]) -> None:
    assert refused(way(FIELD.to(torch.int32))) == (
        "field: got dtype DLPack code 0 with 32 bits, expected float32 or float64 in native byte order"
    )
    assert refused(way(FIELD.transpose(2, 3))) == (
        "field: got strides (16, 16, 1, 4) (elements) for shape (1, 1, 4, 4), expected a contiguous row-major array"
    )
    assert refused(way(FIELD[0, 0])).startswith("field: got shape (4, 4), expected [points, components, y, x]")
    assert refused(way(torch.zeros(1))).startswith("field: got shape (1,), expected [points, components, y, x]")
    assert refused(way(torch.zeros([1] * 9))) == "field: got 9 dimensions, expected at most 8"
    assert refused(FIELD, [way(torch.zeros(1, 1, 2, 3, dtype=torch.float64))]) == (
        "mean[0]: got float64 (1, 1, 2, 3) on cpu, expected float64 (1, 1, 2, 2) on cpu"
    )
    assert refused(way(FIELD), [way(FIELD.reshape(-1)[4:8].reshape(1, 1, 2, 2))]) == (
        "mean[0]: got memory that overlaps field, expected memory of its own"
    )


def test_tensors_that_require_grad_are_refused(way: Callable[[Any], Any]) -> None:
    graded = FIELD.clone().requires_grad_()
    if way is Capsules:
        assert refused(way(graded)).startswith("field: got a tensor that its library does not hand over (Can't export")
    else:
        assert refused(way(graded)) == "field: got a tensor that requires grad, expected one without"
    out = torch.zeros(1, 1, 2, 2, dtype=torch.float64).requires_grad_()
    assert refused(FIELD, [out]) == "mean[0]: got a tensor that requires grad, expected one without"


@pytest.mark.parametrize("way", ["functions", "subclass"], indirect=True)
def test_tensors_whose_memory_holds_other_values_are_refused(way: Callable[[Any], Any]) -> None:
    negated = torch._neg_view(FIELD)
    assert negated.is_contiguous()
    assert float(negated[0, 0, 3, 3]) == -15.0
    told = "got a tensor with the negative bit set, expected one whose memory holds its values (torch: resolve_neg)"
    assert refused(way(negated)) == f"field: {told}"
    one = torch.ones(1, 1, 1, 1, dtype=torch.complex128).conj()
    assert one.imag.is_neg()
    assert refused(FIELD[:, :, :2, :2].contiguous(), [way(one.imag)]) == f"mean[0]: {told}"
    assert "expected" in refused(way(one))
    with pytest.raises(ValueError, match="field: got a tensor with the negative bit set"):
        kernels.coarsen_pyramid(negated, 1, "compiled", out=[torch.zeros(1, 1, 2, 2, dtype=torch.float64)])


def test_tensors_without_memory_are_refused(way: Callable[[Any], Any]) -> None:
    assert refused(way(torch._efficientzerotensor((1, 1, 4, 4), dtype=torch.float64))) == (
        "field: got no memory for shape (1, 1, 4, 4), expected an array with memory of its own"
    )
    emptied = FIELD.clone()
    emptied.untyped_storage().resize_(0)
    assert "field: got no memory for shape (1, 1, 4, 4)" in refused(way(emptied))
    sparse = FIELD[0, 0].to_sparse()  # which torch does not let become a subclass
    for without in (way(torch.empty(1, 1, 4, 4, device="meta")), way(sparse) if way is Capsules else sparse):
        text = refused(without)
        assert text.startswith("field: got a tensor that its library does not hand over (")
        assert text.endswith("), expected one with memory of its own")
        assert "\n" not in text


def test_a_tensor_under_vmap_is_refused() -> None:
    with pytest.raises(ValueError, match="field: got a tensor that its library does not hand over"):
        torch.vmap(lambda field: kernels.coarsen_pyramid(field, 1)[0])(torch.ones(2, 1, 1, 2, 2))


def test_an_object_that_is_no_tensor_is_refused() -> None:
    assert refused([[1.0]]) == "field: got <class 'list'>, expected a NumPy array or a DLPack tensor"
    other = SimpleNamespace(__dlpack__=lambda: 3)
    assert refused(other) == 'field: got an object without a DLPack 0.x capsule, expected "dltensor"'


def test_errors_of_a_library_arrive_as_they_are() -> None:
    class Broken:
        def __dlpack__(self) -> Any:
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        coarsen(Broken(), [])


def test_a_tensor_lives_as_long_as_the_call(way: Callable[[Any], Any]) -> None:
    """The second output takes the first out of the list: its memory is written to all the same."""
    first = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    memory = weakref.ref(first.untyped_storage()) if way is Capsules else weakref.ref(first)
    targets: list[Any] = [way(first), None]
    alive: list[bool] = []

    class Taker:
        def __dlpack__(self) -> Any:
            targets[0] = None
            alive.append(memory() is not None)
            return second.__dlpack__()

    second = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    targets[1] = Taker()
    observed = first.numpy()  # shares the memory, and keeps that alone
    del first
    coarsen(FIELD, targets)
    assert way is Capsules or alive == [True]
    assert observed.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert second.item() == 7.5


# --- a library with C functions of its own ---------------------------------------------------------------------


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


FILL = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Tensor))
STREAM = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


class Functions(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("older", ctypes.c_void_p),
        ("unused", ctypes.c_void_p * 3), ("fill", FILL), ("stream", STREAM),
    )  # fmt: skip


def library(major: int = 1, older: Functions | None = None, device: int = 1, fills: bool = True) -> Any:
    """A type of arrays with C functions; `filled` counts how often one was looked at."""

    def fill(array: Any, out: Any) -> int:
        kind.filled += 1
        held = array.held
        out[0] = Tensor(
            held.ctypes.data - 8, device, 3, held.ndim, 2, 64, 1, ctypes.addressof(array.shape),
            ctypes.addressof(array.strides), 8,
        )  # fmt: skip
        return 0

    def stream(device_type: int, device_id: int, out: Any) -> int:
        out[0] = 0x1000 * device_type + device_id
        return 0

    class Array:
        filled = 0

        def __init__(self, held: Any) -> None:
            self.held = held
            self.shape = (ctypes.c_int64 * held.ndim)(*held.shape)
            self.strides = (ctypes.c_int64 * held.ndim)(*(s // 8 for s in held.strides))

        def __dlpack__(self) -> Any:
            return torch.from_numpy(self.held).__dlpack__()

    kind: Any = Array
    table = Functions(
        major, 3, None if older is None else ctypes.addressof(older), (ctypes.c_void_p * 3)(),
        FILL(fill) if fills else FILL(), STREAM(stream),
    )  # fmt: skip
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    kind.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), b"dlpack_exchange_api", None)
    kind.table, kind.older = table, older  # alive as long as the type
    return kind


def test_any_library_with_c_functions_is_taken() -> None:
    kind = library()
    coarse = np.zeros((1, 1, 2, 2))
    coarsen(kind(FIELD.numpy()), [kind(coarse)])
    assert kind.filled == 2
    assert coarse.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert refused(kind(FIELD.numpy()[:, :, ::2])).startswith("field: got strides (16, 16, 8, 1) (elements)")


def test_functions_of_another_major_version_are_left_alone() -> None:
    newer = library(major=2)
    coarse = np.zeros((1, 1, 2, 2))
    coarsen(newer(FIELD.numpy()), [newer(coarse)])
    assert newer.filled == 0
    assert coarse.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    both = library(major=2, older=library().table)
    assert has_functions(both)
    assert not has_functions(library(major=2, older=library(major=0).table))
    assert not has_functions(library(fills=False))
    both.__dlpack_c_exchange_api__ = ctypes.addressof(both.table)  # as torch had it for a while: no capsule
    assert not has_functions(both)


def test_functions_tell_device_and_stream() -> None:
    module: Any = compiled()
    kind = library(device=2)
    assert module.current_stream(kind(np.zeros((2, 2)))) == 0x2003
    assert module.current_stream(Capsules(FIELD)) is None
    if has_functions(torch.Tensor):
        assert module.current_stream(FIELD) == 0
    with pytest.raises(ValueError, match=r"got float64 \(1, 1, 4, 4\) on cuda:3, expected memory of the CPU"):
        module.coarsen_pyramid(kind(FIELD.numpy()), [2], [kind(np.zeros((1, 1, 2, 2)))], None, None, None, True, 0)
    assert "got DLPack device type 8, expected 1 (CPU) or 2 (CUDA)" in refused(library(device=8)(FIELD.numpy()))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("current", [0, 1])
def test_cuda_tensors_go_to_their_device_and_its_stream(
    monkeypatch: pytest.MonkeyPatch, told: bool, current: int
) -> None:
    """Without a GPU: what would be asked of torch, and what the extension would get."""
    entered: list[int] = []
    calls: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=11))
    extension = SimpleNamespace(
        kernel=lambda *arguments: calls.append(arguments), current_stream=lambda array: 7 if told else None
    )
    monkeypatch.setattr(arrays, "compiled", lambda: extension)
    array = SimpleNamespace(is_cpu=False, device=1, get_device=lambda: 1)
    arrays.call("kernel", array, False, array, 3)
    assert calls == [(array, 3, False, 7 if told else 11)]
    assert entered == ([] if current == 1 else [1])


def test_tensors_without_functions_go_as_numpy_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an older torch: the face hands them over as NumPy arrays, in lists and tuples too."""
    calls: list[tuple[Any, ...]] = []
    extension = SimpleNamespace(kernel=lambda *arguments: calls.append(arguments), has_functions=lambda kind: False)
    monkeypatch.setattr(arrays, "compiled", lambda: extension)
    arrays.call("kernel", FIELD, True, FIELD, [FIELD], (None, 2))
    ((field, items, others, reference, stream),) = calls
    assert isinstance(field, np.ndarray)
    assert isinstance(items[0], np.ndarray)
    assert (others, reference, stream) == ((None, 2), True, 0)


def test_numpy_strides_that_are_no_whole_elements_are_refused() -> None:
    """Rounded down to elements they would look contiguous."""
    packed = np.zeros((1, 1, 4, 4), [("value", "f8"), ("flag", "u1")])["value"]
    told = "field: got strides (144, 144, 36, 9) (bytes) for shape (1, 1, 4, 4), expected a contiguous row-major array"
    assert refused(packed) == told
    with pytest.raises(ValueError, match=r"field: got strides \(144, 144, 36, 9\) \(bytes\)"):
        kernels.coarsen_pyramid(packed, 1, out=[np.zeros((1, 1, 2, 2))])
