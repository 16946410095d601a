"""Which stored samples to train on, when there are many: recent ones, different ones, some of every structure."""

from __future__ import annotations

import numpy as np

from neuroscale_couple.values import F64, I64, Bool

CELLS = 50
"""Cells per input column: samples of a structure in the same cell count as the same."""


def held_out(ids: I64, share: float) -> Bool:
    """Points kept out of training: by a hash of their id, so that the choice never changes and needs no memory.

    ids: int64 [n]; share: of the points; returns bool [n]
    Source: Steele, Lea & Flood 2014 (SplitMix64).
    """
    z = np.ascontiguousarray(ids, dtype=np.int64).view(np.uint64) + np.uint64(0x632BE59BD9B4E019)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share)


def select(structure: I64, inputs: F64, cap: int) -> I64:
    """Rows to train on, ascending; at most `cap`.

    Near-duplicates (same structure, same cell of the input space: Newton iterations of one window) keep their latest
    sample only. If there are still too many, structures take turns, each giving its latest sample first and then the
    others spread over its history.

    structure: int64 [m], in the order of time; inputs: float64 [m, n_in]
    """
    rows = _latest_of_each_cell(structure, inputs)
    if len(rows) <= cap:
        return rows
    turn = _turns(structure[rows])
    return np.sort(rows[np.argsort(turn, kind="stable")[:cap]])


def _latest_of_each_cell(structure: I64, inputs: F64) -> I64:
    span = np.ptp(inputs, axis=0) if len(inputs) else np.zeros(inputs.shape[1])
    cell = np.floor((inputs - inputs.min(axis=0, initial=np.inf)) / np.where(span > 0.0, span, 1.0) * CELLS)
    keys = np.column_stack([structure, cell.astype(np.int64)])
    _, last = np.unique(keys[::-1], axis=0, return_index=True)
    return np.sort(len(structure) - 1 - last)


def _turns(structure: I64) -> I64:
    """Turn of each sample: 0 for a structure's latest, the others by bit-reversed age, which spreads them in time."""
    m = len(structure)
    order = np.lexsort((-np.arange(m), structure))
    ordered = structure[order]
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    size = np.diff(np.r_[start, m])
    age = np.arange(m) - np.repeat(start, size)
    spread = _reverse_bits(age, int(size.max() - 1).bit_length()) if m else age
    within = np.lexsort((spread, ordered))
    turn = np.empty(m, dtype=np.int64)
    turn[order[within]] = age
    return turn


def _reverse_bits(values: I64, bits: int) -> I64:
    result = np.zeros_like(values)
    for _ in range(bits):
        result = (result << 1) | (values & 1)
        values = values >> 1
    return result
