"""Ranks of a solver that each have a service in their own process: they meet at every call, and fail together.

A message reaches one rank only, so a rank whose message is refused must say so before the others enter a collective of
the service: every call begins with one meeting, to which each rank comes with its question or with why it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from neuroscale_couple.errors import DifferentCallsError, InputError, RankError
from neuroscale_couple.parallel import agree, rank, together
from neuroscale_couple.transport.base import Service, ServiceFactory, State
from neuroscale_couple.transport.border import clock_of
from neuroscale_couple.transport.distribution import Distribution, pack_reply, unpack_reply
from neuroscale_couple.transport.embedded import PATIENCE
from neuroscale_couple.transport.frames import Exchange
from neuroscale_couple.transport.stream_server import StreamServer, arguments_of
from neuroscale_couple.transport.streams import Stream
from neuroscale_couple.values import Batch, Points, Reply

T = TypeVar("T")


class Meeting:
    """Where the ranks come together once in each call; of one rank alone nothing is asked."""

    def __init__(self, comm: Any) -> None:
        """comm: mpi4py communicator of the solver's ranks, None: one rank."""
        self.comm = comm
        self.open()

    def open(self) -> None:
        """A new call begins on this rank; met: it has met the others in it; heard: all ranks know of an error."""
        self.met = self.heard = False

    def come(self, where: str, same: str, error: BaseException | None = None) -> None:
        """Go on with all ranks, or raise on all.

        where: for the message; same: the call and its arguments, equal on all ranks; error: why this rank has none
        Raises: error, RankError, DifferentCallsError. Collective: yes
        """
        self.met = True
        try:
            agree(self.comm, error, where, same, PATIENCE)
        except Exception:
            self.heard = True
            raise

    def together(self, where: str, action: Callable[[], T]) -> T:
        """Do a part of a call; all ranks go on with their results, or all raise. Collective: yes."""
        self.met = True
        try:
            return together(self.comm, where, action, patience=PATIENCE)
        except Exception:
            self.heard = True
            raise

    def tell(self, error: BaseException) -> BaseException:
        """Let the others know of an error that they may not have heard of; returns it. Collective: no."""
        if self.comm is None or self.met:
            return error
        try:
            self.come("before its call", "", error)
        except Exception as told:
            return told
        return error


class DealtService:
    """One service of all ranks; what each rank asks is dealt to the ranks as with transport `embedded` in Python."""

    def __init__(self, factory: ServiceFactory, meeting: Meeting, points: Points) -> None:
        """Deal the points and build the service. points: of this rank. Raises: InputError, what the factory raises.

        Collective: yes
        """
        meeting.come("connecting", "calls connect")
        self._meeting = meeting
        self._distribution = Distribution(meeting.comm, points.ids)
        owned = self._distribution.move(points)
        comm = meeting.comm.Dup()
        self._service: Service = meeting.together("connecting", lambda: factory(owned, comm))
        self.inputs, self.outputs = self._service.inputs, self._service.outputs
        self.timers = clock_of(self._service)

    def evaluate(self, batch: Batch) -> Reply:
        """See `Service.evaluate`; the ranks have met before, see `RankedServer`."""
        with self.timers("transport"):
            dealt = replace(batch, inputs=self._distribution.forward(batch.inputs))
        where = f"window {batch.window}, iteration {batch.iteration}"
        reply = self._meeting.together(where, lambda: self._service.evaluate(dealt))
        with self.timers("transport"):
            rows = self._distribution.backward(pack_reply(reply))
            return unpack_reply(rows, reply.tangent.shape[2], reply.outputs.shape[1])

    def commit(self, macro_state: State | None) -> None:
        """See `Service.commit`."""
        self._call("commit", lambda: self._service.commit(macro_state))

    def rollback(self) -> None:
        """See `Service.rollback`."""
        self._call("rollback", self._service.rollback)

    def repeat(self) -> None:
        """See `Service.repeat`."""
        self._call("repeat", self._service.repeat)

    def next_step(self) -> None:
        """See `Service.next_step`."""
        self._call("next_step", self._service.next_step)

    def close(self) -> None:
        """See `Service.close`."""
        self._call("finish", self._service.close)

    def resumed(self) -> tuple[int, State] | None:
        """See `Service.resumed`."""
        return self._service.resumed()

    @property
    def model_version(self) -> int:
        """See `Service.model_version`."""
        return self._service.model_version

    def _call(self, name: str, action: Callable[[], None]) -> None:
        self._meeting.come(name, f"calls {name}")
        self._meeting.together(name, action)


class RankedServer(StreamServer):
    """Serves one rank of the solver, in step with the servers of the others."""

    def __init__(self, stream: Stream, factory: ServiceFactory, meeting: Meeting) -> None:
        super().__init__([stream], lambda points, _: DealtService(factory, meeting, points), rank(meeting.comm))
        self._meeting = meeting

    def connect(self) -> None:
        """See `StreamServer.connect`. Raises: on all ranks. Collective: yes."""
        late: Exception | None = None
        try:
            super().connect()
        except Exception as error:
            if self._meeting.heard or not self._meeting.met:
                raise
            late = error
        self._meeting.come("connecting", "calls connect", late)

    def _batch(self, calls: list[Exchange], blocks: list[Any]) -> Batch:
        """This rank's inputs, once all ranks have theirs. Raises: InputError on all ranks. Collective: yes."""
        refused: InputError | None = None
        try:
            batch = super()._batch(calls, blocks)
        except InputError as error:
            refused = error
        where, same = f"inputs of window {self._window}", f"calls exchange({arguments_of(calls[0])})"
        try:
            self._meeting.come(where, same, refused)
        except RankError as error:
            if error.kind == InputError.__name__:
                raise InputError(error.cause) from None
            raise
        except DifferentCallsError as error:
            if all(call.startswith("calls exchange(") for call in error.calls):
                raise InputError(str(error)) from None
            raise
        return batch

    def fail(self, error: BaseException) -> None:
        """Tell this rank; the service cannot be closed on one rank alone."""
        service, self._service = self._service, None
        super().fail(error)
        self._service = service
