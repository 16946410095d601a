"""The contract between the macro solver's side (`Closure`) and ours (`Service`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from neuroscale_couple.values import Batch, Layout, Outputs, Points, Reply

State = Mapping[str, npt.NDArray[Any]]
Inputs = Mapping[str, npt.ArrayLike]
"""Field name -> float64 [n, components], of the points of one macro rank."""
Totals = Mapping[str, float] | None
"""Output column -> prescribed sum of volume * output over all points."""


class Service(Protocol):
    """What a transport drives; `loop.Loop` is the one implementation. One per service rank, collective calls."""

    inputs: Layout
    outputs: Layout

    def evaluate(self, batch: Batch) -> Reply:
        """Answer one iteration for the points this service rank owns.

        The batch may lie in the solver's memory: it stays as it is until the next evaluate has returned, not longer.
        """

    def commit(self, macro_state: State | None) -> None:
        """The window has converged. macro_state: arrays of the macro solver to keep with the checkpoint."""

    def rollback(self) -> None:
        """Start the window afresh, all points included."""

    def repeat(self) -> None:
        """Iterate on the window from its start: steps taken in it are undone, points stay on the rung they reached."""

    def next_step(self) -> None:
        """Go on inside the window: the next evaluate starts from where the last one has ended."""

    @property
    def model_version(self) -> int:
        """Version of the surrogate that answers now; -1 without one."""

    def resumed(self) -> tuple[int, State] | None:
        """(number of committed windows, macro state) when this run was resumed, else None."""

    def close(self) -> None:
        """End of the run: write what is to be written."""


class ServiceFactory(Protocol):
    """Builds the service once its points are known. comm: mpi4py communicator of the service ranks."""

    def __call__(self, points: Points, comm: Any) -> Service: ...


class Closure(ABC):
    """The macro solver's side: the same whatever the transport.

    All calls are collective over the macro ranks.
    folder: where the run writes its results; the macro solver may write beside them
    inputs, outputs: layouts of what the micro problem takes and gives
    """

    folder: Path = Path()
    inputs: Layout
    outputs: Layout

    @abstractmethod
    def evaluate(self, inputs: Inputs, t: float, dt: float, totals: Totals = None, blank: bool = False) -> Outputs:
        """Answer all points of this rank; call as often as the solver iterates.

        inputs: field name -> float64 [n, components]; totals: output column -> prescribed sum of volume * output
        blank: the inputs stand in for none, see `Batch`; the same on all ranks
        Raises: InputError (on every rank), TransportError.
        """

    @abstractmethod
    def commit(self, macro_state: State | None = None) -> None:
        """The window has converged. macro_state: this rank's arrays to be kept with the checkpoint."""

    @abstractmethod
    def rollback(self) -> None:
        """Start the window afresh, all points included."""

    @abstractmethod
    def repeat(self) -> None:
        """Iterate on the window from its start: its steps are undone, points stay on the rung that they have reached.

        For a solver that iterates over windows of several steps, see `next_step`, or over micro problems with a state.
        """

    @abstractmethod
    def next_step(self) -> None:
        """Go on inside the window: the next evaluate starts from where the last one has ended."""

    @property
    @abstractmethod
    def model_version(self) -> int:
        """Version of the surrogate that answers now; -1 without one."""

    @abstractmethod
    def resumed(self) -> tuple[int, State] | None:
        """(number of committed windows, this rank's macro state) after `--resume`, else None."""

    @abstractmethod
    def close(self) -> None:
        """End the run; idempotent."""

    def __enter__(self) -> Closure:
        return self

    def abandon(self, error: BaseException) -> None:
        """The macro solver failed on this rank: release what can be released without the other ranks.

        Collective: no
        """
        self.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        with suppress(Exception):  # the macro solver's own error is the first cause
            self.abandon(error)
