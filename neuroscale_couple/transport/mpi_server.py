"""The service's side of the `mpi` transport: waits for commands without burning a core, and answers them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from neuroscale_couple.errors import CheckpointError, PeerError, TransportError
from neuroscale_couple.parallel import T, is_second_hand, print_error, together
from neuroscale_couple.transport.base import Service, ServiceFactory, State
from neuroscale_couple.transport.border import clock_of
from neuroscale_couple.transport.distribution import Rows, incoming, pack_reply, to_points
from neuroscale_couple.transport.embedded import PATIENCE
from neuroscale_couple.transport.mpi import compare, hello
from neuroscale_couple.transport.roles import split_world
from neuroscale_couple.transport.wire import Link, Text, describe_arrays, receive_arrays, send_arrays
from neuroscale_couple.values import Batch, Layout

FAREWELL = 60.0
"""Seconds that a failed service waits for the macro solver to close before it ends the job."""


class MpiServer:
    """Serves one run to the macro ranks of the same MPI job."""

    def __init__(
        self,
        factory: ServiceFactory,
        digest: str = "",
        inputs: Layout | None = None,
        outputs: Layout | None = None,
    ) -> None:
        """digest: hash of the configuration; inputs, outputs: compared with what the macro solver expects.

        Raises: TransportError if the job has no macro rank. Collective: yes, over the whole job
        """
        split = split_world("service")
        self._factory = factory
        self._comm = split.local.Dup()
        self._rank: int = self._comm.Get_rank()
        self._link = Link(split.intercomm("macro"))
        self._hello = hello(digest, inputs, outputs)
        self._service: Service | None = None

    def run(self) -> None:
        """Serve until the macro solver closes.

        Raises: what the service raises, after the macro solver was told; PeerError if the macro solver failed;
        TransportError if the two sides do not fit. Collective: yes
        """
        try:
            self._connect()
            while self._obey(self._hear()):
                pass
        except PeerError:
            with suppress(Exception):  # the macro solver's own error is the first cause
                if self._service is not None:
                    self._service.close()
            self._tell({"status": "ok"})
            self._link.flush(FAREWELL)
            raise
        except Exception as error:
            self._fail(error)
            raise

    def _connect(self) -> None:
        if self._rank == 0:
            self._link.tell_all(self._hello)
        theirs = self._link.hear_from(0)
        self._link.flush()
        try:
            compare(theirs, self._hello)
        except TransportError as error:  # the macro solver finds the same, and says it
            raise PeerError(str(error)) from None
        text = self._hear()
        if text["command"] != "points":
            raise TransportError(f"the macro solver sent {text['command']!r} before its points")
        counts = np.asarray(text["counts"], dtype=np.int64)
        received = {
            name: self._link.gather_rows(tuple(shape), dtype, counts) for name, (dtype, shape) in text["kinds"].items()
        }
        self._in = incoming(received["ids"], counts)
        points = to_points({name: self._in.pack(rows) for name, rows in received.items()})
        service_comm = self._comm.Dup()
        self._service = service = self._together("connecting", lambda: self._factory(points, service_comm))
        self._inputs, self._outputs = service.inputs, service.outputs
        self._welcome(service)

    def _welcome(self, service: Service) -> None:
        """Say what the service takes and gives, and give back the macro solver's state of an earlier run."""
        resumed = service.resumed()
        mine = {} if resumed is None else _by_macro_rank(resumed[1])
        described = {macro: describe_arrays(arrays) for macro, arrays in mine.items()}
        kept: dict[int, tuple[int, Any]] = {}
        for keeper, kinds in enumerate(self._comm.allgather({macro: kinds for macro, (kinds, _) in described.items()})):
            for macro, kind in kinds.items():
                kept.setdefault(macro, (keeper, kind))
        if kept and set(kept) != set(range(self._link.peers)):
            raise CheckpointError(
                f"the checkpoint holds the state of {len(kept)} macro rank(s), this run has {self._link.peers}: "
                "resume with as many macro ranks as before"
            )
        said = self._ok | {"hello": hello(self._hello["digest"], service.inputs, service.outputs)}
        windows = None if resumed is None else resumed[0]
        for macro in range(self._link.peers):
            keeper, kinds = kept.get(macro, (0, []))
            if self._rank == 0:
                self._link.tell(macro, {**said, "windows": windows, "keeper": keeper, "arrays": kinds})
            if keeper == self._rank and macro in described:
                send_arrays(self._link, macro, described[macro][1])
        self._link.flush()

    def _hear(self) -> Text:
        """The next command. Raises: PeerError if the macro solver failed."""
        heard = self._link.hear()
        assert heard is not None
        text = heard[1]
        if text["command"] == "error":
            raise PeerError(f"the macro solver failed: {text['message']}")
        return text

    def _obey(self, text: Text) -> bool:
        """Carry out one command; False after the last one."""
        command = text["command"]
        if command == "evaluate":
            self._evaluate(text)
        elif command == "commit":
            self._commit(text["arrays"])
        elif command in ("rollback", "repeat", "next_step"):
            self._together(command, getattr(self._ready, command))
            self._tell(self._ok)
        elif command == "close":
            self._together("close", self._ready.close)
            self._tell({"status": "ok"})
            self._link.free()
            return False
        else:
            raise TransportError(f"the macro solver sent the unknown command {command!r}")
        return True

    @property
    def _ready(self) -> Service:
        assert self._service is not None
        return self._service

    @property
    def _ok(self) -> Text:
        """The status of a command that was carried out, and which model answers now."""
        return {"status": "ok", "model_version": self._ready.model_version}

    def _evaluate(self, text: Text) -> None:
        clock = clock_of(self._ready)
        with clock("transport"):
            rows = self._in.pack(self._link.gather_rows((self._inputs.size,), "<f8", self._in.counts))
        window, iteration, t, dt = (text[name] for name in ("window", "iteration", "time", "dt"))
        batch = Batch(window, iteration, t, dt, rows, text["totals"], text["blank"])
        place = f"window {batch.window}, iteration {batch.iteration}"
        reply = self._together(place, lambda: self._ready.evaluate(batch))
        with clock("transport"):
            self._tell(self._ok)
            self._link.scatter_rows(self._in.unpack(pack_reply(reply)), self._in.counts)
            self._link.flush()

    def _commit(self, kinds: list[Any] | None) -> None:
        """Receive the state of the macro ranks that this service rank keeps, and commit."""
        state: dict[str, Rows] = {}
        for macro in range(self._rank, self._link.peers, self._comm.Get_size()):
            arrays = receive_arrays(self._link, macro, kinds[macro]) if kinds is not None else {}
            state |= {f"{macro}/{name}": array for name, array in arrays.items()}
        self._together("commit", lambda: self._ready.commit(state if kinds is not None else None))
        self._tell(self._ok)

    def _tell(self, text: Text) -> None:
        if self._rank == 0:
            self._link.tell_all(text)

    def _together(self, where: str, action: Callable[[], T]) -> T:
        """Run a part of the service; all service ranks go on, or all raise."""
        return together(self._comm, where, action, patience=PATIENCE)

    def _fail(self, error: Exception) -> None:
        """Tell the macro solver, which may want to write its own state, and wait until it has closed."""
        if not is_second_hand(error):
            print_error(error)
        cause = str(error) if is_second_hand(error) else f"{type(error).__name__}: {error}"
        self._tell({"status": "error", "message": cause})
        self._link.flush(FAREWELL)
        self._link.hear(seconds=FAREWELL)


def _by_macro_rank(state: State) -> dict[int, dict[str, Rows]]:
    """Undo the names `<macro rank>/<name>` under which the state is kept."""
    ranks: dict[int, dict[str, Rows]] = {}
    for key, array in state.items():
        rank, _, name = key.partition("/")
        if not rank.isdigit():
            raise CheckpointError(
                f"the checkpoint's macro state {key!r} was not written with transport: mpi; "
                "resume with the transport of the first run"
            )
        ranks.setdefault(int(rank), {})[name] = array
    return ranks
