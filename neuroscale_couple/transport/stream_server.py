"""The service's side of the client: the ranks of a solver that share one service, and one batched answer for all.

All ranks of the solver make the same calls; the service waits until every one of them has, answers their points as
one batch, ordered by id, and sends each rank its part. What it can refuse (values that are not finite, ranks that
differ) is an error on every rank after which the session goes on; what it cannot is the end of the run on every rank.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from neuroscale_couple.errors import CheckpointError, InputError, NeuroscaleError, PeerError, TransportError
from neuroscale_couple.serial import SerialComm
from neuroscale_couple.transport.base import Service, ServiceFactory
from neuroscale_couple.transport.border import all_finite, check_time, clock_of, refuse_not_finite
from neuroscale_couple.transport.declared import Columns, tangent_of
from neuroscale_couple.transport.distribution import Order, Rows, incoming, to_points
from neuroscale_couple.transport.frames import (
    ArraySpec,
    Declared,
    Exchange,
    Failure,
    Header,
    Kept,
    Kind,
    Part,
    Reader,
    Ready,
    Writer,
)
from neuroscale_couple.transport.shared import SharedMemory
from neuroscale_couple.transport.streams import (
    Stream,
    check_kind,
    check_size,
    expect,
    receive_array,
    receive_arrays,
    receive_message,
    send_message,
    wait_for_all,
)
from neuroscale_couple.values import F64, Batch, Points, Reply

ANSWER = struct.Struct("<qBI")
PARTS = tuple(int(part) for part in Part)


class StreamServer:
    """Serves one run to the ranks of a solver, each at the end of a stream, in the order of the ranks."""

    def __init__(self, streams: Sequence[Stream], factory: ServiceFactory, first: int = 0) -> None:
        """first: rank of the solver at the end of the first stream."""
        self._first = first
        self._streams = list(streams)
        self._memory = [SharedMemory() for _ in self._streams]
        self._factory = factory
        self._service: Service | None = None
        self._window = 0

    def run(self) -> None:
        """Serve until the solver finishes.

        Raises: what the service raises, after the solver was told; PeerError if the solver failed or went away
        """
        try:
            self.connect()
            while self.step():
                pass
        except BaseException as error:
            self.fail(error)
            raise

    def connect(self) -> None:
        """Receive the points of all ranks, build the service, say what it takes and gives."""
        wait_for_all(self._streams)
        declared, arrays = [], []
        for stream in self._streams:
            header, text = expect(stream, Kind.POINTS)
            declared.append(Declared.parse(text))
            arrays.append(receive_arrays(stream, header, declared[-1].arrays))
        self._check_alike(declared)
        self._counts = np.array([len(mine["ids"]) for mine in arrays], dtype=np.int64)
        points = self._join(declared, arrays)
        service = self._service = self._factory(points, SerialComm())
        self._in = Columns.of(declared[0].inputs, service.inputs, "inputs")
        self._out = Columns.of(declared[0].outputs, service.outputs, "outputs")
        self._welcome(service)

    def _check_alike(self, declared: Sequence[Declared]) -> None:
        """All ranks declare the same fields, and those with points the same parameters. Raises: InputError."""
        for rank, mine in enumerate(declared):
            if (mine.inputs, mine.outputs) != (declared[0].inputs, declared[0].outputs):
                raise InputError(f"rank {rank} declares other fields than rank 0; all ranks declare the same")
        kinds = {
            rank: [(spec.name, spec.dtype, spec.shape[1:]) for spec in mine.arrays]
            for rank, mine in enumerate(declared)
            if mine.arrays[0].shape[0]
        }
        for rank, kind in kinds.items():
            first = next(iter(kinds))
            if kind != kinds[first]:
                raise InputError(f"points: rank {rank} gives {kind}, but rank {first} gives {kinds[first]}")

    def _join(self, declared: Sequence[Declared], arrays: Sequence[dict[str, Rows]]) -> Points:
        """The points of all ranks, in the order of their ids. Raises: InputError if an id is given twice."""
        givers = [mine for mine in arrays if len(mine["ids"])] or [arrays[0]]
        joined = {name: np.concatenate([mine[name] for mine in givers]) for name in givers[0]}
        self._ids = ids = joined["ids"]
        self._order: Order = incoming(ids, self._counts)
        rows = np.argsort(ids, kind="stable")
        twice = np.flatnonzero(ids[rows][1:] == ids[rows][:-1])
        if len(twice):
            ranks = [self._first + self._rank_of(int(rows[twice[0] + i])) for i in (0, 1)]
            raise InputError(
                f"point id {ids[rows[twice[0]]]} is given twice, by rank {ranks[0]} and by rank {ranks[1]}: "
                "ids must be global and unique over all ranks; give each point to one rank only"
            )
        return to_points({name: self._order.pack(values) for name, values in joined.items()})

    def _rank_of(self, row: int) -> int:
        """Rank that sent a row."""
        return int(np.searchsorted(np.cumsum(self._counts), row, side="right"))

    def _welcome(self, service: Service) -> None:
        resumed = service.resumed()
        kept: dict[int, dict[str, Rows]] = {}
        if resumed is not None:
            self._window = resumed[0]
            kept = _by_rank(resumed[1])
        if kept and not set(kept) <= set(range(len(self._streams))):
            raise CheckpointError(
                f"the checkpoint holds the state of rank {max(kept)}, this run has {len(self._streams)} rank(s): "
                "resume with as many ranks as before"
            )
        for rank, stream in enumerate(self._streams):
            mine = {name: np.ascontiguousarray(array) for name, array in kept.get(rank, {}).items()}
            specs = tuple(ArraySpec.of(name, array) for name, array in mine.items())
            windows = -1 if resumed is None else resumed[0]
            ready = Ready(service.inputs, service.outputs, service.model_version, windows, specs)
            send_message(stream, Kind.READY, ready.packed(), list(mine.values()))

    def step(self) -> bool:
        """Carry out the next call of the solver; False after the last one. Raises: as `run`."""
        wait_for_all(self._streams)
        header, text = self._receive(0)
        if header.kind == Kind.EXCHANGE:
            self._exchange(header, text)
        elif header.kind == Kind.COMMIT:
            self._commit(header, text)
        elif header.kind in (Kind.ROLLBACK, Kind.REPEAT, Kind.NEXT_STEP, Kind.FINISH):
            self._others_too(header.kind)
            self._bid(header.kind)
        elif header.kind == Kind.FAIL:
            raise PeerError(f"{self._streams[0].who} failed: {text.text()}")
        else:
            raise TransportError(
                f"{self._streams[0].who} sent {header.kind.name.lower()} where no call is of this kind"
            )
        return header.kind != Kind.FINISH

    def _others_too(self, kind: Kind) -> list[tuple[Header, Reader]]:
        """The same call of all other ranks. Raises: TransportError, PeerError."""
        return [check_kind(stream, kind, *self._receive(rank)) for rank, stream in enumerate(self._streams) if rank > 0]

    def _receive(self, rank: int) -> tuple[Header, Reader]:
        """The next message of a rank up to its data; memory that it offers before is taken."""
        stream = self._streams[rank]
        while True:
            header, text = receive_message(stream)
            if header.kind != Kind.SEGMENT:
                return header, text
            check_size(stream, header, 0)
            self._memory[rank].take(stream, text)

    @property
    def _ready(self) -> Service:
        assert self._service is not None
        return self._service

    def _exchange(self, header: Header, text: Reader) -> None:
        clock = clock_of(self._ready)
        with clock("transport"):
            messages = [(header, text), *self._others_too(Kind.EXCHANGE)]
            calls = [Exchange.parse(words) for _, words in messages]
            blocks = self._questions([head for head, _ in messages], calls)
        try:
            batch = self._batch(calls, blocks)
        except InputError as error:  # nothing was changed: the solver may try again
            self._tell_all(Failure(False, type(error).__name__, str(error)))
            return
        reply = self._ready.evaluate(batch)
        with clock("transport"):
            self._answer(reply, calls)

    def _questions(self, headers: list[Header], calls: list[Exchange]) -> list[F64]:
        """The declared inputs of all ranks, field by field; what one rank shares stays where it lies."""
        widths = self._in.widths
        alone = len(calls) == 1 and calls[0].turn >= 0
        blocks = [] if alone else [np.empty((len(self._ids), width)) for width in widths]
        start = 0
        for rank, (header, call, count) in enumerate(zip(headers, calls, self._counts.tolist(), strict=True)):
            stream, here = self._streams[rank], slice(start, start + count)
            start += count
            check_size(stream, header, 0 if call.turn >= 0 else 8 * count * sum(widths))
            if call.turn < 0:
                for block in blocks:
                    receive_array(stream, block[here])
                continue
            shared = self._memory[rank].question(call.turn, count, widths)
            if alone:
                return shared
            for block, part in zip(blocks, shared, strict=True):
                block[here] = part
        return blocks

    def _batch(self, calls: list[Exchange], blocks: list[Any]) -> Batch:
        """One batch of all ranks' inputs, ordered by id. Raises: InputError."""
        first = calls[0]
        for rank, call in enumerate(calls[1:], start=1):
            if arguments_of(call) != arguments_of(first):
                raise InputError(
                    f"the ranks do not do the same: rank 0 calls exchange({arguments_of(first)}), rank {rank} "
                    f"exchange({arguments_of(call)}); time, step, iteration and totals must be equal on all ranks"
                )
        check_time(first.time, first.dt, first.totals, self._ready.outputs)
        packed = self._in.gather(blocks)
        if not all_finite(packed):
            row = int(np.flatnonzero(~np.isfinite(packed).all(axis=1))[0])
            rank = self._rank_of(row)
            here = slice(int(self._counts[:rank].sum()), int(self._counts[: rank + 1].sum()))
            refused, rank = packed[here], self._first + rank
            refuse_not_finite(self._ready.inputs, refused, self._ids[here], self._window, first.iteration, rank)
        rows = self._order.pack(packed)
        return Batch(self._window, first.iteration, first.time, first.dt, rows, first.totals, first.blank)

    def _answer(self, reply: Reply, calls: list[Exchange]) -> None:
        """Send each rank the parts that it wants of its rows."""
        back = self._order.unpack
        wants = 0
        for call in calls:
            wants |= call.wants
        arrays: list[tuple[int, Rows]] = [(0, block) for block in self._out.split(back(reply.outputs))]
        more: list[Rows] = [reply.tangent, reply.error, reply.source, reply.reason]
        for part, values in zip(PARTS, more, strict=True):
            if wants & part:
                rows = back(values)
                arrays.append((part, tangent_of(rows, self._out, self._in) if part == Part.TANGENT else rows))
        start = 0
        for rank, (stream, call, count) in enumerate(zip(self._streams, calls, self._counts.tolist(), strict=True)):
            text = ANSWER.pack(self._ready.model_version, call.wants, reply.tangent.shape[2])
            mine = [rows[start : start + count] for part, rows in arrays if part == 0 or call.wants & part]
            if call.turn >= 0:
                self._memory[rank].answer(count, self._in.widths, mine)
                mine = []
            send_message(stream, Kind.ANSWER, text, [np.ascontiguousarray(rows) for rows in mine])
            start += count

    def _commit(self, header: Header, text: Reader) -> None:
        state: dict[str, Rows] = {}
        given = False
        for rank, (found, words) in enumerate([(header, text), *self._others_too(Kind.COMMIT)]):
            kept = Kept.parse(words)
            given = given or kept.given
            arrays = receive_arrays(self._streams[rank], found, kept.arrays)
            state |= {f"{rank}/{name}": array for name, array in arrays.items()}
        self._ready.commit(state if given else None)
        self._window += 1
        self._done()

    def _bid(self, kind: Kind) -> None:
        """A call without arguments."""
        service = self._ready
        calls = {
            Kind.ROLLBACK: service.rollback,
            Kind.REPEAT: service.repeat,
            Kind.NEXT_STEP: service.next_step,
            Kind.FINISH: service.close,
        }
        calls[kind]()
        self._done()

    def _done(self) -> None:
        text = Writer().put("q", self._ready.model_version).bytes()
        for stream in self._streams:
            send_message(stream, Kind.DONE, text)

    def _tell_all(self, failure: Failure) -> None:
        for stream in self._streams:
            send_message(stream, Kind.ERROR, failure.packed())

    def fail(self, error: BaseException) -> None:
        """Tell all ranks why the run ends, as far as they are there, and write what is to be written."""
        message = str(error) if isinstance(error, NeuroscaleError) else f"{type(error).__name__}: {error}"
        for stream in self._streams:
            stream.hurry()
            with suppress(Exception):
                send_message(stream, Kind.ERROR, Failure(True, type(error).__name__, message).packed())
        if self._service is not None and isinstance(error, PeerError):
            with suppress(Exception):  # the solver's own error is the first cause
                self._service.close()


def arguments_of(call: Exchange) -> str:
    """What must be equal on all ranks, as a text."""
    totals = f", totals={sorted(call.totals.items())}" if call.totals else ""
    return f"time={call.time!r}, dt={call.dt!r}, iteration={call.iteration}{totals}"


def _by_rank(state: Any) -> dict[int, dict[str, Rows]]:
    """Undo the names `<rank>/<name>` under which the ranks' arrays are kept. Raises: CheckpointError."""
    ranks: dict[int, dict[str, Rows]] = {}
    for key, array in state.items():
        rank, _, name = key.partition("/")
        if not rank.isdigit():
            raise CheckpointError(
                f"the checkpoint's macro state {key!r} was not written with transport: socket; "
                "resume with the transport of the first run"
            )
        ranks.setdefault(int(rank), {})[name] = array
    return ranks
