"""Which implementations of the kernels are there on this machine."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from typing import Any


@functools.cache
def compiled() -> Any | None:
    """The compiled extension, or None with one warning per process where it was not built.

    None without a warning where the environment says NEUROSCALE_KERNELS=numpy, to see what the kernels gain.
    """
    if os.environ.get("NEUROSCALE_KERNELS") == "numpy":
        return None
    try:
        return importlib.import_module("neuroscale_couple.kernels._compiled")
    except ImportError as error:
        warnings.warn(
            f"the compiled kernels are not there ({error}); the slower NumPy and torch references are used. "
            "To build them: pip install -e .",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def has_compiled() -> bool:
    """Whether the compiled extension was built for this interpreter."""
    return compiled() is not None


def has_cuda() -> bool:
    """Whether the extension was built with CUDA and a device can be used."""
    extension = compiled()
    return extension is not None and bool(extension.cuda_devices())
