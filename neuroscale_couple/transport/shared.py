"""Memory that a client shares with its service, so that arrays need not go through the channel.

The client makes a segment and seals it, so that no access to it can fail; it has no name. The service opens it
through the client's process and knows by a mark at its start that it got the right one:

    mark (16 bytes), up to 4096 | inputs, one way | inputs, the other way | answer      each part begins at a page

Questions go by turns, so that the inputs of the last batch stay as they were until the next one is answered.
The same in C++: `csrc/client/shared.h`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from neuroscale_couple.errors import TransportError
from neuroscale_couple.transport.distribution import Rows
from neuroscale_couple.transport.frames import LONGEST_DATA, Kind, Reader, Writer
from neuroscale_couple.transport.streams import Stream, send_message
from neuroscale_couple.values import F64

PAGE = 4096
_OFFER = struct.Struct("<QII16s")
_NEEDED = getattr(fcntl, "F_SEAL_SHRINK", 0x2)


@dataclass(frozen=True, slots=True)
class Offer:
    """A segment: its bytes, the process that has it, under which number, its mark, and the node. why: there is none."""

    size: int
    process: int
    file: int
    mark: bytes
    node: str
    why: str = ""

    def packed(self) -> bytes:
        """As text of a message."""
        head = _OFFER.pack(self.size, self.process, self.file, self.mark)
        return head + Writer().text(self.node).text(self.why).bytes()

    @classmethod
    def parse(cls, text: Reader) -> Offer:
        """From a text. Raises: TransportError."""
        size, process, file, mark = _OFFER.unpack(text.take(_OFFER.size))
        found = cls(size, process, file, mark, text.text(), text.text())
        text.end()
        return found


@cache
def name_of_node() -> str:
    """What tells this node, as it runs now, from any other; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Segment:
    """A client's memory, open in this process."""

    def __init__(self, offer: Offer) -> None:
        """Raises: TransportError if it is not there, not this one, or could be taken away."""
        if offer.why:
            raise TransportError(offer.why)
        if offer.node != name_of_node():
            raise TransportError("the solver runs on another node")
        if not PAGE <= offer.size <= LONGEST_DATA:
            raise TransportError(f"a segment of {offer.size} bytes was offered")
        try:
            self._memory = _opened(offer)
        except (OSError, ValueError) as error:
            raise TransportError(f"the solver's memory cannot be opened: {error}") from None
        if self._memory[: len(offer.mark)] != offer.mark:
            raise TransportError("what the solver's process has under that number is not what it offered")
        self.size = offer.size

    def numbers(self, at: int, rows: int, width: int) -> F64:
        """A view, float64 [rows, width], that begins at a byte. Raises: TransportError if it goes beyond the end."""
        if at + 8 * rows * width > self.size:
            raise TransportError(
                f"an exchange needs {at + 8 * rows * width} bytes of shared memory, the solver gave {self.size}"
            )
        return np.frombuffer(self._memory, np.float64, rows * width, at).reshape(rows, width)

    def put(self, at: int, parts: Sequence[Rows]) -> None:
        """Write arrays end to end from a byte on. Raises: TransportError if they go beyond the end."""
        total = at + sum(part.nbytes for part in parts)
        if total > self.size:
            raise TransportError(f"an answer needs {total} bytes of shared memory, the solver gave {self.size}")
        for part in parts:
            room = np.frombuffer(self._memory, part.dtype, part.size, at).reshape(part.shape)
            np.copyto(room, part)
            at += part.nbytes


def _opened(offer: Offer) -> mmap.mmap:
    path = f"/proc/{offer.process}/fd/{offer.file}"
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not memory")
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not fcntl.fcntl(file, getattr(fcntl, "F_GET_SEALS", 1034)) & _NEEDED:
            raise ValueError("it is not sealed: the solver could take it away while it is used")
        if os.fstat(file).st_size < offer.size:
            raise ValueError(f"it has {os.fstat(file).st_size} bytes where {offer.size} were offered")
        return mmap.mmap(file, offer.size)
    finally:
        os.close(file)


class SharedMemory:
    """What one rank of the solver shares with the service; nothing at first."""

    def __init__(self) -> None:
        self._segment: Segment | None = None
        self._views: dict[tuple[int, int], list[F64]] = {}

    def take(self, stream: Stream, text: Reader) -> None:
        """Answer an offer; one that cannot be taken is said once, and arrays go through the channel as before.

        Raises: TransportError if it is none, PeerError
        """
        offer = Offer.parse(text)
        self._views.clear()
        try:
            self._segment = Segment(offer)
        except TransportError as error:
            self._segment = None
            sys.stderr.write(f"neuroscale-couple: {stream.who} shares no memory, its arrays are sent: {error}\n")
        send_message(stream, Kind.SHARED, Writer().put("B", self._segment is not None).bytes())

    def question(self, turn: int, rows: int, widths: Sequence[int]) -> list[F64]:
        """The inputs of an exchange as views, float64 [rows, width] each. Raises: TransportError."""
        segment = self._given()
        if (turn, rows) not in self._views:
            at = PAGE + turn * _stride(rows, widths)
            starts = np.cumsum([0, *widths])[:-1].tolist()
            found = [segment.numbers(at + 8 * rows * start, rows, w) for start, w in zip(starts, widths, strict=True)]
            self._views[turn, rows] = found
        return self._views[turn, rows]

    def answer(self, rows: int, widths: Sequence[int], parts: Sequence[Rows]) -> None:
        """Write the answer of an exchange. widths: of the inputs. Raises: TransportError."""
        self._given().put(PAGE + 2 * _stride(rows, widths), parts)

    def _given(self) -> Segment:
        if self._segment is None:
            raise TransportError("an exchange goes through shared memory, but the solver has given none")
        return self._segment


def _stride(rows: int, widths: Sequence[int]) -> int:
    """Bytes from one question to the other."""
    return -(-8 * rows * sum(widths) // PAGE) * PAGE
