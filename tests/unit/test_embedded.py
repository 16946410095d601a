"""The embedded transport in a serial run: order, failures, what the service is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.errors import FineSolverError, InputError, TransportError
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.values import Batch, Points, Reply
from tests.contract.transport_contract import IDS, Echo, N, inputs, points


class Watched(Echo):
    """Keeps what it was given; fails when told to."""

    def __init__(self, owned: Points, comm: Any) -> None:
        super().__init__(owned, comm)
        self.batches: list[Batch] = []
        self.states: list[Any] = []
        self.closed = 0
        self.fails = False

    def evaluate(self, batch: Batch) -> Reply:
        if self.fails:
            raise FineSolverError("point 7 does not converge")
        self.batches.append(batch)
        return super().evaluate(batch)

    def commit(self, macro_state: Any) -> None:
        self.states.append(macro_state)

    def close(self) -> None:
        self.closed += 1


class Built:
    """A factory that remembers its service."""

    def __call__(self, owned: Points, comm: Any) -> Watched:
        self.service = Watched(owned, comm)
        return self.service


def test_permuting_the_points_changes_nothing_that_the_service_sees() -> None:
    seen = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        built = Built()
        rows = np.array(order)
        with EmbeddedClosure(built, None, points().take(rows)) as closure:
            got = closure.evaluate({name: values[rows] for name, values in inputs().items()}, 0.0, 0.0)
        np.testing.assert_array_equal(got["flux"], inputs()["y"][rows][:, :1])
        assert built.service.owned.ids.tolist() == sorted(IDS)
        seen.append(built.service.batches[0].inputs)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_the_macro_state_reaches_the_service_as_it_is() -> None:
    built = Built()
    state = {"displacement": np.arange(3.0)}
    with EmbeddedClosure(built, None, points()) as closure:
        closure.evaluate(inputs(), 0.0, 0.0)
        closure.commit(state)
        closure.evaluate(inputs(), 0.0, 0.0)
        closure.commit()
    assert built.service.states == [state, None]


@pytest.mark.parametrize("kept", [np.array(["a"]), np.array([1j]), [{}]])
def test_a_macro_state_that_no_checkpoint_can_hold_is_refused(kept: Any) -> None:
    with EmbeddedClosure(Built(), None, points()) as closure:
        closure.evaluate(inputs(), 0.0, 0.0)
        with pytest.raises(InputError, match=r"macro_state 'name': got an array of .*, expected whole numbers"):
            closure.commit({"name": kept})
        closure.commit({"name": np.array(True), "number": 3})  # nothing was lost by it


def test_after_a_failure_the_closure_refuses_to_go_on_and_does_not_close_the_service() -> None:
    built = Built()
    closure = EmbeddedClosure(built, None, points())
    built.service.fails = True
    with pytest.raises(FineSolverError, match="point 7 does not converge"):
        closure.evaluate(inputs(), 0.0, 0.0)
    for call in (lambda: closure.evaluate(inputs(), 0.0, 0.0), closure.commit, closure.rollback):
        with pytest.raises(TransportError, match=r"the service has failed earlier.*point 7 does not converge"):
            call()
    closure.close()
    assert built.service.closed == 0


def test_an_error_of_the_macro_solver_closes_the_service_and_stays_the_first_cause() -> None:
    built = Built()
    with pytest.raises(ZeroDivisionError, match="macro"), EmbeddedClosure(built, None, points()):
        raise ZeroDivisionError("macro")
    assert built.service.closed == 1


def test_a_resumed_run_goes_on_counting_windows() -> None:
    class Resumed(Watched):
        def resumed(self) -> Any:
            return 5, {"a": np.ones(1)}

    service: list[Resumed] = []

    def factory(owned: Points, comm: Any) -> Resumed:
        service.append(Resumed(owned, comm))
        return service[0]

    with EmbeddedClosure(factory, None, points()) as closure:
        assert closure.resumed() is not None
        closure.evaluate(inputs(), 0.0, 0.0)
    assert (service[0].batches[0].window, service[0].batches[0].iteration) == (5, 0)


def test_a_rank_without_points_is_served() -> None:
    nothing = points().take(np.zeros(0, dtype=np.int64))
    with EmbeddedClosure(Echo, None, nothing) as closure:
        got = closure.evaluate({"x": np.zeros(0), "y": np.zeros((0, 2))}, 0.0, 0.0)
    assert got["force"].shape == (0, 2)
    assert got.tangent.shape == (0, 3, 3)
    assert N > 0
