"""What passes between the stages: frozen values with arrays [point, ...], checked once at the border.

Inside the loop all fields of a side are packed into one array [point, column]; a `Layout` says which
columns belong to which field. Names appear only at the border (transport, reports).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError
from neuroscale_couple.reasons import Source

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One named field at a point: its components, unit and kind."""

    name: str
    components: tuple[str, ...]
    unit: str
    extensive: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Fields packed side by side into the columns of one array [point, column]."""

    fields: tuple[FieldSpec, ...]

    @property
    def size(self) -> int:
        """Number of columns."""
        return sum(len(f.components) for f in self.fields)

    @property
    def columns(self) -> tuple[str, ...]:
        """Full column names, e.g. `stress.xx`."""
        return tuple(f"{f.name}.{c}" if c else f.name for f in self.fields for c in f.components)

    def slice_of(self, name: str) -> slice:
        """Columns of a field. Raises: KeyError."""
        start = 0
        for f in self.fields:
            if f.name == name:
                return slice(start, start + len(f.components))
            start += len(f.components)
        raise KeyError(name)

    def pack(self, values: Mapping[str, npt.ArrayLike], n: int) -> F64:
        """Pack named fields into float64 [n, size].

        Raises: InputError if a field is missing, unknown, of a wrong shape or not finite.
        """
        names = {f.name for f in self.fields}
        if unknown := sorted(set(values) - names):
            raise InputError(f"unknown field {unknown[0]!r}; this micro problem takes {sorted(names)}")
        packed = np.empty((n, self.size))
        for f in self.fields:
            if f.name not in values:
                raise InputError(f"field {f.name!r} [{f.unit}] is missing; this micro problem takes {sorted(names)}")
            array = np.asarray(values[f.name], dtype=np.float64)
            expected = (n, len(f.components))
            if array.shape != expected and not (array.shape == (n,) and expected[1] == 1):
                names_of = ", ".join(f.components)
                raise InputError(f"field {f.name!r}: got shape {array.shape}, expected {expected} ({names_of})")
            packed[:, self.slice_of(f.name)] = array.reshape(expected)
        return packed

    def text(self, row: F64) -> str:
        """One packed row [size] for messages, e.g. `strain.xx=0.01, strain.yy=0`."""
        return ", ".join(f"{c}={v:.6g}" for c, v in zip(self.columns, row, strict=True))

    def unpack(self, packed: F64) -> dict[str, F64]:
        """Views of the packed array [n, size] by field name, float64 [n, components] each."""
        return {f.name: packed[:, self.slice_of(f.name)] for f in self.fields}


@dataclass(frozen=True, slots=True)
class Points:
    """The coupling locations that one rank owns.

    ids: int64 [n], global and unique over all ranks
    coordinates: float64 [n, dimension] m
    volumes: float64 [n] m^dimension, the macro volume that a point stands for (quadrature weight)
    parameters: name -> array [n, ...], what distinguishes the micro problems, e.g.
        `phase`: uint8 [n, y, x] micro structure; or `structure`: int64 [n], number of the configured micro structure,
        which otherwise is the point's id
    """

    ids: I64
    coordinates: F64
    volumes: F64
    parameters: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name, array in {"coordinates": self.coordinates, "volumes": self.volumes, **self.parameters}.items():
            if len(array) != n:
                raise InputError(f"points: {name!r} has {len(array)} rows, but there are {n} ids")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: I64) -> Points:
        """The points at these local rows. rows: int64 [m]."""
        return Points(
            self.ids[rows], self.coordinates[rows], self.volumes[rows], {k: v[rows] for k, v in self.parameters.items()}
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What the macro solver asks: one input row per point of this rank, every iteration.

    inputs: float64 [n, n_in], packed by the micro problem's input layout
    totals: output column name -> the sum over all points of volume * output that the answer must have;
        `COLUMN@GROUP` -> the sum over the points of a group (`correction.groups`)
    blank: the macro solver has sent nothing yet; the inputs stand in for it, so they are answered, but neither
        audited nor learned from
    """

    window: int
    iteration: int
    time: float
    dt: float
    inputs: F64
    totals: Mapping[str, float] = field(default_factory=dict)
    blank: bool = False

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A surrogate's answer for some rows.

    rows: int64 [m] local points; outputs: float64 [m, n_out]; tangent: float64 [m, n_out, n_in]
    score: float64 [m], the surrogate's own relative uncertainty, uncalibrated, >= 0
    """

    rows: I64
    outputs: F64
    tangent: F64
    score: F64


@dataclass(frozen=True, slots=True)
class FineAnswer:
    """The fine solver's answer for some rows.

    rows: int64 [m]; outputs: float64 [m, n_out]; tangent: float64 [m, n_out, n_in]
    converged: bool [m]; iterations: int64 [m], linear-solver iterations spent; residual: float64 [m], relative
    own: bool [m], False where the answer is that of another point that is alike; None: all were solved
    """

    rows: I64
    outputs: F64
    tangent: F64
    converged: Bool
    iterations: I64
    residual: F64
    own: Bool | None = None

    @property
    def solved(self) -> I64:
        """Positions int64 [k] of the answers that were solved for."""
        return np.arange(len(self.rows)) if self.own is None else np.flatnonzero(self.own)

    def take(self, which: I64) -> FineAnswer:
        """These of the answers, by position. which: int64 [k]."""
        return FineAnswer(
            self.rows[which], self.outputs[which], self.tangent[which],
            self.converged[which], self.iterations[which], self.residual[which],
            None if self.own is None else self.own[which],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Audit:
    """Fine answers at points whose surrogate answer the gate had accepted.

    rows: int64 [m]; source: uint8 [m] rung that had answered; score, estimate: float64 [m] (uncalibrated, calibrated);
    error: float64 [m] the true relative error
    """

    rows: I64
    source: U8
    score: F64
    estimate: F64
    error: F64


@dataclass(frozen=True, slots=True)
class Reply:
    """The mixed, corrected answer for all points of this rank.

    outputs: float64 [n, n_out]; tangent: float64 [n, n_out, n_in]
    source: uint8 [n] (`Source`); reason: uint8 [n] (`Reason`, why the surrogate was refused)
    error: float64 [n], estimated relative error at the configured confidence (0 for fine answers)
    """

    outputs: F64
    tangent: F64
    source: U8
    reason: U8
    error: F64

    @classmethod
    def blank(cls, n: int, outputs: int, tangent: int) -> Reply:
        """Room for n answers of so many outputs and columns of the tangent: by the fine solver, refused by nobody."""
        shape = n, outputs
        source, reason = np.full(n, Source.FINE, dtype=np.uint8), np.zeros(n, dtype=np.uint8)
        return cls(np.empty(shape), np.empty((*shape, tangent)), source, reason, np.zeros(n))


class Outputs(Mapping[str, F64]):
    """What `closure.evaluate` returns: fields by name, `tangent`, and who answered.

    tangent: float64 [n, n_out, n_in], derivative of the packed outputs with respect to the packed inputs
    """

    def __init__(self, layout: Layout, reply: Reply) -> None:
        self._fields = layout.unpack(reply.outputs)
        self.reply = reply

    @property
    def tangent(self) -> F64:
        """float64 [n, n_out, n_in]."""
        return self.reply.tangent

    @property
    def source(self) -> U8:
        """uint8 [n], see `Source`."""
        return self.reply.source

    @property
    def error(self) -> F64:
        """float64 [n], estimated relative error."""
        return self.reply.error

    def __getitem__(self, name: str) -> F64:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def finite_rows(outputs: F64, tangent: F64) -> Bool:
    """Rows without NaN or Inf, bool [n]. outputs: float64 [n, n_out]; tangent: float64 [n, n_out, n_in]"""
    return np.asarray(np.isfinite(outputs).all(axis=1) & np.isfinite(tangent).all(axis=(1, 2)))


def relative_error(got: F64, reference: F64, floor: float) -> F64:
    """Relative error of each point: |got - reference| / max(|reference|, floor).

    got, reference: float64 [n, n_out]; floor: size below which an output counts as small (same unit)
    """
    difference = np.linalg.norm(got - reference, axis=1)
    return np.asarray(difference / np.maximum(np.linalg.norm(reference, axis=1), floor), dtype=np.float64)
