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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError, TransportError
from neuroscale_couple.values import FieldSpec, Layout

VERSION = 1
"""Raised whenever a message changes; both sides must have the same."""
HEADER = struct.Struct("<4sHHQQ")
MAGIC = b"NSCW"
LONGEST_TEXT = 1 << 24
LONGEST_DATA = 1 << 42
MOST_DIMENSIONS = 8
_DTYPE = re.compile(r"[<|][biuf][1248]")

T = TypeVar("T")


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
    WELCOME = 64
    READY = 65
    ANSWER = 66
    DONE = 67
    ERROR = 68


class Part(IntEnum):
    """Parts of an answer that a client may want, as bits."""

    TANGENT = 1
    ERROR = 2
    SOURCE = 4
    REASON = 8


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
        if kind not in Kind.__members__.values():
            raise TransportError(f"a message has the unknown kind {kind}")
        if text > LONGEST_TEXT or data > LONGEST_DATA:
            raise TransportError(
                f"a message claims {text} bytes of text and {data} bytes of data, more than any message has "
                f"({LONGEST_TEXT} and {LONGEST_DATA})"
            )
        return cls(Kind(kind), text, data)


class Writer:
    """Puts typed values one after the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, code: str, value: float) -> Writer:
        """A number; code: as in `struct`, e.g. Q."""
        self._parts.append(struct.pack("<" + code, value))
        return self

    def text(self, value: str) -> Writer:
        """A text: its length in bytes, then UTF-8."""
        raw = value.encode()
        self._parts.append(struct.pack("<I", len(raw)) + raw)
        return self

    def each(self, values: Sequence[T], write: Callable[[T], object]) -> Writer:
        """A list: its length, then its members."""
        self.put("I", len(values))
        for value in values:
            write(value)
        return self

    def bytes(self) -> bytes:
        """All that was put."""
        return b"".join(self._parts)


class Reader:
    """Takes typed values out of a text; every one is checked against what is left. Raises: TransportError."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self._raw) - self._at:
            raise TransportError(
                f"a message is truncated: it has {len(self._raw) - self._at} bytes left where {count} are needed"
            )
        self._at += count
        return self._raw[self._at - count : self._at]

    def get(self, code: str) -> Any:
        """A number; code: as in `struct`."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        """A text."""
        try:
            return self.take(self.get("I")).decode()
        except UnicodeDecodeError as error:
            raise TransportError(f"a text in a message is not UTF-8: {error}") from None

    def each(self, read: Callable[[], T]) -> tuple[T, ...]:
        """A list; one that cannot fit into what is left is refused before it is read."""
        count = self.get("I")
        if count > len(self._raw) - self._at:
            raise TransportError(f"a message claims a list of {count} members and has no room for them")
        return tuple(read() for _ in range(count))

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._raw):
            raise TransportError(f"a message has {len(self._raw) - self._at} bytes more than its kind allows")


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


def put_array(to: Writer, spec: ArraySpec) -> None:
    """Write an array's description."""
    to.text(spec.name).text(spec.dtype).each(spec.shape, lambda length: to.put("Q", length))


def get_array(source: Reader) -> ArraySpec:
    """Read an array's description. Raises: TransportError."""
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
        to = Writer()
        to.each(self.arrays, lambda spec: put_array(to, spec))
        put_fields(to, self.inputs)
        put_fields(to, self.outputs)
        return to.bytes()

    @classmethod
    def parse(cls, text: Reader) -> Declared:
        """From a text. Raises: TransportError."""
        found = cls(text.each(lambda: get_array(text)), get_fields(text), get_fields(text))
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
    """One call of evaluate; the declared inputs follow as data. wants: bits of `Part`."""

    time: float
    dt: float
    iteration: int
    wants: int
    blank: bool = False
    totals: Mapping[str, float] = field(default_factory=dict)

    def packed(self) -> bytes:
        """As text of a message."""
        to = Writer().put("d", self.time).put("d", self.dt).put("I", self.iteration)
        to.put("B", self.wants).put("B", self.blank)
        to.each(list(self.totals.items()), lambda item: to.text(item[0]).put("d", item[1]))
        return to.bytes()

    @classmethod
    def parse(cls, text: Reader) -> Exchange:
        """From a text. Raises: TransportError."""
        time, dt, iteration, wants = text.get("d"), text.get("d"), text.get("I"), text.get("B")
        blank, totals = bool(text.get("B")), dict(text.each(lambda: (text.text(), float(text.get("d")))))
        text.end()
        return cls(time, dt, iteration, wants, blank, totals)


@dataclass(frozen=True, slots=True)
class Kept:
    """Arrays of a client that go with the checkpoint; they follow as data. given: whether there is a state at all."""

    given: bool
    arrays: tuple[ArraySpec, ...]

    def packed(self) -> bytes:
        """As text of a message."""
        to = Writer().put("B", self.given)
        return to.each(self.arrays, lambda spec: put_array(to, spec)).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Kept:
        """From a text. Raises: TransportError."""
        found = cls(bool(text.get("B")), text.each(lambda: get_array(text)))
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
        return to.each(self.arrays, lambda spec: put_array(to, spec)).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Ready:
        """From a text. Raises: TransportError."""
        found = cls(
            get_fields(text), get_fields(text), text.get("q"), text.get("q"), text.each(lambda: get_array(text))
        )
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
