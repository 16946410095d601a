"""The loop's promises: one map per window, gate closed equals fine-only, nothing that is not finite is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.correction import make_corrections
from neuroscale_couple.errors import FineSolverError, NeuroscaleError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.fine.fft_cell import FftCell
from neuroscale_couple.gate import make_gate
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, I64, Batch, FineAnswer, Points, Prediction, relative_error

N = 40
GRID = 8
TOLERANCE = 0.02
SURE, UNSURE = 1e-4, 1.0


class NearlyExact(Surrogate):
    """The fine solver's answer times (1 + bias): a surrogate whose true error is known.

    score: called with (call number of that rung, rows) -> float64 [m]
    """

    version = 3

    def __init__(self, problem: Any, bias: float, score: Callable[[Source, int, I64], F64], two_rungs: bool) -> None:
        self.fine = make_fine_solver(schema.Fine(), problem)
        self.bias, self.score, self.two_rungs = bias, score, two_rungs
        self.calls = {Source.SURROGATE_COARSE: 0, Source.SURROGATE_FINE: 0}
        table = Calibration(score=np.linspace(0, 0.05, 2000).tolist(), error=np.linspace(0, 0.05, 2000).tolist())
        self.card = Card(
            problem=problem.signature, input_range=[(-0.05, 0.05)] * 3, output_floor=problem.output_floor(),
            domain={}, calibration={"surrogate_coarse": table, "surrogate_fine": table}, metrics={}, versions={},
            data_sha256="",
        )  # fmt: skip

    @property
    def rungs(self) -> tuple[Source, ...]:
        both = (Source.SURROGATE_COARSE, Source.SURROGATE_FINE)
        return both if self.two_rungs else both[:1]

    def attach(self, points: Points) -> None:
        self.fine.attach(points)

    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        answer = self.fine.solve(rows, inputs)
        score = self.score(rung, self.calls[rung], rows)
        self.calls[rung] += 1
        return Prediction(rows, answer.outputs * (1 + self.bias), answer.tangent * (1 + self.bias), score)

    def fields(self, rows: I64, inputs: F64) -> None:
        return None


class Run:
    """A loop over N points with different micro structures, and loads to send through it."""

    def __init__(
        self, score: Callable[[Source, int, I64], F64] | None = None, bias: float = 0.005, two_rungs: bool = False,
        gate: dict[str, Any] | None = None, fine: dict[str, Any] | None = None, order: I64 | None = None,
        **parts: Any,
    ) -> None:  # fmt: skip
        self.problem = make_problem(schema.Problem(name="composite", grid=GRID))
        ids = np.arange(N) if order is None else order
        phase = generate(schema.Microstructure(size=(0.3, 0.5)), ids, GRID, None)
        self.points = Points(ids, np.zeros((N, 2)), np.ones(N), {"phase": phase})
        settings = schema.Gate(**{"tolerance": TOLERANCE, "audit": 0.0, **(gate or {})})
        fine_settings = schema.Fine(**(fine or {}))
        surrogate = None if score is None else NearlyExact(self.problem, bias, score, two_rungs)
        self.loop = Loop(
            Parts(
                problem=self.problem,
                fine=make_fine_solver(fine_settings, self.problem),
                gate=make_gate(settings, self.problem, None),
                surrogate=surrogate,
                corrections=make_corrections(schema.Correction(), self.problem, None),
                on_failure=fine_settings.on_failure,
                **parts,
            ),
            self.points,
        )
        self.iteration = 0
        self.inputs = (np.random.default_rng(7).standard_normal((N, 3)) * 0.01)[ids]

    def evaluate(self, factor: float = 1.0) -> Any:
        batch = Batch(self.loop.window, self.iteration, 0.0, 1.0, self.inputs * factor)
        self.iteration += 1
        return self.loop.evaluate(batch)

    def commit(self) -> None:
        self.loop.commit()
        self.iteration = 0


def sure(rung: Source, call: int, rows: I64) -> F64:
    return np.full(len(rows), SURE)


def test_gate_closed_equals_the_fine_solver_bit_for_bit() -> None:
    run = Run(sure, gate={"open": False})
    alone = make_fine_solver(schema.Fine(), run.problem)
    alone.attach(run.points)
    for factor in (0.5, 1.0, 1.5):
        reply = run.evaluate(factor)
        answer = alone.solve(np.arange(N), run.inputs * factor)
        assert (reply.source == Source.FINE).all()
        assert (reply.reason == Reason.GATE_CLOSED).all() or (reply.reason == Reason.HELD).any()
        np.testing.assert_array_equal(reply.outputs, answer.outputs)
        np.testing.assert_array_equal(reply.tangent, answer.tangent)
        run.commit()
        alone.commit()


def test_without_a_model_every_point_is_solved_and_the_reason_says_so() -> None:
    reply = Run().evaluate()
    assert (reply.source == Source.FINE).all()
    assert (reply.reason == Reason.NO_MODEL).all()
    assert (reply.error == 0.0).all()


def test_sure_answers_are_the_surrogates() -> None:
    run = Run(sure)
    reply = run.evaluate()
    assert (reply.source == Source.SURROGATE_COARSE).all()
    assert (reply.reason == Reason.ACCEPTED).all()
    assert (reply.error <= TOLERANCE).all()
    assert (reply.error > 0).all()


def test_a_point_never_moves_down_within_a_window_and_starts_afresh_in_the_next() -> None:
    """Unsure at the first iteration only: those points stay with the fine solver until the window is committed."""
    shaky = np.arange(N) % 3 == 0

    def score(rung: Source, call: int, rows: I64) -> F64:
        return np.where(shaky[rows] & (call == 0), UNSURE, SURE)

    run = Run(score)
    first, second = run.evaluate(), run.evaluate(1.01)
    for reply in (first, second):
        np.testing.assert_array_equal(reply.source == Source.FINE, shaky)
    assert (first.reason[shaky] == Reason.UNCERTAIN).all()
    assert (second.reason[shaky] == Reason.HELD).all()
    run.commit()
    assert (run.evaluate().source == Source.SURROGATE_COARSE).all()


def test_rollback_starts_the_window_afresh() -> None:
    def score(rung: Source, call: int, rows: I64) -> F64:
        return np.full(len(rows), UNSURE if call == 0 else SURE)

    run = Run(score)
    assert (run.evaluate().source == Source.FINE).all()
    run.loop.rollback()
    assert (run.evaluate().source == Source.SURROGATE_COARSE).all()


def test_the_ladder_is_climbed_only_as_far_as_needed() -> None:
    """Points 0, 4, ... need the fine head, points 1, 5, ... the fine solver."""
    needs_head, needs_fine = np.arange(N) % 4 == 0, np.arange(N) % 4 == 1

    def score(rung: Source, call: int, rows: I64) -> F64:
        refused = needs_fine | (needs_head if rung == Source.SURROGATE_COARSE else False)
        return np.where(refused[rows] & (call == 0), UNSURE, SURE)

    run = Run(score, two_rungs=True)
    first, second = run.evaluate(), run.evaluate(1.01)
    for reply in (first, second):
        np.testing.assert_array_equal(reply.source == Source.SURROGATE_FINE, needs_head)
        np.testing.assert_array_equal(reply.source == Source.FINE, needs_fine)


@pytest.mark.parametrize("left_out", ["by the config", "uncalibrated"])
def test_a_fine_head_that_cannot_help_is_not_asked(left_out: str) -> None:
    """Half of the points need more than the coarse head: the fine solver answers them at once."""
    unsure = np.arange(N) % 2 == 0

    def score(rung: Source, call: int, rows: I64) -> F64:
        return np.where(unsure[rows], UNSURE, SURE)

    run = Run(score, two_rungs=True, gate={"fine_head": left_out != "by the config"})
    assert isinstance(run.loop.surrogate, NearlyExact)
    if left_out == "uncalibrated":
        del run.loop.surrogate.card.calibration["surrogate_fine"]
        run.loop._install(run.loop.surrogate)
    reply = run.evaluate()
    np.testing.assert_array_equal(reply.source == Source.FINE, unsure)
    assert (reply.reason[unsure] == Reason.UNCERTAIN).all()
    assert run.loop.surrogate.calls == {Source.SURROGATE_COARSE: 1, Source.SURROGATE_FINE: 0}
    assert run.loop.counts.asked.tolist() == [N, 0, N // 2]
    assert run.loop.counts.seconds[Source.FINE] > 0.0


def test_where_no_rung_can_be_asked_all_points_are_solved() -> None:
    run = Run(sure, two_rungs=True, gate={"fine_head": False})
    assert isinstance(run.loop.surrogate, NearlyExact)
    del run.loop.surrogate.card.calibration["surrogate_coarse"]
    run.loop._install(run.loop.surrogate)
    reply = run.evaluate()
    assert (reply.source == Source.FINE).all()
    assert (reply.reason == Reason.UNCERTAIN).all()
    assert sum(run.loop.surrogate.calls.values()) == 0


def test_an_answer_that_is_not_finite_goes_to_the_fine_solver() -> None:
    run = Run(sure)
    surrogate = run.loop.surrogate
    assert surrogate is not None
    honest = surrogate.predict

    def poisoned(rung: Source, rows: I64, inputs: F64) -> Prediction:
        prediction = honest(rung, rows, inputs)
        prediction.outputs[5, 1] = np.nan
        prediction.tangent[9, 0, 0] = np.inf
        return prediction

    surrogate.predict = poisoned  # type: ignore[method-assign]
    reply = run.evaluate()
    assert sorted(np.flatnonzero(reply.source == Source.FINE)) == [5, 9]
    assert (reply.reason[[5, 9]] == Reason.NOT_FINITE).all()
    assert np.isfinite(reply.outputs).all() and np.isfinite(reply.tangent).all()


def test_without_the_physical_stage_a_nan_is_still_not_sent() -> None:
    run = Run(sure, gate={"stages": ("uncertainty",)})
    surrogate = run.loop.surrogate
    assert surrogate is not None
    honest = surrogate.predict

    def poisoned(rung: Source, rows: I64, inputs: F64) -> Prediction:
        prediction = honest(rung, rows, inputs)
        prediction.outputs[5, 1] = np.nan
        return prediction

    surrogate.predict = poisoned  # type: ignore[method-assign]
    with pytest.raises(NeuroscaleError, match=r"window 0, iteration 0: the answer for point 5 .* is not finite"):
        run.evaluate()


def test_an_input_outside_the_trained_range_goes_to_the_fine_solver() -> None:
    run = Run(sure)
    run.inputs[3] = [0.2, 0.0, 0.0]
    reply = run.evaluate()
    assert list(np.flatnonzero(reply.source == Source.FINE)) == [3]
    assert reply.reason[3] == Reason.OUT_OF_DOMAIN


def test_audits_measure_the_true_error_and_do_not_change_the_answer() -> None:
    bias = 0.004
    run = Run(sure, bias=bias, gate={"audit": 1.0})
    seen: list[Any] = []
    learn = run.loop.parts.gate.learn
    run.loop.parts.gate.learn = lambda audit: (seen.append(audit), learn(audit))[1]  # type: ignore[assignment, func-returns-value]
    reply = run.evaluate()
    kept = reply.outputs.copy()
    run.commit()
    np.testing.assert_array_equal(reply.outputs, kept)
    (audit,) = seen
    assert len(audit.rows) == N
    size = np.linalg.norm(reply.outputs, axis=1) / (1 + bias)
    expected = bias * size / np.maximum(size, run.problem.output_floor())
    np.testing.assert_allclose(audit.error, expected, rtol=1e-3)


def test_permuted_points_give_permuted_answers() -> None:
    order = np.random.default_rng(3).permutation(N)

    def score(rung: Source, call: int, rows: I64) -> F64:
        return np.full(len(rows), SURE)

    straight, permuted = Run(score).evaluate(), Run(score, order=order).evaluate()
    error = relative_error(permuted.outputs, straight.outputs[order], 1e-3)
    assert error.max() < 1e-5  # the fine solver's tolerance is 1e-6


def test_a_fine_solve_that_does_not_converge_stops_the_run_with_load_and_history() -> None:
    run = Run(fine={"max_newton": 1, "max_cg": 1, "tolerance": 1e-10})
    with pytest.raises(FineSolverError) as caught:
        run.evaluate()
    message = str(caught.value)
    for part in (
        "window 0, iteration 0",
        "did not converge at point",
        "strain.xx=",
        "residual",
        "fine.on_failure: keep",
    ):
        assert part in message


class NotANumber(FftCell):
    """A fine solver that says of NaN that it has converged: the answer of point 3."""

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        answer = super().solve(rows, inputs, guess)
        answer.outputs[rows == 3] = np.nan
        return answer


def test_a_fine_answer_that_is_not_finite_counts_as_not_converged() -> None:
    solver = {"solver": "tests.unit.test_loop:NotANumber"}
    with pytest.raises(FineSolverError, match=r"did not converge at point 3, whose answer is not finite \(1 point"):
        Run(fine=solver).evaluate()
    audited = Run(sure, gate={"audit": 1.0}, fine=solver)
    audited.evaluate()
    audited.commit()
    assert len(audited.loop.parts.gate.stages["audit"].record) == N - 1  # type: ignore[attr-defined]


def test_policy_keep_flags_the_surrogates_answer() -> None:
    def score(rung: Source, call: int, rows: I64) -> F64:
        return np.where(rows == 2, UNSURE, SURE)

    run = Run(score, fine={"max_newton": 1, "max_cg": 1, "tolerance": 1e-10, "on_failure": "keep"})
    reply = run.evaluate()
    assert reply.source[2] == Source.SURROGATE_COARSE
    assert reply.reason[2] == Reason.NOT_CONVERGED
    assert np.isfinite(reply.outputs[2]).all()


def test_policy_keep_without_a_surrogate_answer_stops() -> None:
    run = Run(fine={"max_newton": 1, "max_cg": 1, "tolerance": 1e-10, "on_failure": "keep"})
    with pytest.raises(FineSolverError, match="no surrogate answer can be kept"):
        run.evaluate()


def test_commit_before_evaluate_is_refused() -> None:
    with pytest.raises(NeuroscaleError, match="window 0: commit was called before evaluate"):
        Run(sure).commit()


class Asker(Learner):
    """Asks for given loads once, keeps what it observes, and never trains."""

    def __init__(self, rows: I64, inputs: F64) -> None:
        self.given, self.seen = (rows, inputs), []

    def attach(self, points: Points) -> None: ...

    def observe(self, window: int, inputs: F64, answer: Any) -> None:
        self.seen.append((inputs, answer))

    def ask(self, window: int, current: Any, inputs: F64, source: Any) -> Any:
        return [self.given] if window == 0 else ()

    def propose(self, window: int, current: Any) -> None:
        return None

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: Any) -> None: ...


def test_exploring_gives_the_learner_fine_answers_and_leaves_the_run_as_it_was() -> None:
    rows = np.arange(0, N, 2)
    run, plain = Run(), Run()
    asker = Asker(rows, 3.0 * run.inputs[rows])
    asking = Run(learner=asker)
    for made in (asking, plain):
        made.evaluate()
        made.commit()
    _, answer = asker.seen[-1]
    assert np.array_equal(asker.seen[-1][0], 3.0 * run.inputs[rows])
    expected = run.evaluate(3.0).outputs[rows]
    assert relative_error(answer.outputs, expected, run.problem.output_floor()).max() < 1e-5
    # the starting fields are those of the window, not of what was explored: the next answers are equal bit for bit
    assert np.array_equal(asking.evaluate(1.1).outputs, plain.evaluate(1.1).outputs)
