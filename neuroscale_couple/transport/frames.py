"""The wire format of the client (`csrc/client/`) and of `transport: socket`: what its messages look like, byte by byte.

A message is a header of 24 bytes, a text of typed values and a block of data, all little-endian:

    magic "NSCW" | version u16 | kind u16 | bytes of the text u64 | bytes of the data u64

The text says what the data is; the data are arrays end to end, row-major, without padding. Nothing is pickled. Every
length is checked before it is believed, so that an old, truncated or hostile message is refused with a sentence.
The same format in C++: `csrc/client/wire.h`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError, TransportError
from neuroscale_couple.transport.typed import Reader as Reader
from neuroscale_couple.transport.typed import Writer as Writer
from neuroscale_couple.values import FieldSpec, Layout

VERSION = 2
"""Raised whenever a message changes; both sides must have the same."""
HEADER = struct.Struct("<4sHHQQ")
MAGIC = b"NSCW"
LONGEST_TEXT = 1 << 24
LONGEST_DATA = 1 << 42
MOST_DIMENSIONS = 8
_DTYPE = re.compile(r"[<|][biuf][1248]")
_EXCHANGE = struct.Struct("<ddIBB")
_BLANK, _SHARED, _SECOND = 1, 2, 4


class Kind(IntEnum):
    """What a message is; those from 64 on come from the service."""

    HELLO = 1
    POINTS = 2
    EXCHANGE = 3
    COMMIT = 4
    ROLLBACK = 5
    REPEAT = 6
    NEXT_STEP = 7
    FINISH = 8
    FAIL = 9
    SEGMENT = 10
    WELCOME = 64
    READY = 65
    ANSWER = 66
    DONE = 67
    ERROR = 68
    SHARED = 69


class Part(IntEnum):
    """Parts of an answer that a client may want, as bits."""

    TANGENT = 1
    ERROR = 2
    SOURCE = 4
    REASON = 8


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes of a message. text, data: bytes that follow."""

    kind: Kind
    text: int
    data: int

    def packed(self) -> bytes:
        """As bytes."""
        return HEADER.pack(MAGIC, VERSION, self.kind, self.text, self.data)

    @classmethod
    def parse(cls, raw: bytes) -> Header:
        """From bytes. Raises: TransportError."""
        if len(raw) != HEADER.size:
            raise TransportError(f"a message of {len(raw)} bytes is too short: its header alone has {HEADER.size}")
        magic, version, kind, text, data = HEADER.unpack(raw)
        if magic != MAGIC:
            raise TransportError(f"got bytes {raw[:4]!r} where a message starts: this is not a neuroscale client")
        if version != VERSION:
            raise TransportError(
                f"the other side speaks version {version} of the wire format, this one version {VERSION}: "
                "install the same neuroscale-couple on both sides"
            )
        if kind not in _KINDS:
            raise TransportError(f"a message has the unknown kind {kind}")
        if text > LONGEST_TEXT or data > LONGEST_DATA:
            raise TransportError(
                f"a message claims {text} bytes of text and {data} bytes of data, more than any message has "
                f"({LONGEST_TEXT} and {LONGEST_DATA})"
            )
        return cls(_KINDS[kind], text, data)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """A named array to come. dtype: as NumPy writes it, e.g. <f8; shape: all dimensions."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, array: npt.NDArray[Any]) -> ArraySpec:
        """Describe an array [...]. Raises: InputError if its dtype cannot be sent."""
        if not _DTYPE.fullmatch(array.dtype.str):
            raise InputError(f"array {name!r} of dtype {array.dtype} cannot be sent; give integers or floats")
        return cls(name, array.dtype.str, array.shape)

    @property
    def bytes(self) -> int:
        """Its size; Python's integers do not overflow."""
        count = int(self.dtype[2:])
        for length in self.shape:
            count *= length
        return count

    def empty(self) -> npt.NDArray[Any]:
        """Room for it, [shape]. Raises: TransportError if there is none."""
        try:
            return np.empty(self.shape, dtype=self.dtype)
        except (ValueError, MemoryError, OverflowError) as error:
            raise TransportError(
                f"array {self.name!r} in a message has the shape {list(self.shape)}: {error}"
            ) from None


def put_arrays(to: Writer, specs: Sequence[ArraySpec]) -> Writer:
    """Write the descriptions of arrays."""

    def put(spec: ArraySpec) -> None:
        to.text(spec.name).text(spec.dtype).each(spec.shape, lambda length: to.put("Q", length))

    return to.each(specs, put)


def get_arrays(source: Reader) -> tuple[ArraySpec, ...]:
    """Read the descriptions of arrays. Raises: TransportError."""
    return source.each(lambda: _get_array(source))


def _get_array(source: Reader) -> ArraySpec:
    name, dtype, shape = source.text(), source.text(), source.each(lambda: int(source.get("Q")))
    if not _DTYPE.fullmatch(dtype):
        raise TransportError(f"array {name!r} in a message has the unknown dtype {dtype!r}")
    if len(shape) > MOST_DIMENSIONS:
        raise TransportError(f"array {name!r} in a message has {len(shape)} dimensions; {MOST_DIMENSIONS} is the most")
    return ArraySpec(name, dtype, shape)


def put_fields(to: Writer, layout: Layout) -> None:
    """Write the fields of one side."""

    def put(field: FieldSpec) -> None:
        to.text(field.name).each(field.components, to.text).text(field.unit).put("B", field.extensive)

    to.each(layout.fields, put)


