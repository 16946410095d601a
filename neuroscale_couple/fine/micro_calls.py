"""The loop over a user's own micro simulations: `solve(data, dt)` of each, with a dictionary in and one out.

`solve_each` is the compiled one where the extension is there, else `solve_each_in_python`, which says what it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.values import F64, I64

Asked = Sequence[tuple[str, int, npt.NDArray[Any] | None]]
"""Name, size (0: a scalar) and, where it is an array, float64 [calls, size], of each input."""
Answered = Sequence[tuple[str, int]]
"""Name and size (0: a scalar) of each output."""


def solve_each_in_python(
    solves: list[Callable[[dict[str, Any], float], Any]], places: I64, rows: I64, asked: Asked, inputs: F64, dt: float,
    answered: Answered, outputs: F64, progress: I64 | memoryview, unusual: list[tuple[int, Any]],
) -> None:  # fmt: skip
    """Call every simulation once: numpy scalars and 1-D arrays by name in, as preCICE would give them; numbers out.

    places: int64 [calls], written to progress[0] before a call; rows: int64 [calls], of each call in
    inputs: float64 [points, n_in] and outputs: float64 [points, n_out], out
    unusual: gets number and answer of each call whose answer is no plain dict of finite numbers, lists of them or
        float64 arrays of the right size; its outputs are not to be used
    Raises: what a simulation raises; progress[0] is its place then
    """
    for call, (solve, place, row) in enumerate(zip(solves, places.tolist(), rows.tolist(), strict=True)):
        data, start = {}, 0
        for name, size, part in asked:
            data[name] = inputs[row, start] if part is None else part[call]
            start += max(size, 1)
        progress[0] = place
        answer = solve(data, dt)
        if not _take(answer, answered, outputs[row]):
            unusual.append((call, answer))


def _take(answer: Any, answered: Answered, row: F64) -> bool:
    """Whether an answer is usual, and its numbers: row float64 [n_out], out."""
    if type(answer) is not dict:
        return False
    start = 0
    for name, size in answered:
        end = start + max(size, 1)
        given = answer.get(name)
        values = [given] if size == 0 else given
        if not _fits(values, end - start):
            return False
        row[start:end] = values
        start = end
    return bool(np.isfinite(row[:start]).all())


def _fits(values: Any, size: int) -> bool:
    if isinstance(values, np.ndarray):
        return bool(values.dtype == np.float64) and values.shape == (size,)
    if type(values) not in (list, tuple) or len(values) != size:
        return False
    return all(isinstance(value, (float, int, np.floating, np.integer)) and _small(value) for value in values)


def _small(value: Any) -> bool:
    """Whether a number can be a double: a whole number of Python may be too large."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _chosen() -> Callable[..., None]:
    try:
        compiled: Callable[..., None] = import_module("neuroscale_couple.fine._calls").solve_each
    except ImportError as error:
        warnings.warn(
            f"the compiled loop over micro simulations is not there ({error}); a slower one in Python is used. "
            "To build it: pip install -e .",
            RuntimeWarning,
            stacklevel=2,
        )
        return solve_each_in_python
    return compiled


solve_each = _chosen()
