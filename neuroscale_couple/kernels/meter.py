"""What the kernels of the loop cost a run: seconds of this process, taken window by window."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
_spent = [0.0]


def metered(kernel: Kernel) -> Kernel:
    """The kernel, whose wall time is added up; a call costs half a microsecond more for it."""

    @functools.wraps(kernel)
    def measured(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return kernel(*arguments, **named)
        finally:
            _spent[0] += time.perf_counter() - start

    return measured  # type: ignore[return-value]


def seconds_spent() -> float:
    """Seconds inside metered kernels since the last call, with any backend."""
    spent, _spent[0] = _spent[0], 0.0
    return spent
