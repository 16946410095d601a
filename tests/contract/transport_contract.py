"""What every transport must do for the macro solver: checks that each take a way to open a closure.

A check opens one closure over `points()` and closes it, so that the same checks run in one process
(`test_transport.py`) and against a service in another program of an MPI job (`programs/contract.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.errors import InputError, TransportError
from neuroscale_couple.transport.base import Closure
from neuroscale_couple.values import Batch, FieldSpec, Layout, Points, Reply

Open = Callable[[Points], Closure]
IDS = np.array([40, 7, 23, 11], dtype=np.int64)
N = len(IDS)


def points() -> Points:
    """Four points whose answers differ by their parameter."""
    return Points(IDS, np.zeros((N, 2)), np.ones(N), {"stiffness": IDS * 0.5})


class Echo:
    """A service: force = stiffness * (x + 10 y), flux = y; its error tells window, iteration and step.

    A step inside the window counts 1000, a blank batch 100; each commit makes its model one version younger.
    """

    inputs = Layout((FieldSpec("x", ("",), "m"), FieldSpec("y", ("a", "b"), "1")))
    outputs = Layout((FieldSpec("force", ("a", "b"), "N"), FieldSpec("flux", ("",), "W")))

    def __init__(self, owned: Points, comm: Any) -> None:
        self.owned = owned
        self.step, self.model_version = 0, 3

    def evaluate(self, batch: Batch) -> Reply:
        stiffness = self.owned.parameters["stiffness"][:, None]
        outputs = np.concatenate(
            [stiffness * (batch.inputs[:, :1] + 10 * batch.inputs[:, 1:]), batch.inputs[:, 1:2]], 1
        )
        tangent = np.zeros((len(batch), 3, 3))
        tangent[:, 0, 0] = stiffness[:, 0]
        who = (self.owned.ids % 3).astype(np.uint8)
        told = np.full(len(batch), batch.window + 0.01 * batch.iteration + batch.time + batch.dt)
        told += 1000 * self.step + 100 * batch.blank
        return Reply(outputs, tangent, who, who, told + sum(batch.totals.values()))

    def commit(self, macro_state: Mapping[str, Any] | None) -> None:
        self.step = 0
        self.model_version += 1

    def rollback(self) -> None:
        self.step = 0

    def repeat(self) -> None:
        self.step = 0

    def next_step(self) -> None:
        self.step += 1

    def resumed(self) -> None:
        return None

    def close(self) -> None:
        pass


def inputs(factor: float = 1.0) -> dict[str, Any]:
    """Values of the macro solver."""
    return {"x": np.arange(N) * factor, "y": np.arange(2 * N).reshape(N, 2) * factor}


def check_each_point_gets_its_own_answer(open_closure: Open) -> None:
    with open_closure(points()) as closure:
        got = closure.evaluate(inputs(), 0.0, 0.0)
    x, y = inputs()["x"], inputs()["y"]
    assert sorted(got) == ["flux", "force"]
    np.testing.assert_array_equal(got["force"], (IDS * 0.5)[:, None] * (x[:, None] + 10 * y))
    np.testing.assert_array_equal(got["flux"], y[:, :1])
    np.testing.assert_array_equal(got.tangent[:, 0, 0], IDS * 0.5)
    np.testing.assert_array_equal(got.source, IDS % 3)
    assert got.tangent.shape == (N, 3, 3)
    assert (got["force"].dtype, got.source.dtype) == (np.float64, np.uint8)


def check_windows_and_iterations_are_counted(open_closure: Open) -> None:
    told = []
    with open_closure(points()) as closure:
        for end in ("commit", "rollback", "commit", None):
            told += [closure.evaluate(inputs(), 0.0, 0.0).error[0] for _ in range(2)]
            if end is not None:
                getattr(closure, end)()
    np.testing.assert_allclose(told, [0.00, 0.01, 1.00, 1.01, 1.00, 1.01, 2.00, 2.01], atol=1e-14)


def check_steps_inside_a_window_and_blank_inputs(open_closure: Open) -> None:
    """repeat goes back to the window's start and counts its iterations on; next_step goes on inside it."""
    told = []
    with open_closure(points()) as closure:
        for end in ("next_step", "next_step", "repeat", "next_step", "rollback", "next_step", "commit", None):
            told.append(closure.evaluate(inputs(), 0.0, 0.0, blank=end is None).error[0])
            if end is not None:
                getattr(closure, end)()
    # window, iteration and step of each: 0.00 0.01 0.02 | 0.03 0.04 | afresh 0.00 0.01 | window 1, blank
    np.testing.assert_allclose(told, [0, 1000.01, 2000.02, 0.03, 1000.04, 0, 1000.01, 101], atol=1e-9)


