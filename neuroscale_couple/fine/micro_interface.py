"""Stands in for the module `micro_manager` in a user's micro simulation where the Micro Manager is not installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class MicroSimulationInterface:
    """Base of a user's micro simulation: what is optional in it does nothing here, and says so."""

    def initialize(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Prepare before the first solve; optional."""
        return None

    def output(self) -> None:
        """Write results of one's own; optional."""

    def requires_initialize(self) -> bool:
        """Whether `initialize` is there."""
        return type(self).initialize is not MicroSimulationInterface.initialize

    def requires_output(self) -> bool:
        """Whether `output` is there."""
        return type(self).output is not MicroSimulationInterface.output

    def destroy(self) -> None:
        """Give back what is held; optional."""

    @property
    def name(self) -> str:
        """Name of the class."""
        return type(self).__name__


def stand_in() -> None:
    """Let `from micro_manager import MicroSimulationInterface` work from now on in this process."""
    module = ModuleType("micro_manager", "Stand-in of neuroscale-couple: the Micro Manager cannot be imported here.")
    module.__dict__["MicroSimulationInterface"] = MicroSimulationInterface
    inner = ModuleType("micro_manager.micro_simulation", module.__doc__)
    inner.__dict__["MicroSimulationInterface"] = MicroSimulationInterface
    module.__dict__["micro_simulation"] = inner
    sys.modules["micro_manager"], sys.modules["micro_manager.micro_simulation"] = module, inner
