"""Macro solver and service as two programs of one MPI job.

    mpirun -n 2 python macro.py : -n 1 neuroscale-couple serve case.yaml

The first macro rank gives the commands; every macro rank exchanges its rows directly with the service ranks that
own its points. Every command is answered by a status of the first service rank, so that an error on either side
reaches all ranks of both. The server is in `mpi_server`, the messages are in `wire`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import PeerError, TransportError
from neuroscale_couple.parallel import T, add_farewell, guard_exit, size, together
from neuroscale_couple.transport.base import Closure, Inputs, State, Totals
from neuroscale_couple.transport.border import check_time, describe_call, pack_inputs
from neuroscale_couple.transport.distribution import common_columns, outgoing, reply_columns, unpack_reply
from neuroscale_couple.transport.roles import split_world
from neuroscale_couple.transport.wire import (
    VERSION,
    Link,
    Text,
    describe_arrays,
    describe_layout,
    layout_from,
    receive_arrays,
    send_arrays,
)
from neuroscale_couple.values import Layout, Outputs, Points

REACTION = 5.0
"""Seconds that a failing macro rank leaves to the service to write what is to be written."""


def hello(digest: str, inputs: Layout | None = None, outputs: Layout | None = None) -> Text:
    """What each side says of itself first. digest: hash of the configuration."""
    layouts = {"inputs": describe_layout(inputs), "outputs": describe_layout(outputs)}
    return {"version": VERSION, "digest": digest, **layouts}


def compare(macro: Text, service: Text) -> None:
    """Refuse a pair that does not fit; both sides find the same. Raises: TransportError."""
    if macro["version"] != service["version"]:
        raise TransportError(
            f"the macro solver speaks version {macro['version']} of the wire format, the service version "
            f"{service['version']}: install the same neuroscale-couple on both sides"
        )
    if macro["digest"] != service["digest"]:
        raise TransportError(
            f"the macro solver was given another configuration (hash {macro['digest'][:12]}) than the service "
            f"(hash {service['digest'][:12]}): give both the same file"
        )
    for side in ("inputs", "outputs"):
        ours, theirs = macro[side], service[side]
        if ours is not None and theirs is not None and ours != theirs:
            raise TransportError(
                f"the macro solver expects the {side} {_fields(ours)}, the service has {_fields(theirs)}: "
                "give both the same micro problem"
            )


def _fields(described: list[Any]) -> str:
    return ", ".join(f"{name}({', '.join(components)}) [{unit}]" for name, components, unit, _ in described)


class MpiClosure(Closure):
    """The macro solver's side of an MPMD job; macro and service ranks may differ in number."""

    def __init__(
        self,
        comm: Any,
        points: Points,
        digest: str = "",
        inputs: Layout | None = None,
        outputs: Layout | None = None,
    ) -> None:
        """Find the service, shake hands, hand the points over.

        comm: the communicator of the macro ranks, `split_world().local`; None: take that one
        inputs, outputs: what the macro solver expects, compared with the service's where given
        Raises: TransportError, InputError. Collective: yes, over the whole job
        """
        split = split_world("macro")
        if comm is not None and size(comm) != size(split.local):
            raise TransportError(
                f"connect() got a communicator of {size(comm)} ranks, but {size(split.local)} rank(s) of this MPI job "
                "are macro ranks: pass comm=neuroscale_couple.split_world().local"
            )
        self._comm = split.local.Dup()
        self._rank: int = self._comm.Get_rank()
        self._link = Link(split.intercomm("service"))
        self._open, self._broken = True, ""
        guard_exit(self._unfinished)
        add_farewell(self._farewell)
        ours = hello(digest, inputs, outputs)
        if self._rank == 0:
            self._link.tell_all(ours)
        theirs = self._link.hear_from(0)
        self._link.flush()
        self._try("handshake", lambda: compare(ours, theirs), fatal=True)
        self._hand_over(points)
        self._welcome(ours)

    def _hand_over(self, points: Points) -> None:
        """Deal the points to the service ranks and send them."""
        self._ids = np.ascontiguousarray(points.ids, dtype=np.int64)
        columns, kinds = self._try("points", lambda: common_columns(self._comm, points), fatal=True)
        self._out = self._try("points", lambda: outgoing(self._comm, self._ids, self._link.peers), fatal=True)
        counts = np.asarray(self._comm.gather(self._out.counts.tolist()) or [])
        if self._rank == 0:
            for peer in range(self._link.peers):
                text = {"command": "points", "kinds": kinds, "counts": counts[:, peer].tolist()}
                self._link.tell(peer, text)
        for name in kinds:
            self._link.scatter_rows(self._out.pack(columns[name]), self._out.counts)
        self._link.flush()

    def _welcome(self, ours: Text) -> None:
        """The service is built: its layouts, and what it remembers of an earlier run."""
        ready = self._status("connect")
        self._try("handshake", lambda: compare(ours, {**ours, **ready["hello"]}), fatal=True)
        self.inputs, self.outputs = (layout_from(ready["hello"][side]) for side in ("inputs", "outputs"))
        self._resumed: tuple[int, State] | None = None
        if ready["windows"] is not None:
            kinds = ready["arrays"]
            self._resumed = ready["windows"], receive_arrays(self._link, ready["keeper"], kinds)
        self._window: int = ready["windows"] or 0
        self._iteration = 0

    def evaluate(self, inputs: Inputs, t: float, dt: float, totals: Totals = None, blank: bool = False) -> Outputs:
        """See `Closure.evaluate`."""
        totals = dict(totals or {})

        def check() -> npt.NDArray[np.float64]:
            self._check_usable()
            check_time(t, dt, totals, self.outputs)
            return pack_inputs(self.inputs, inputs, self._ids, self._window, self._iteration, self._rank)

        where = f"inputs of window {self._window}, iteration {self._iteration}"
        rows = self._try(where, check, describe_call(t, dt, totals))
        self._command(
            command="evaluate", window=self._window, iteration=self._iteration, time=float(t), dt=float(dt),
            totals={name: float(value) for name, value in totals.items()}, blank=blank,
        )  # fmt: skip
        self._link.scatter_rows(self._out.pack(rows), self._out.counts)
        self._status("evaluate")
        n_in, n_out = self.inputs.size, self.outputs.size
        packed = self._link.gather_rows((reply_columns(n_in, n_out),), "<f8", self._out.counts)
        self._iteration += 1
        return Outputs(self.outputs, unpack_reply(self._out.unpack(packed), n_in, n_out))

    def commit(self, macro_state: State | None = None) -> None:
        """See `Closure.commit`; the service keeps the state with its checkpoint."""

        def check() -> Any:
            self._check_usable()
            return describe_arrays(macro_state or {})

        kinds, arrays = self._try("commit", check, "calls commit")
        everyone = self._comm.gather((macro_state is not None, kinds))
        if self._rank == 0:
            given = any(has for has, _ in everyone)
            self._link.tell_all({"command": "commit", "arrays": [found for _, found in everyone] if given else None})
        send_arrays(self._link, self._rank % self._link.peers, arrays)
        self._status("commit")
        self._link.flush()
        self._window += 1
        self._iteration = 0

    def rollback(self) -> None:
        """See `Closure.rollback`."""
        self._bid("rollback")
        self._iteration = 0

    def repeat(self) -> None:
        """See `Closure.repeat`."""
        self._bid("repeat")

    def next_step(self) -> None:
        """See `Closure.next_step`."""
        self._bid("next_step")

    @property
    def model_version(self) -> int:
        """See `Closure.model_version`."""
        return self._version

    def resumed(self) -> tuple[int, State] | None:
        """See `Closure.resumed`."""
        return self._resumed

    def close(self) -> None:
        """See `Closure.close`."""
        if not self._open:
            return
        self._open = False
        self._command(command="close")
        if not self._broken:
            self._status("close")
            self._link.free()

    def abandon(self, error: BaseException) -> None:
        """See `Closure.abandon`: the whole job ends when the error leaves this rank's program."""
        if self._broken:
            self.close()
        else:
            self._broken = str(error)

    def _try(self, where: str, action: Callable[[], T], same: str = "", fatal: bool = False) -> T:
        """Do something on this rank; all macro ranks go on, or all raise. fatal: and the service ends too."""
        try:
            return together(self._comm, where, action, same)
        except Exception as found:
            if fatal:
                self._open, self._broken = False, str(found)
                self._command(command="error", message=f"{type(found).__name__}: {found}")
            raise

    def _bid(self, name: str) -> None:
        """A command without arguments."""
        self._try(name, self._check_usable, f"calls {name}")
        self._command(command=name)
        self._status(name)

    def _command(self, **text: Any) -> None:
        if self._rank == 0:
            self._link.tell_all(text)
            self._link.flush(REACTION if text["command"] in ("close", "error") else None)

    def _status(self, where: str) -> Text:
        """Wait for the service's answer to a command. Raises: PeerError on all ranks."""
        text = self._link.hear_from(0)
        if text["status"] != "ok":
            self._broken = text["message"]
            raise PeerError(f"the service failed ({where}): {text['message']}")
        self._version = int(text.get("model_version", -1))
        return text

    def _check_usable(self) -> None:
        if self._broken:
            raise TransportError(f"the service has failed earlier and cannot go on: {self._broken}")
        if not self._open:
            raise TransportError("the closure was closed; connect again to go on")

    def _unfinished(self) -> str | None:
        return "left before closure.close()" if self._open else None

    def _farewell(self, error: BaseException | None) -> None:
        """This rank ends the job: tell the service why, and let it write what is to be written."""
        if not self._open:
            return
        self._open = False
        cause = "it left before closure.close()" if error is None else f"{type(error).__name__}: {error}"
        self._link.tell_all({"command": "error", "message": f"macro rank {self._rank}: {cause}"})
        self._link.flush(REACTION)
        self._link.hear(0, REACTION)
