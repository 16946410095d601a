"""Deals points to service ranks: evenly, and the same whatever their order and place in space.

All global ids are put in the order of a fixed 64-bit hash and dealt round-robin, so that every service rank
owns a fixed set of points, the sets differ by one point at most, and refused points, which crowd together in
space, are spread over all ranks. An owner keeps its points in the order of their ids: permuting the macro
solver's points permutes the answers and changes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import InputError
from neuroscale_couple.parallel import agree
from neuroscale_couple.values import F64, I64, Points, Reply

U64 = npt.NDArray[np.uint64]
Rows = npt.NDArray[Any]


def hash_ids(ids: I64) -> U64:
    """Spread ids over 64 bits; one to one, so that equal hashes mean equal ids.

    ids: int64 [n]
    Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators (OOPSLA 2014), the mix of SplitMix64.
    """
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def deal(comm: Any, ids: I64, hands: int) -> I64:
    """Owner of each point: its place among all points in the order of the hash, modulo `hands`.

    ids: int64 [n], this rank's points; hands: number of service ranks
    Raises: InputError (on every rank) if an id is given twice.
    Collective: yes, over the macro ranks
    """
    size = comm.Get_size()
    hashes = hash_ids(ids)
    if size == 1:
        order = np.argsort(hashes, kind="stable")
        _refuse_duplicates(comm, hashes[order], ids[order], np.zeros(len(ids), dtype=np.int64))
        owner = np.empty(len(ids), dtype=np.int64)
        owner[order] = np.arange(len(ids)) % hands
        return owner
    # Bucket b sorts the b-th part of the range of hashes; its first place follows from the sizes of the earlier ones.
    bucket = ((hashes >> np.uint64(32)) * np.uint64(size) >> np.uint64(32)).astype(np.int64)
    out = np.argsort(bucket, kind="stable")
    sent = np.bincount(bucket, minlength=size)
    received = exchange_counts(comm, sent)
    found = exchange(comm, np.ascontiguousarray(ids[out]), sent, received)
    hashes = hash_ids(found)
    order = np.argsort(hashes, kind="stable")
    _refuse_duplicates(comm, hashes[order], found[order], np.repeat(np.arange(size), received)[order])
    first = sum(comm.allgather(len(found))[: comm.Get_rank()])
    owners = np.empty(len(found), dtype=np.int64)
    owners[order] = (first + np.arange(len(found))) % hands
    owner = np.empty(len(ids), dtype=np.int64)
    owner[out] = exchange(comm, owners, received, sent)
    return owner


def _refuse_duplicates(comm: Any, hashes: U64, ids: I64, ranks: I64) -> None:
    """Raise on every rank if two neighbours are equal; hashes ascending."""
    error = None
    twice = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twice):
        i = int(twice[0])
        error = InputError(
            f"point id {ids[i]} is given twice, by rank {ranks[i]} and by rank {ranks[i + 1]}: "
            "ids must be global and unique over all ranks; give each point to one rank only"
        )
    agree(comm, error, "dealing the points")


@dataclass(frozen=True)
class Order:
    """One side's half of a deal: rows in its own order against rows in the order of the messages.

    rows, inverse: int64 [n], or None where the two orders are one
    counts: int64 [ranks of the other side], rows exchanged with each
    """

    rows: I64 | None
    inverse: I64 | None
    counts: I64

    @classmethod
    def of(cls, rows: I64, counts: I64) -> Order:
        """From the permutation that `pack` applies. rows: int64 [n]; counts: int64 [ranks], rows of each."""
        if np.array_equal(rows, np.arange(len(rows))):
            return cls(None, None, counts)
        inverse = np.empty_like(rows)
        inverse[rows] = np.arange(len(rows))
        return cls(rows, inverse, counts)

    def pack(self, values: Rows) -> Rows:
        """The rows permuted, contiguous; a contiguous array that needs no permutation passes uncopied."""
        return np.ascontiguousarray(values) if self.rows is None else np.take(values, self.rows, axis=0)

    def unpack(self, values: Rows) -> Rows:
        """The inverse of `pack`."""
        return np.ascontiguousarray(values) if self.inverse is None else np.take(values, self.inverse, axis=0)


def outgoing(comm: Any, ids: I64, hands: int) -> Order:
    """The macro rank's half: its rows by owner, then by id. Raises: InputError. Collective: yes.

    ids: int64 [n], global; hands: number of service ranks
    """
    owner = deal(comm, ids, hands)
    return Order.of(np.lexsort((ids, owner)), np.bincount(owner, minlength=hands))


def incoming(ids: I64, counts: I64) -> Order:
    """The owner's half: received rows by id. ids: int64 [owned], as received; counts: int64 [macro ranks]."""
    return Order.of(np.argsort(ids, kind="stable"), counts)


