"""What is checked where values cross from the macro solver to us, whatever the transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError
from neuroscale_couple.values import F64, I64, Layout


def pack_inputs(
    layout: Layout, inputs: Mapping[str, npt.ArrayLike], ids: I64, window: int, iteration: int, rank: int
) -> F64:
    """Pack the macro solver's fields and refuse what is not finite.

    ids: int64 [n]; the rest is for the message. Returns: float64 [n, layout.size]
    Raises: InputError
    """
    packed = layout.pack(inputs, len(ids))
    if not all_finite(packed):
        refuse_not_finite(layout, packed, ids, window, iteration, rank)
    return packed


def all_finite(values: F64) -> bool:
    """Whether no number is NaN or infinite, in one pass as a rule. values: float64 [...]"""
    with np.errstate(over="ignore", invalid="ignore"):
        flat = values.reshape(-1)
        finite = math.isfinite(np.dot(flat, flat))  # the squares of finite numbers may overflow, hence:
    return finite or bool(np.isfinite(values).all())


def refuse_not_finite(layout: Layout, packed: F64, ids: I64, window: int, iteration: int, rank: int) -> NoReturn:
    """Name the first number that is not finite. packed: float64 [n, layout.size], with one; ids: int64 [n].

    Raises: InputError
    """
    row, column = (int(i) for i in np.argwhere(~np.isfinite(packed))[0])
    count = int((~np.isfinite(packed)).any(axis=1).sum())
    raise InputError(
        f"the macro solver sent {layout.columns[column]} = {packed[row, column]} at point id {ids[row]} "
        f"(rank {rank}, window {window}, iteration {iteration}; {count} point(s) of this rank are not finite): "
        "its iteration has diverged; take a smaller step, or check what it fills into this field"
    )


def check_time(t: float, dt: float, totals: Mapping[str, float], outputs: Layout) -> None:
    """Refuse a time, step or total that is not a finite number or names no output. Raises: InputError."""
    for name, value in {"t": t, "dt": dt, **totals}.items():
        if not math.isfinite(value):
            raise InputError(f"the macro solver sent {name} = {value}: it must be a finite number")
    if totals and (unknown := sorted({name.partition("@")[0] for name in totals} - set(outputs.columns))):
        raise InputError(f"unknown total {unknown[0]!r}; the outputs are {list(outputs.columns)}")


def check_state(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse a macro state that no checkpoint can hold. arrays: of numbers [...], by name. Raises: InputError."""
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise InputError(
                f"macro_state {name!r}: got an array of {array.dtype}, expected whole numbers, truth values or floats "
                "of up to 64 bits; split complex numbers, and keep texts elsewhere"
            )


def describe_call(t: float, dt: float, totals: Mapping[str, float]) -> str:
    """The arguments of `evaluate` that must be equal on all ranks, as one text."""
    return f"calls evaluate(t={float(t)!r}, dt={float(dt)!r}, totals={sorted(totals.items())})"


def clock_of(service: object) -> Callable[[str], AbstractContextManager[object]]:
    """The service's stage timers, `with clock("transport")`; one that measures nothing where it keeps none."""
    timers: Callable[[str], AbstractContextManager[object]] | None = getattr(service, "timers", None)
    return timers if timers is not None else lambda stage: nullcontext()
