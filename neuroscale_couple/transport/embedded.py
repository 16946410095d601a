"""The service in the macro solver's own process: serial, or SPMD with every macro rank a service rank too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import TransportError
from neuroscale_couple.parallel import T, communicator, guard_exit, together
from neuroscale_couple.transport.base import Closure, Inputs, ServiceFactory, State, Totals
from neuroscale_couple.transport.border import check_state, check_time, clock_of, describe_call, pack_inputs
from neuroscale_couple.transport.distribution import Distribution, pack_reply, unpack_reply
from neuroscale_couple.values import F64, Batch, Outputs, Points, Reply

PATIENCE = 20.0
"""Seconds that a rank whose service failed waits for ranks that may be stuck inside theirs."""


class EmbeddedClosure(Closure):
    """Every macro rank is a service rank; points are dealt anew among them."""

    def __init__(self, factory: ServiceFactory, comm: Any, points: Points) -> None:
        """Deal the points and build the service. comm: mpi4py communicator, or None: serial.

        Raises: InputError, what the factory raises. Collective: yes
        """
        self._comm = communicator(comm).Dup()
        self._rank: int = self._comm.Get_rank()
        self._ids = points.ids
        self._broken: str | None = None
        self._closed = False
        if self._comm.Get_size() > 1:
            guard_exit(self._unfinished)
        self._distribution = Distribution(self._comm, points.ids)
        owned = self._distribution.move(points)
        service_comm = self._comm.Dup()
        self._service = self._together("connecting", lambda: factory(owned, service_comm))
        self._clock = clock_of(self._service)
        self.inputs, self.outputs = self._service.inputs, self._service.outputs
        resumed = self._service.resumed()
        self._window = 0 if resumed is None else resumed[0]
        self._iteration = 0

    def evaluate(self, inputs: Inputs, t: float, dt: float, totals: Totals = None, blank: bool = False) -> Outputs:
        """See `Closure.evaluate`."""
        totals = totals or {}
        with self._clock("transport"):
            rows = self._distribution.forward(self._received(inputs, t, dt, totals))
        batch = Batch(self._window, self._iteration, t, dt, rows, totals, blank)
        place = f"window {self._window}, iteration {self._iteration}"
        reply = self._together(place, lambda: self._service.evaluate(batch))
        self._iteration += 1
        with self._clock("transport"):
            return Outputs(self._service.outputs, self._sent_back(reply))

    def _received(self, inputs: Mapping[str, npt.ArrayLike], t: float, dt: float, totals: Mapping[str, float]) -> F64:
        """Pack and check this rank's inputs; all ranks go on, or all raise."""

        def check() -> F64:
            self._check_usable()
            check_time(t, dt, totals, self._service.outputs)
            return pack_inputs(self._service.inputs, inputs, self._ids, self._window, self._iteration, self._rank)

        where = f"inputs of window {self._window}, iteration {self._iteration}"
        return together(self._comm, where, check, describe_call(t, dt, totals) if self._comm.Get_size() > 1 else "")

    def _sent_back(self, reply: Reply) -> Reply:
        back = self._distribution.backward
        if self._comm.Get_size() == 1:
            return Reply(*(back(a) for a in (reply.outputs, reply.tangent, reply.source, reply.reason, reply.error)))
        return unpack_reply(back(pack_reply(reply)), reply.tangent.shape[2], reply.outputs.shape[1])

    def commit(self, macro_state: State | None = None) -> None:
        """See `Closure.commit`."""

        def check() -> None:
            self._check_usable()
            check_state({name: np.asarray(value) for name, value in (macro_state or {}).items()})

        together(self._comm, "commit", check, "calls commit")
        self._together(f"commit of window {self._window}", lambda: self._service.commit(macro_state))
        self._window += 1
        self._iteration = 0

    def rollback(self) -> None:
        """See `Closure.rollback`."""
        self._call("rollback", lambda: self._service.rollback())
        self._iteration = 0

    def repeat(self) -> None:
        """See `Closure.repeat`."""
        self._call("repeat", lambda: self._service.repeat())

    def next_step(self) -> None:
        """See `Closure.next_step`."""
        self._call("next_step", lambda: self._service.next_step())

    @property
    def model_version(self) -> int:
        """See `Closure.model_version`."""
        return self._service.model_version

    def resumed(self) -> tuple[int, State] | None:
        """See `Closure.resumed`."""
        return self._service.resumed()

    def close(self) -> None:
        """See `Closure.close`."""
        if self._closed:
            return
        self._closed = True
        if self._broken is None:
            self._together("close", self._service.close)

    def abandon(self, error: BaseException) -> None:
        """See `Closure.abandon`: serial runs close; several ranks cannot do so together, their job ends."""
        if self._comm.Get_size() == 1 or self._broken is not None:
            self.close()
        else:
            self._broken = str(error)

    def _call(self, name: str, action: Callable[[], None]) -> None:
        together(self._comm, name, self._check_usable, f"calls {name}")
        self._together(f"{name} of window {self._window}", action)

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise TransportError(f"the service has failed earlier and cannot go on: {self._broken}")
        if self._closed:
            raise TransportError("the closure was closed; connect again to go on")

    def _together(self, where: str, action: Callable[[], T]) -> T:
        """Run a part of the service; all ranks go on, or all raise and the closure is of no more use."""
        try:
            return together(self._comm, where, action, patience=PATIENCE)
        except Exception as found:
            self._broken = str(found)
            raise

    def _unfinished(self) -> str | None:
        return None if self._closed else "left before closure.close()"
