"""Stage 1 of the flow: how the macro solver's points and inputs reach the service, and the answers go back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroscale_couple.config.load import Loaded
    from neuroscale_couple.transport.base import Closure, ServiceFactory
    from neuroscale_couple.transport.mpi import MpiServer
    from neuroscale_couple.values import Points


def make_closure(loaded: Loaded, folder: Path, factory: ServiceFactory, comm: Any, points: Points) -> Closure:
    """The macro solver's side of the configured transport.

    folder: where the run writes its results
    Collective: yes, over the macro ranks, and with `transport: mpi` over the whole job
    """
    if loaded.config.neuroscale.transport == "mpi":
        from neuroscale_couple.transport.mpi import MpiClosure

        return MpiClosure(comm, points, loaded.digest)
    from neuroscale_couple.transport.embedded import EmbeddedClosure

    return EmbeddedClosure(factory, comm, points)


def make_server(loaded: Loaded, folder: Path, factory: ServiceFactory) -> MpiServer:
    """The service's side of `transport: mpi`. Collective: yes, over the whole job."""
    from neuroscale_couple.transport.mpi import MpiServer

    return MpiServer(factory, loaded.digest)
