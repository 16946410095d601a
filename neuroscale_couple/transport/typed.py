"""The texts of messages: typed values one after the other, little-endian; every length is checked before use."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from neuroscale_couple.errors import TransportError

T = TypeVar("T")


class Writer:
    """Puts typed values one after the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, value: bytes) -> Writer:
        """Bytes as they are."""
        self._parts.append(value)
        return self

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