class Distribution:
    """Moves rows between the macro ranks and the service ranks of one communicator (SPMD).

    One rank whose ids ascend pays nothing: its arrays pass through uncopied.
    """

    def __init__(self, comm: Any, ids: I64) -> None:
        """Deal the points. Raises: InputError. Collective: yes."""
        self._comm = comm
        ids = np.ascontiguousarray(ids, dtype=np.int64)
        self._out = outgoing(comm, ids, comm.Get_size())
        received = exchange_counts(comm, self._out.counts)
        self._in = incoming(exchange(comm, self._out.pack(ids), self._out.counts, received), received)
        self.owned = int(received.sum())
        self.identity = comm.Get_size() == 1 and self._out.rows is None and self._in.rows is None

    def forward(self, rows: Rows) -> Rows:
        """Rows [n, ...] of the macro rank -> rows [owned, ...] of the service rank. Collective: yes."""
        if self.identity:
            return rows
        return self._in.pack(exchange(self._comm, self._out.pack(rows), self._out.counts, self._in.counts))

    def backward(self, rows: Rows) -> Rows:
        """Rows [owned, ...] of the service rank -> rows [n, ...] of the macro rank. Collective: yes."""
        if self.identity:
            return rows
        return self._out.unpack(exchange(self._comm, self._in.unpack(rows), self._in.counts, self._out.counts))

    def move(self, points: Points) -> Points:
        """The points that this service rank owns. Raises: InputError. Collective: yes."""
        columns, _ = common_columns(self._comm, points)
        return to_points({name: self.forward(values) for name, values in columns.items()})


# ---------------------------------------------------------------------------------------------- points as columns

Kinds = dict[str, tuple[str, tuple[int, ...]]]
"""Column name -> (dtype, shape of one row)."""
_OWN = ("ids", "coordinates", "volumes")


def common_columns(comm: Any, points: Points) -> tuple[dict[str, Rows], Kinds]:
    """The arrays of the points by name, and their kinds, the same on all ranks; a rank without points adapts.

    Raises: InputError (on every rank) if ranks give different parameters.
    Collective: yes
    """
    columns, error = _columns(points)
    agree(comm, error, "checking the points")
    kinds = {name: (values.dtype.str, values.shape[1:]) for name, values in columns.items()}
    all_kinds = [json.loads(text) for text in comm.allgather(json.dumps((len(points), kinds)))]
    speaker = next((rank for rank, (n, _) in enumerate(all_kinds) if n > 0), 0)
    agreed: Kinds = {name: (dtype, tuple(shape)) for name, (dtype, shape) in all_kinds[speaker][1].items()}
    for rank, (n, found) in enumerate(all_kinds):
        if n > 0 and found != all_kinds[speaker][1]:
            raise InputError(
                f"points: rank {rank} gives {_describe(found)}, but rank {speaker} gives "
                f"{_describe(all_kinds[speaker][1])}; parameters must have one name, dtype and shape on all ranks"
            )
    if len(points) == 0:
        return {name: np.empty((0, *shape), dtype=dtype) for name, (dtype, shape) in agreed.items()}, agreed
    return columns, agreed