def get_fields(source: Reader) -> Layout:
    """Read the fields of one side. Raises: TransportError."""

    def get() -> FieldSpec:
        return FieldSpec(source.text(), source.each(source.text), source.text(), bool(source.get("B")))

    return Layout(source.each(get))


# -- the messages, each as a value with `packed` and `parse`


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a client. configuration: absolute path; digest: hash of what it holds, "" if not known."""

    configuration: str
    digest: str
    rank: int
    ranks: int

    def packed(self) -> bytes:
        """As text of a message."""
        return Writer().text(self.configuration).text(self.digest).put("I", self.rank).put("I", self.ranks).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Hello:
        """From a text. Raises: TransportError."""
        found = cls(text.text(), text.text(), text.get("I"), text.get("I"))
        text.end()
        if not found.rank < found.ranks <= 1 << 20:
            raise TransportError(f"a client says that it is rank {found.rank} of {found.ranks}")
        return found


@dataclass(frozen=True, slots=True)
class Declared:
    """Points and fields of one client; the arrays follow as data: ids, coordinates, volumes, parameters."""

    arrays: tuple[ArraySpec, ...]
    inputs: Layout
    outputs: Layout

    def packed(self) -> bytes:
        """As text of a message."""
        to = put_arrays(Writer(), self.arrays)
        put_fields(to, self.inputs)
        put_fields(to, self.outputs)
        return to.bytes()

    @classmethod
    def parse(cls, text: Reader) -> Declared:
        """From a text. Raises: TransportError."""
        found = cls(get_arrays(text), get_fields(text), get_fields(text))
        text.end()
        names = [spec.name for spec in found.arrays]
        if names[:3] != ["ids", "coordinates", "volumes"] or len(set(names)) != len(names):
            raise TransportError(f"points are ids, coordinates, volumes and parameters, but a message has {names}")
        ids, coordinates, volumes = found.arrays[:3]
        kinds = (ids.dtype, coordinates.dtype, volumes.dtype, len(ids.shape), len(coordinates.shape), volumes.shape)
        if kinds != ("<i8", "<f8", "<f8", 1, 2, ids.shape):
            raise TransportError(
                "points in a message: ids are int64 [n], coordinates float64 [n, d], volumes float64 [n]"
            )
        if any(spec.shape[:1] != ids.shape for spec in found.arrays):
            raise TransportError("points in a message: every array has one row per id")
        return found


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call of evaluate. wants: bits of `Part`.

    turn: which question of the shared memory holds the declared inputs; -1: they follow as data, and so does the answer
    """

    time: float
    dt: float
    iteration: int
    wants: int
    blank: bool = False
    totals: Mapping[str, float] = field(default_factory=dict)
    turn: int = -1

    def packed(self) -> bytes:
        """As text of a message."""
        flags = _BLANK * self.blank | (_SHARED | _SECOND * self.turn if self.turn >= 0 else 0)
        to = Writer().raw(_EXCHANGE.pack(self.time, self.dt, self.iteration, self.wants, flags))
        return to.each(list(self.totals.items()), lambda item: to.text(item[0]).put("d", item[1])).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Exchange:
        """From a text. Raises: TransportError."""
        time, dt, iteration, wants, flags = _EXCHANGE.unpack(text.take(_EXCHANGE.size))
        if flags > (_BLANK | _SHARED | _SECOND) or flags & (_SHARED | _SECOND) == _SECOND:
            raise TransportError(f"an exchange in a message has the unknown flags {flags}")
        totals = dict(text.each(lambda: (text.text(), float(text.get("d")))))
        text.end()
        turn = (flags & _SECOND) // _SECOND if flags & _SHARED else -1
        return cls(time, dt, iteration, wants, bool(flags & _BLANK), totals, turn)


@dataclass(frozen=True, slots=True)
class Kept:
    """Arrays of a client that go with the checkpoint; they follow as data. given: whether there is a state at all."""

    given: bool
    arrays: tuple[ArraySpec, ...]

    def packed(self) -> bytes:
        """As text of a message."""
        return put_arrays(Writer().put("B", self.given), self.arrays).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Kept:
        """From a text. Raises: TransportError."""
        found = cls(bool(text.get("B")), get_arrays(text))
        text.end()
        return found


@dataclass(frozen=True, slots=True)
class Ready:
    """The service is built: what it takes and gives, and what it remembers of an earlier run (windows: -1 if none)."""

    inputs: Layout
    outputs: Layout
    model_version: int
    windows: int
    arrays: tuple[ArraySpec, ...]

    def packed(self) -> bytes:
        """As text of a message."""
        to = Writer()
        put_fields(to, self.inputs)
        put_fields(to, self.outputs)
        to.put("q", self.model_version).put("q", self.windows)
        return put_arrays(to, self.arrays).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Ready:
        """From a text. Raises: TransportError."""
        found = cls(get_fields(text), get_fields(text), text.get("q"), text.get("q"), get_arrays(text))
        text.end()
        return found


@dataclass(frozen=True, slots=True)
class Failure:
    """The service refuses a call (fatal: and is of no more use). kind: name of the error."""

    fatal: bool
    kind: str
    message: str

    def packed(self) -> bytes:
        """As text of a message."""
        return Writer().put("B", self.fatal).text(self.kind).text(self.message).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Failure:
        """From a text. Raises: TransportError."""
        found = cls(bool(text.get("B")), text.text(), text.text())
        text.end()
        return found