def check_model_version_is_that_of_the_service(open_closure: Open) -> None:
    versions = []
    with open_closure(points()) as closure:
        for _ in range(2):
            closure.evaluate(inputs(), 0.0, 0.0)
            versions.append(closure.model_version)
            closure.commit()
            versions.append(closure.model_version)
    assert versions == [3, 4, 4, 5]


def check_time_step_and_totals_arrive(open_closure: Open) -> None:
    with open_closure(points()) as closure:
        got = closure.evaluate(inputs(), t=0.5, dt=0.125, totals={"force.a": 0.1, "flux": np.float64(2.0)})
    np.testing.assert_array_equal(got.error, np.full(N, 0.5 + 0.125 + (0.1 + 2.0)))


def check_bad_input_is_refused_and_the_run_goes_on(open_closure: Open) -> None:
    broken = {
        "field 'y' .* is missing": {"x": np.zeros(N)},
        "unknown field 'z'": {**inputs(), "z": np.zeros(N)},
        r"field 'y': got shape \(4, 3\), expected \(4, 2\)": {**inputs(), "y": np.zeros((N, 3))},
        "sent y.b = nan at point id 23 .*window 0, iteration 1": {**inputs(), "y": _with(np.nan)},
        "sent y.b = -inf at point id 23": {**inputs(), "y": _with(-np.inf)},
    }
    with open_closure(points()) as closure:
        closure.evaluate(inputs(), 0.0, 0.0)
        for message, values in broken.items():
            with pytest.raises(InputError, match=message):
                closure.evaluate(values, 0.0, 0.0)
        with pytest.raises(InputError, match="sent t = nan"):
            closure.evaluate(inputs(), np.nan, 0.0)
        with pytest.raises(InputError, match=r"unknown total 'force\.c'; the outputs are \['force\.a'"):
            closure.evaluate(inputs(), 0.0, 0.0, {"force.c": 1.0})
        assert closure.evaluate(inputs(), 0.0, 0.0).error[0] == pytest.approx(0.01)


def check_large_finite_values_are_not_taken_for_infinite(open_closure: Open) -> None:
    huge = {"x": np.full(N, 1e308), "y": np.zeros((N, 2))}
    with open_closure(Points(IDS, np.zeros((N, 2)), np.ones(N), {"stiffness": np.ones(N)})) as closure:
        assert (closure.evaluate(huge, 0.0, 0.0)["force"] == 1e308).all()


def check_answers_stay_and_inputs_are_left_alone(open_closure: Open) -> None:
    mine = inputs()
    with open_closure(points()) as closure:
        first = closure.evaluate(mine, 0.0, 0.0)
        kept = first["force"].copy()
        for name, values in inputs().items():
            np.testing.assert_array_equal(mine[name], values)
            mine[name][:] = -1
        closure.evaluate(inputs(7.0), 0.0, 0.0)
        np.testing.assert_array_equal(first["force"], kept)


def check_a_closed_closure_says_so(open_closure: Open) -> None:
    closure = open_closure(points())
    assert closure.resumed() is None
    closure.close()
    closure.close()
    ends = (closure.commit, closure.rollback, closure.repeat, closure.next_step)
    for call in (lambda: closure.evaluate(inputs(), 0.0, 0.0), *ends):
        with pytest.raises(TransportError, match="the closure was closed; connect again"):
            call()


def _with(value: float) -> Any:
    y = np.zeros((N, 2))
    y[2, 1] = value
    return y


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}