def _columns(points: Points) -> tuple[dict[str, Rows], InputError | None]:
    columns: dict[str, Rows] = {
        "ids": np.ascontiguousarray(points.ids, dtype=np.int64),
        "coordinates": np.ascontiguousarray(points.coordinates, dtype=np.float64),
        "volumes": np.ascontiguousarray(points.volumes, dtype=np.float64),
    }
    for name in sorted(points.parameters):
        values = np.ascontiguousarray(points.parameters[name])
        if name in _OWN or values.dtype.hasobject:
            return columns, InputError(f"points: parameter {name!r} of dtype {values.dtype} cannot be sent")
        columns[name] = values
    return columns, None


def _describe(kinds: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {np.dtype(dtype).name} {list(shape)}" for name, (dtype, shape) in kinds.items())


def to_points(columns: Mapping[str, Rows]) -> Points:
    """Points from their columns."""
    parameters = {name: values for name, values in columns.items() if name not in _OWN}
    return Points(columns["ids"], columns["coordinates"], columns["volumes"], parameters)


# ---------------------------------------------------------------------------------------------- messages


def exchange_counts(comm: Any, counts: I64) -> I64:
    """How many rows each rank sends to this one. counts: int64 [ranks], rows sent to each. Collective: yes."""
    if comm.Get_size() == 1:
        return counts
    received = np.empty(comm.Get_size(), dtype=np.int64)
    comm.Alltoall(np.ascontiguousarray(counts, dtype=np.int64), received)
    return received


def exchange(comm: Any, rows: Rows, sent: I64, received: I64) -> Rows:
    """Send consecutive blocks of rows to the ranks, receive theirs; counted in rows, so that 2 GiB is no limit.

    rows: [sum(sent), ...] contiguous. Returns [sum(received), ...] in the order of the ranks.
    Collective: yes
    """
    if comm.Get_size() == 1:
        return rows
    result = np.empty((int(received.sum()), *rows.shape[1:]), dtype=rows.dtype)
    width = row_bytes(rows)
    if width == 0:
        return result
    kind = row_type(width)
    comm.Alltoallv([rows, (sent.tolist(), _starts(sent)), kind], [result, (received.tolist(), _starts(received)), kind])
    return result


def _starts(counts: I64) -> list[int]:
    return [0, *np.cumsum(counts)[:-1].tolist()]


def row_bytes(rows: Rows) -> int:
    """Bytes of one row."""
    return int(rows.dtype.itemsize * np.prod(rows.shape[1:], dtype=np.int64))


_row_types: dict[int, Any] = {}


def row_type(width: int) -> Any:
    """MPI datatype of one row of `width` bytes, made once."""
    if width not in _row_types:
        from mpi4py import MPI

        _row_types[width] = MPI.BYTE.Create_contiguous(width).Commit()
    return _row_types[width]


def reply_columns(n_in: int, n_out: int) -> int:
    """Columns of a packed reply: outputs, tangent, error, and source and reason in one."""
    return n_out * (1 + n_in) + 2


def pack_reply(reply: Reply) -> F64:
    """A reply as rows of one array: one message instead of five.

    Returns: float64 [n, reply_columns]
    """
    n, n_out = reply.outputs.shape
    flat = reply.tangent.reshape(n, n_out * reply.tangent.shape[2])
    packed = np.empty((n, n_out + flat.shape[1] + 2))
    packed[:, :n_out] = reply.outputs
    packed[:, n_out:-2] = flat
    packed[:, -2] = reply.error
    packed[:, -1] = reply.source + 256.0 * reply.reason
    return packed


def unpack_reply(packed: F64, n_in: int, n_out: int) -> Reply:
    """The inverse of `pack_reply`; outputs [n, n_out] and tangent [n, n_out, n_in] are views."""
    who = packed[:, -1].astype(np.int64)
    tangent = packed[:, n_out:-2].reshape(len(packed), n_out, n_in)
    return Reply(
        packed[:, :n_out], tangent, (who & 255).astype(np.uint8), (who >> 8).astype(np.uint8), packed[:, -2].copy()
    )
