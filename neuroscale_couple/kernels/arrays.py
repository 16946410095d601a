"""What all kernels ask of their arrays, and how they reach the compiled extension."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from neuroscale_couple.kernels.backend import compiled, has_compiled, has_cuda

Backend = Literal["auto", "compiled", "reference", "numpy"]
_NAMES = {np.dtype(name): name for name in ("float32", "float64", "int64", "uint8")}  # str(dtype) is slow
BACKENDS = ("auto", "compiled", "reference", "numpy")


def is_tensor(array: Any) -> bool:
    """Whether `array` is a torch tensor; torch is not imported for it."""
    if isinstance(array, np.ndarray):
        return False
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def check_kind(array: Any, name: str) -> None:
    """Raises: TypeError unless `array` is a NumPy array or a torch tensor of float32 or float64."""
    if not is_tensor(array) and not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: got {type(array).__name__}, expected a NumPy array or a torch tensor")
    if dtype_of(array) not in ("float32", "float64"):
        raise TypeError(f"{name}: got dtype {array.dtype}, expected float32 or float64 in native byte order")


def check_strides(array: Any, name: str) -> None:
    """Raises: ValueError unless `array` is contiguous, row-major and aligned."""
    tensor = is_tensor(array)
    if not (array.is_contiguous() if tensor else array.flags.c_contiguous):
        strides, unit = (tuple(array.stride()), "elements") if tensor else (array.strides, "bytes")
        if not tensor and all(s % array.itemsize == 0 for s in strides):
            strides, unit = tuple(s // array.itemsize for s in strides), "elements"
        raise ValueError(
            f"{name}: got strides {strides} ({unit}) for shape {tuple(array.shape)}, "
            "expected a contiguous row-major array"
        )
    if not tensor and not array.flags.aligned:
        raise ValueError(
            f"{name}: got data at an address that is no multiple of {array.itemsize} bytes, expected aligned data"
        )


def check_like(array: Any, name: str, shape: tuple[int, ...], dtype: str, like: Any) -> None:
    """Raises: TypeError or ValueError unless `array` has this shape and dtype, and lies where `like` lies."""
    if is_tensor(array) != is_tensor(like) or not (is_tensor(array) or isinstance(array, np.ndarray)):
        raise TypeError(f"{name}: got {type(array).__name__}, expected {type(like).__name__}")
    got = dtype_of(array)
    if tuple(array.shape) != shape or got != dtype or (is_tensor(array) and array.device != like.device):
        raise ValueError(f"{name}: got {got} {tuple(array.shape)}, expected {dtype} {shape}, where {dtype_of(like)} is")
    check_strides(array, name)


def dtype_of(array: Any) -> str:
    """`float64`, for NumPy and torch alike."""
    known = _NAMES.get(array.dtype) if isinstance(array, np.ndarray) else None
    return known or str(array.dtype).removeprefix("torch.")


def choose(array: Any, backend: str) -> str:
    """`compiled`, `reference` or `numpy` for this array. Raises: ValueError."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    if is_tensor(array) and array.requires_grad:
        raise ValueError("backend: got a tensor that requires grad, expected one without (kernels.torch_ops has both)")
    on_cuda = is_tensor(array) and array.device.type == "cuda"
    if backend == "auto":
        backend = "compiled" if (has_cuda() if on_cuda else has_compiled()) else "numpy"
    if backend == "numpy" and on_cuda:
        raise ValueError("backend: got a tensor on a CUDA device without CUDA kernels, expected one on the CPU")
    if backend != "numpy" and not has_compiled():
        raise ValueError(f"backend: got {backend!r}, but the extension is not built; expected 'numpy'")
    return backend


def call(name: str, array: Any, reference: bool, *arguments: Any) -> None:
    """Run a function of the extension where `array` lies, on torch's current stream if that is a CUDA device."""
    extension: Any = compiled()
    function: Callable[..., None] = getattr(extension, name)
    if isinstance(array, np.ndarray):
        function(*arguments, reference, 0)
    elif array.is_cpu:
        quick = extension.has_functions(type(array))
        # else as NumPy arrays, which are several times cheaper to hand over than DLPack's capsules
        function(*(arguments if quick else _light(arguments, sys.modules["torch"].Tensor)), reference, 0)
    else:
        cuda = sys.modules["torch"].cuda
        elsewhere = array.get_device() != cuda.current_device()
        with cuda.device(array.device) if elsewhere else contextlib.nullcontext():
            stream = extension.current_stream(array)
            function(*arguments, reference, cuda.current_stream().cuda_stream if stream is None else stream)


def _light(arguments: Sequence[Any], tensor: Any) -> Any:
    """Tensors of the CPU as NumPy arrays, also those in lists and tuples; everything else as it is."""
    light = [
        a.numpy() if isinstance(a, tensor) and a.is_cpu else _light(a, tensor) if isinstance(a, list | tuple) else a
        for a in arguments
    ]
    return tuple(light) if isinstance(arguments, tuple) else light


def checked_by_extension(array: Any, backend: str) -> bool:
    """Whether the compiled kernel takes this array as it is, so that its own checks will do."""
    if backend not in ("auto", "compiled") or not has_compiled():
        return False
    if isinstance(array, np.ndarray):
        return True
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor) or torch.compiler.is_compiling():
        return False
    return bool(array.is_cpu or array.is_cuda)


def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
    """A new array of the kind and in the place of `like`."""
    if is_tensor(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return np.empty(shape, dtype)


def output(out: Any, name: str, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
    """Where a result goes: the caller's array, checked as inputs are, or a new one. Raises: TypeError, ValueError."""
    if out is None:
        return empty(shape, dtype, like)
    check_like(out, name, shape, dtype, like)
    if is_tensor(out) and out.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires grad, expected one without")
    if not is_tensor(out) and not out.flags.writeable:
        raise ValueError(f"{name}: got a read-only array, expected a writeable one")
    return out


def refuse_overlap(written: dict[str, Any], read: dict[str, Any]) -> None:
    """Raises: ValueError if an output shares memory with anything else of the call (the extension checks it too)."""
    names = list(written)
    for at, name in enumerate(names):
        others = {other: written[other] for other in names[at + 1 :]} | read
        for other, array in others.items():
            if array is not None and _overlap(written[name], array):
                raise ValueError(f"{name}: got memory that overlaps {other}, expected memory of its own")


def _overlap(a: Any, b: Any) -> bool:
    """Whether two contiguous arrays have bytes in common."""
    (first, a_bytes), (second, b_bytes) = (
        (array.data_ptr() if is_tensor(array) else array.ctypes.data, array.nbytes) for array in (a, b)
    )
    return bool(a_bytes and b_bytes and first < second + b_bytes and second < first + a_bytes)


def place(array: Any, like: Any) -> Any:
    """The NumPy `array` as it is, or as a tensor where `like` lies."""
    return sys.modules["torch"].as_tensor(array, device=like.device) if is_tensor(like) else array


def host(array: Any) -> Any:
    """The NumPy view of an array on the CPU; None stays None."""
    return array.numpy() if is_tensor(array) else array


def through_operator(tensor: Any, backend: str) -> bool:
    """Whether a call must go through the torch operator: autograd or torch.compile is watching."""
    torch = sys.modules["torch"]
    return backend == "auto" and bool(tensor.requires_grad or torch.compiler.is_compiling())
