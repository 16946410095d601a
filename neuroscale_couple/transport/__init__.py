"""Stage 1 of the flow: how the macro solver's points and inputs reach the service, and the answers go back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroscale_couple.errors import ConfigError

if TYPE_CHECKING:
    from neuroscale_couple.config.load import Loaded
    from neuroscale_couple.transport.base import Closure, ServiceFactory
    from neuroscale_couple.transport.mpi_server import MpiServer
    from neuroscale_couple.values import Points


def make_closure(
    loaded: Loaded, folder: Path, factory: ServiceFactory, comm: Any, points: Points, options: Sequence[str] = ()
) -> Closure:
    """The macro solver's side of the configured transport; `record` writes its calls down as well.

    folder: where the run writes its results; options: for a service in a process of its own
    Collective: yes, over the macro ranks, and with `transport: mpi` over the whole job
    """
    settings = loaded.config.neuroscale
    closure = _make_closure(loaded, factory, comm, points, options)
    if settings.record is None:
        return closure
    from neuroscale_couple.transport.replay import Recorder

    return Recorder(closure, points, folder / settings.record, comm)


def _make_closure(
    loaded: Loaded, factory: ServiceFactory, comm: Any, points: Points, options: Sequence[str]
) -> Closure:
    settings = loaded.config.neuroscale
    if settings.transport == "socket":
        from neuroscale_couple.transport.socket import SocketClosure

        return SocketClosure(loaded.path, loaded.digest, comm, points, options, settings.socket or "")
    if settings.transport == "mpi":
        from neuroscale_couple.transport.mpi import MpiClosure

        return MpiClosure(comm, points, loaded.digest)
    from neuroscale_couple.transport.embedded import EmbeddedClosure

    return EmbeddedClosure(factory, comm, points)


def make_server(loaded: Loaded, folder: Path, factory: ServiceFactory) -> MpiServer:
    """The service's side of `transport: mpi`. Collective: yes, over the whole job."""
    from neuroscale_couple.transport.mpi_server import MpiServer

    return MpiServer(factory, loaded.digest)


def play_recorded(loaded: Loaded, connect: Callable[[Points], Closure], comm: Any = None) -> int:
    """Be the macro solver of `transport: replay`: make the calls of the recorded file; returns their number.

    connect: makes the closure for this rank's points
    Raises: ConfigError. Collective: yes, over comm
    """
    from neuroscale_couple.parallel import rank, size
    from neuroscale_couple.transport.replay import Script, play

    name = loaded.config.neuroscale.replay
    if name is None:
        raise ConfigError(f"{loaded.path}: neuroscale.transport: replay needs neuroscale.replay, a recorded .npz")
    script = Script.load(loaded.folder / name).part(rank(comm), size(comm))
    with connect(script.points) as closure:
        play(script, closure)
    return len(script.calls)
