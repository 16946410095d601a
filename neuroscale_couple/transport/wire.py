"""The wire format of the `mpi` transport: small JSON texts and blocks of rows over an intercommunicator.

A text says what follows; its sender and receiver then know the rows to come, their number and their width.
Nothing is pickled, so that a client in another language can speak it. All waiting is idle, see `parallel`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.parallel import idle_until, idle_wait_all
from neuroscale_couple.transport.border import check_state
from neuroscale_couple.transport.distribution import Rows, row_bytes, row_type
from neuroscale_couple.values import I64, FieldSpec, Layout

VERSION = 1
"""Raised whenever a message changes; both sides must have the same."""
_TEXT, _ROWS = 1, 2

Text = dict[str, Any]
Kind = list[Any]
"""[name, dtype, shape] of an array to come."""


class Link:
    """Messages to and from the ranks of the other side."""

    def __init__(self, intercomm: Any) -> None:
        self._comm = intercomm
        self.peers: int = intercomm.Get_remote_size()
        self._sending: list[tuple[Any, Any]] = []

    def tell(self, peer: int, text: Text) -> None:
        """Start to send a text to one rank of the other side; `flush` completes it."""
        data = np.frombuffer(json.dumps(text, allow_nan=False).encode(), dtype=np.uint8)
        self._sending.append((self._comm.Isend(data, dest=peer, tag=_TEXT), data))

    def tell_all(self, text: Text) -> None:
        """Start to send a text to all ranks of the other side."""
        for peer in range(self.peers):
            self.tell(peer, text)

    def hear(self, peer: int | None = None, seconds: float | None = None) -> tuple[int, Text] | None:
        """Wait for the next text of a rank, or of any (None); None if `seconds` passed first."""
        from mpi4py import MPI

        status = MPI.Status()
        source = MPI.ANY_SOURCE if peer is None else peer
        if not idle_until(lambda: bool(self._comm.Iprobe(source=source, tag=_TEXT, status=status)), seconds):
            return None
        data = bytearray(status.Get_count(MPI.BYTE))
        sender = int(status.Get_source())
        self._comm.Recv(data, source=sender, tag=_TEXT)
        text: Text = json.loads(bytes(data))
        return sender, text

    def hear_from(self, peer: int) -> Text:
        """Wait for the next text of one rank, however long it takes."""
        heard = self.hear(peer)
        assert heard is not None
        return heard[1]

    def send_rows(self, peer: int, rows: Rows) -> None:
        """Start to send contiguous rows; nothing is sent where there are none."""
        if rows.size:
            request = self._comm.Isend([rows, len(rows), row_type(row_bytes(rows))], dest=peer, tag=_ROWS)
            self._sending.append((request, rows))

    def receive_rows(self, peer: int, into: Rows) -> Any:
        """Start to receive rows into a contiguous array; None where there are none."""
        if not into.size:
            return None
        return self._comm.Irecv([into, len(into), row_type(row_bytes(into))], source=peer, tag=_ROWS)

    def scatter_rows(self, rows: Rows, counts: I64) -> None:
        """Start to send consecutive blocks of rows to the ranks of the other side.

        rows: [n, ...]; counts: int64 [ranks], rows of each
        """
        start = 0
        for peer, count in enumerate(counts.tolist()):
            self.send_rows(peer, rows[start : start + count])
            start += count

    def gather_rows(self, width: tuple[int, ...], dtype: str, counts: I64) -> Rows:
        """Receive consecutive blocks of rows from the ranks of the other side, and complete all sending.

        width: shape of a row; counts: int64 [ranks], rows of each. Returns: [n, *width]
        """
        result: Rows = np.empty((int(counts.sum()), *width), dtype=dtype)
        start, requests = 0, []
        for peer, count in enumerate(counts.tolist()):
            requests.append(self.receive_rows(peer, result[start : start + count]))
            start += count
        idle_wait_all([request for request in requests if request is not None])
        self.flush()
        return result

    def flush(self, seconds: float | None = None) -> bool:
        """Complete all sending; False if `seconds` passed first."""
        done = idle_wait_all([request for request, _ in self._sending], seconds)
        if done:
            self._sending.clear()
        return done

    def free(self) -> None:
        """Give the intercommunicator back. Collective: yes, over both sides."""
        self.flush()
        self._comm.Free()


def describe_layout(layout: Layout | None) -> list[Any] | None:
    """A layout as JSON."""
    if layout is None:
        return None
    return [[f.name, list(f.components), f.unit, f.extensive] for f in layout.fields]


def layout_from(described: list[Any]) -> Layout:
    """The inverse of `describe_layout`."""
    return Layout(tuple(FieldSpec(name, tuple(c), unit, extensive) for name, c, unit, extensive in described))


def describe_arrays(arrays: Mapping[str, Any]) -> tuple[list[Kind], list[Rows]]:
    """Named arrays as (kinds, contiguous arrays), in the order of sending.

    Raises: InputError if one does not hold numbers.
    """
    values = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in arrays.items()}
    check_state(values)
    return [[name, value.dtype.str, list(value.shape)] for name, value in values.items()], list(values.values())


def send_arrays(link: Link, peer: int, arrays: list[Rows]) -> None:
    """Start to send arrays whose kinds the other side knows, flattened."""
    for array in arrays:
        link.send_rows(peer, array.reshape(-1))


def receive_arrays(link: Link, peer: int, kinds: list[Kind]) -> dict[str, Rows]:
    """Receive arrays of known kinds from one rank."""
    arrays = {name: np.empty(shape, dtype=dtype) for name, dtype, shape in kinds}
    requests = [link.receive_rows(peer, array.reshape(-1)) for array in arrays.values()]
    idle_wait_all([request for request in requests if request is not None])
    return arrays
