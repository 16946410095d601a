"""Fields as a client declares them against those of the micro problem: order of components, and units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.config.units import factor
from neuroscale_couple.errors import ConfigError, InputError
from neuroscale_couple.values import F64, I64, FieldSpec, Layout


@dataclass(frozen=True)
class Columns:
    """Where the declared columns lie among the micro problem's.

    widths: number of columns of each declared field
    at: int64 [declared], column of the micro problem; factor: float64 [declared], its value = factor * declared value
    """

    widths: tuple[int, ...]
    at: I64
    factor: F64
    whole: bool

    @classmethod
    def of(cls, declared: Layout, known: Layout, side: str) -> Columns:
        """Match the fields of one side (`inputs`: all must be there; `outputs`: as wanted). Raises: InputError.

        Where nothing is declared, all columns of the micro problem are exchanged as one block.
        """
        if not declared.fields:
            return cls((known.size,), np.arange(known.size), np.ones(known.size), True)
        fields = {field.name: field for field in known.fields}
        at: list[int] = []
        factors: list[float] = []
        for field in declared.fields:
            if field.name not in fields:
                raise InputError(
                    f"the solver declares {side[:-1]} {field.name!r}, but the micro problem has {_named(known)}"
                )
            ours = fields[field.name]
            start = known.slice_of(field.name).start
            at += [start + place for place in _places(field, ours, side)]
            factors += [_factor(field, ours)] * len(field.components)
        if len(set(at)) != len(at):
            raise InputError(f"the solver declares one of the {side} twice: {_named(declared)}")
        missing = [known.columns[i] for i in range(known.size) if i not in at]
        if side == "inputs" and missing:
            raise InputError(
                f"the solver does not declare the input {missing[0]!r}; the micro problem has {_named(known)}"
            )
        whole = at == list(range(known.size)) and factors == [1.0] * known.size
        return cls(
            tuple(len(f.components) for f in declared.fields), np.array(at, dtype=np.int64), np.array(factors), whole
        )

    def gather(self, blocks: list[F64]) -> F64:
        """Declared fields, float64 [n, components] each -> the micro problem's columns, float64 [n, size]."""
        if self.whole and len(blocks) == 1:
            return blocks[0]
        packed = np.empty((len(blocks[0]), len(self.at)))
        for block, (places, scale) in zip(blocks, self._fields, strict=True):
            packed[:, places] = block if scale is None else block * scale
        return packed

    def split(self, packed: F64) -> list[F64]:
        """The micro problem's columns, [n, size] -> declared fields, float64 [n, components], views if possible."""
        return [packed[:, places] if scale is None else packed[:, places] / scale for places, scale in self._fields]

    @cached_property
    def _fields(self) -> list[tuple[slice | I64, F64 | None]]:
        """Of each declared field: its columns, as a slice where they follow each other, and its factors if not 1."""
        ends = np.cumsum(self.widths)[:-1]
        fields = zip(np.split(self.at, ends), np.split(self.factor, ends), strict=True)
        return [(_run(places), None if (scale == 1.0).all() else scale) for places, scale in fields]


def _run(places: I64) -> slice | I64:
    """Consecutive places as a slice, which is far quicker; others as they are."""
    first = int(places[0])
    return slice(first, first + len(places)) if (np.diff(places) == 1).all() else places


def tangent_of(tangent: npt.NDArray[Any], outputs: Columns, inputs: Columns) -> F64:
    """The tangent in declared columns: d(declared output)/d(declared input), contiguous.

    tangent: float64 [n, n_out, n_in], or [n, n_out, 0] where the micro problem has none
    """
    if tangent.shape[2] == 0 or (outputs.whole and inputs.whole):
        return np.ascontiguousarray(tangent)
    scale = inputs.factor / outputs.factor[:, None]
    return np.ascontiguousarray(tangent[:, outputs.at[:, None], inputs.at] * scale)


def _places(field: FieldSpec, ours: FieldSpec, side: str) -> list[int]:
    """Place of each declared component among ours."""
    unknown = [name for name in field.components if name not in ours.components]
    if unknown or (side == "inputs" and len(field.components) != len(ours.components)):
        raise InputError(
            f"the solver declares {side[:-1]} {field.name!r} with the components ({', '.join(field.components)}), "
            f"the micro problem has ({', '.join(ours.components)})"
        )
    return [ours.components.index(name) for name in field.components]


def _factor(field: FieldSpec, ours: FieldSpec) -> float:
    try:
        return factor(field.unit, ours.unit)
    except ConfigError as error:
        raise InputError(f"field {field.name!r}: the solver declares it in {field.unit!r}: {error}") from None


def _named(layout: Layout) -> str:
    return ", ".join(f"{f.name}({', '.join(f.components)}) [{f.unit}]" for f in layout.fields)
