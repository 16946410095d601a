"""From nothing to few micro solves: leaders, calibration, drift, resuming; on grains whose state is hidden."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.opaque import DT, Replayed, all_fine, floors, make_problem, plate
from neuroscale_couple.checkpoint import Checkpoint
from neuroscale_couple.config import schema
from neuroscale_couple.fine import share_answers
from neuroscale_couple.gate import make_gate
from neuroscale_couple.learning import make_learner
from neuroscale_couple.learning.opaque import Pace
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.memory import Memory
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate import load
from neuroscale_couple.training.opaque import Block, fit
from neuroscale_couple.values import F64, Batch, FieldSpec, FineAnswer, Reply

WINDOWS, TOLERANCE = 16, 0.05
WHERE, GIVEN = plate(16, 10, WINDOWS)
TRUTH = all_fine(GIVEN)
N = len(WHERE)


@dataclass
class Run:
    """A cold run, window by window. calls: rows of each fine call by window."""

    folder: Path
    gate: schema.Gate
    checkpoint: bool = False

    def __post_init__(self) -> None:
        problem = make_problem(TRUTH)
        self.grains = Replayed(problem)
        parts = Parts(
            problem=problem,
            fine=share_answers(self.grains, schema.Fine(alike="auto"), problem, self.gate),
            gate=make_gate(self.gate, problem),
            learner=make_learner(
                schema.Learning(mode="online"), schema.Training(), problem, self.folder, None, self.gate
            ),
            checkpoint=Checkpoint(self.folder / "checkpoint", None, digest="") if self.checkpoint else None,
        )
        self.loop = Loop(parts, WHERE)
        self.error: list[F64] = []
        self.followers = self.above = 0

    def window(self, w: int) -> F64:
        """One window; its outputs."""
        answer = self.loop.evaluate(Batch(w, 0, w * DT, DT, GIVEN[w]))
        error = self.loop.parts.problem.relative_error(answer.outputs, TRUTH[w])
        follow = answer.source != Source.FINE
        self.followers += int(follow.sum())
        self.above += int((error[follow] > self.gate.tolerance).sum())
        self.error.append(error)
        self.loop.commit()
        return answer.outputs


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("cold"), schema.Gate(tolerance=TOLERANCE))
    for w in range(WINDOWS):
        run.window(w)
    return run


def test_a_cold_start_needs_few_solves_and_keeps_the_tolerance(cold: Run) -> None:
    """Replays and audits count as solves; one window of the run is solved in full."""
    assert cold.grains.solves < 0.4 * N * WINDOWS
    assert cold.followers > 0.6 * N * WINDOWS
    assert np.mean(cold.error) < 0.2 * TOLERANCE


def test_the_share_of_accepted_answers_above_the_tolerance_is_as_promised(cold: Run) -> None:
    assert cold.above <= (1.0 - cold.gate.confidence) * cold.followers


def test_errors_do_not_pile_up(cold: Run) -> None:
    assert np.quantile(cold.error[-1], 0.95) < TOLERANCE


def test_a_point_that_falls_back_is_brought_up_to_date_exactly(cold: Run) -> None:
    """Fine answers of a run that skipped windows equal those of the run that solved all."""
    rows = np.flatnonzero(cold.grains.at < WINDOWS)
    assert len(rows) > N // 2  # they have skipped windows
    answer = cold.grains.solve(rows, GIVEN[-1][rows])
    cold.grains.rollback()
    assert (answer.iterations > 1).all()
    again = Replayed(make_problem(TRUTH))
    again.attach(WHERE)
    for w in range(WINDOWS):
        again.begin(Batch(w, 0, w * DT, DT, GIVEN[w]))
        again.solve(np.arange(N), GIVEN[w])
        again.commit()
    expected = again.solve(rows, GIVEN[-1][rows])
    np.testing.assert_allclose(answer.outputs, expected.outputs, rtol=1e-12)


def test_a_closed_gate_solves_every_point_by_itself(tmp_path: Path) -> None:
    run = Run(tmp_path, schema.Gate(open=False))
    for w in range(3):
        np.testing.assert_array_equal(run.window(w), TRUTH[w])
    assert run.grains.solves == 3 * N


def test_leaders_stay_through_the_iterations_of_a_window_and_give_one_map(tmp_path: Path) -> None:
    run = Run(tmp_path, schema.Gate(tolerance=TOLERANCE, audit=0.0))
    for w in range(4):
        run.window(w)
    first = run.loop.evaluate(Batch(4, 0, 4 * DT, DT, GIVEN[4]))
    leaders = run.loop.leaders.copy()
    assert 0 < len(leaders) < N // 2
    assert (first.reason[leaders] == Reason.LEADER).all()
    run.loop.evaluate(Batch(4, 1, 4 * DT, DT, 1.001 * GIVEN[4]))
    np.testing.assert_array_equal(run.loop.leaders, leaders)
    once = run.loop.evaluate(Batch(4, 2, 4 * DT, DT, GIVEN[4])).outputs
    again = run.loop.evaluate(Batch(4, 3, 4 * DT, DT, GIVEN[4])).outputs
    np.testing.assert_array_equal(again, once)


def test_leaders_that_prove_too_few_are_joined_by_others_instead_of_solving_every_point_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where answers vary more in a window than was foreseen when its leaders were chosen."""
    run = Run(tmp_path, schema.Gate(tolerance=TOLERANCE, audit=0.0))
    for w in range(6):
        run.window(w)
    surrogate = run.loop.surrogate
    assert surrogate is not None
    few = run.loop.leaders[::5]
    monkeypatch.setattr(surrogate, "lead", lambda *given: few)
    answer = run.loop.evaluate(Batch(6, 0, 6 * DT, DT, GIVEN[6]))
    assert set(few) < set(run.loop.leaders) and len(run.loop.leaders) < N // 4
    assert set(np.unique(answer.reason)) == {Reason.ACCEPTED, Reason.LEADER}
    assert (np.flatnonzero(answer.reason == Reason.LEADER) == run.loop.leaders).all()
    assert np.quantile(run.loop.parts.problem.relative_error(answer.outputs, TRUTH[6]), 0.95) < TOLERANCE
    leaders = run.loop.leaders.copy()
    again = run.loop.evaluate(Batch(6, 1, 6 * DT, DT, GIVEN[6]))
    np.testing.assert_array_equal(run.loop.leaders, leaders)
    np.testing.assert_allclose(again.outputs, answer.outputs, rtol=1e-8)


def test_a_resumed_run_answers_what_the_whole_one_answers(tmp_path: Path) -> None:
    gate = schema.Gate(tolerance=TOLERANCE)
    whole = Run(tmp_path / "whole", gate, checkpoint=True)
    for w in range(5):
        whole.window(w)
    assert whole.loop.parts.checkpoint is not None
    stored = whole.loop.parts.checkpoint.load()
    assert stored is not None
    arrays, meta = stored
    resumed = Run(tmp_path / "whole", gate)
    problem = resumed.loop.parts.problem
    resumed.loop._install(load(Path(meta["model_path"]), problem))
    resumed.loop.restore(arrays, meta)
    expected = whole.loop.evaluate(Batch(5, 0, 5 * DT, DT, GIVEN[5])).outputs
    np.testing.assert_array_equal(resumed.window(5), expected)


def test_the_floors_of_the_first_surrogate_stay(cold: Run) -> None:
    problem = OpaqueProblem(cold.loop.inputs.fields, cold.loop.outputs.fields)
    assert problem.floors.tolist() == [0.0, 0.0]
    surrogate = load(sorted((cold.folder / "models").glob("v*[0-9].pt"))[-1], cold.loop.parts.problem)
    assert surrogate.card.domain["floors"] == pytest.approx(floors(TRUTH))
    problem.take_floors(np.array([1.0, 2.0]))
    problem.take_floors(np.array([3.0, 4.0]))
    assert problem.floors.tolist() == [1.0, 2.0]


class Curve(Replayed):
    """A nonlinear answer that remembers nothing."""

    def solve(self, rows: Any, inputs: F64, guess: Any = None) -> FineAnswer:
        self.solves += len(rows)
        t, c = inputs.T
        outputs = np.column_stack([np.exp(3.0 * (t - 1.0)) * c * (1.2 - c), (0.5 + c) ** 1.5 * np.sqrt(t)])
        m = len(rows)
        return FineAnswer(rows, outputs, np.empty((m, 2, 0)), np.ones(m, bool), np.ones(m, np.int64), np.zeros(m))


def test_what_is_learned_stays_known_where_nothing_is_remembered(tmp_path: Path) -> None:
    names = ("temperature", "concentration")
    problem = OpaqueProblem([FieldSpec(name, ("",), "1") for name in names], [FieldSpec("a", ("", "b"), "1")], False)
    gate = schema.Gate(tolerance=0.02, audit=0.0)
    curve = Curve(problem)
    learner = make_learner(schema.Learning(mode="online"), schema.Training(), problem, tmp_path, None, gate)
    loop = Loop(Parts(problem=problem, fine=curve, gate=make_gate(gate, problem), learner=learner), WHERE)
    solves = []
    for w in (0, 4, 8, 12, 15, 4, 8):
        before = curve.solves
        outputs = loop.evaluate(Batch(w, 0, 0.0, DT, GIVEN[w])).outputs
        solves.append(curve.solves - before)
        loop.commit()
        error = problem.relative_error(outputs, curve.solve(np.arange(N), GIVEN[w]).outputs)
        assert np.quantile(error, 0.95) < gate.tolerance
    assert solves[0] == N and max(solves[1:]) < N // 2
    assert max(solves[-2:]) < N // 20


def test_an_input_that_starts_to_vary_is_solved(tmp_path: Path) -> None:
    run = Run(tmp_path, schema.Gate(tolerance=TOLERANCE, audit=0.0))
    for w in range(3):
        still = GIVEN[w].copy()
        still[:, 0] = 1.0
        run.loop.evaluate(Batch(w, 0, w * DT, DT, still))
        run.loop.commit()
    moved = still.copy()
    moved[: N // 2, 0] = 1.2
    answer = run.loop.evaluate(Batch(3, 0, 3 * DT, DT, moved))
    half = answer.reason[: N // 2]
    assert np.isin(half, [Reason.OUT_OF_DOMAIN, Reason.LEADER]).all()


def test_the_slope_at_a_given_past_is_learned_from_the_first_iteration(tmp_path: Path) -> None:
    """A macro solver that iterates asks for other inputs after the same past; its iterations need that derivative."""
    run = Run(tmp_path, schema.Gate(tolerance=TOLERANCE, audit=0.0))
    for w in range(6):
        run.window(w)

    def ask(inputs: F64, iteration: int) -> Reply:
        return run.loop.evaluate(Batch(6, iteration, 6 * DT, DT, inputs))

    shift = np.array([0.0, 0.01])
    ask(GIVEN[6], 0)
    near, far = ask(GIVEN[6] + 0.5 * shift, 1), ask(GIVEN[6] + shift, 2)
    follow = np.flatnonzero((near.source != Source.FINE) & (far.source != Source.FINE))
    slope = (far.outputs - near.outputs)[follow]
    exact = run.grains.solve(follow, GIVEN[6][follow] + shift).outputs
    exact = exact - run.grains.solve(follow, GIVEN[6][follow] + 0.5 * shift).outputs
    assert len(follow) > N // 2
    assert np.median(np.abs(slope - exact)[:, 0] / np.abs(exact[:, 0])) < 0.3


def test_what_was_gathered_since_the_start_is_known_after_many_windows(tmp_path: Path) -> None:
    """Two points of the same recent past and different amounts: no fading memory tells them apart."""
    x, y = WHERE.coordinates.T
    names = ("concentration", "porosity")
    fields = [FieldSpec(name, ("",), "1") for name in names]
    problem = OpaqueProblem(fields[:1], fields[1:])
    memory, radius = Memory(problem, N), np.full(N, 0.38)
    for w in range(60):
        t = 0.1 * (w + 1)
        front = 0.5 * np.exp(-((x + 0.2 * y - 0.25 * t) ** 2) / 0.05)
        now = Batch(w, 0, t, 0.1, (0.6 - front + 0.15 * np.sin(2.0 * t + 3.0 * y) * x)[:, None])
        question = memory.question(now)
        memory.step(now)
        memory.commit()
        radius = radius + 0.005 * (now.inputs[:, 0] - 0.5) / radius
    outputs = (1.0 - np.pi * radius**2)[:, None]
    leaders, others = np.arange(0, N, 4), np.flatnonzero(np.arange(N) % 4)
    kriging = fit(problem, [Block(question, outputs)], tmp_path / "model.pt", np.zeros((0, 2)))
    given = kriging.condition(torch.from_numpy(question[leaders]), torch.from_numpy(outputs[leaders]))
    answer, _ = kriging.answer(torch.from_numpy(question[others]), given)
    error = problem.relative_error(answer.detach().numpy(), outputs[others])
    assert np.quantile(error, 0.95) < 4e-3  # without the mean: 2e-2


def fits(shares: list[float], least: tuple[int, ...] = (), better: tuple[int, ...] = ()) -> list[int]:
    """Windows with a fit, if these shares of the points are solved in the windows.

    least: windows in which no more points lead than must; better: windows whose candidate is promoted
    """
    pace, found = Pace(), []
    for window, solved in enumerate(shares):
        pace.window(solved, window in least)
        if pace.wait == 0:
            found.append(window)
            if window:  # there was no surrogate in the first
                pace.fitted(solved, window in least, window in better)
    return found


def test_fits_become_rare_while_nearly_all_points_are_solved_all_the_same() -> None:
    assert fits([1.0] * 100) == [0, 1, 3, 7, 15, 31, 63]
    assert fits([1.0] + [0.1] * 9) == list(range(10))
    assert fits([1.0] * 20 + [0.4] * 3 + [0.9] * 5) == [0, 1, 3, 7, 15, 20, 21, 22, 23, 25]


def test_fits_become_rarer_where_the_fewest_leaders_do_and_candidates_are_no_better() -> None:
    few = tuple(range(1, 30))
    assert fits([1.0] + [0.1] * 29, few) == [0, 1, 3, 7, 12, 17, 22, 27]
    assert fits([1.0] + [0.1] * 9, few, better=tuple(range(10))) == list(range(10))
    assert fits([1.0] + [0.1] * 29, few, better=(1, 2, 3, 8, 13, 14)) == [0, 1, 2, 3, 4, 6, 10, 15, 20, 25]
    more = tuple(window for window in few if window not in (9, 10))  # a pause ends as soon as more must lead
    assert fits([1.0] + [0.1] * 14, more) == [0, 1, 3, 7, 9, 10, 11, 13]
    assert fits([1.0] + [0.1] * 8 + [0.9] * 6, few[:8]) == [0, 1, 3, 7, 9, 11]


def test_a_run_that_must_solve_nearly_all_learns_rarely_and_says_so(tmp_path: Path) -> None:
    """Answers that no question explains: the number of the point decides them."""
    problem = OpaqueProblem([FieldSpec("t", ("",), "1")], [FieldSpec("k", ("",), "1")], floors=[1e-3])
    gate = schema.Gate(tolerance=1e-3)
    learner = make_learner(schema.Learning(mode="online"), schema.Training(), problem, tmp_path, None, gate)
    noise = np.random.default_rng(0)

    class Noise(Replayed):
        def solve(self, rows: Any, inputs: F64, guess: Any = None) -> FineAnswer:
            m = len(rows)
            self.solves += m
            outputs, ones = 1.0 + noise.random((m, 1)), np.ones(m, dtype=np.int64)
            return FineAnswer(rows, outputs, np.empty((m, 1, 0)), ones.astype(bool), ones, np.zeros(m))

    loop = Loop(Parts(problem=problem, fine=Noise(problem), gate=make_gate(gate, problem), learner=learner), WHERE)
    for w in range(12):
        loop.evaluate(Batch(w, 0, 0.1 * w, 0.1, np.sin(w + 3.0 * WHERE.coordinates[:, :1])))
        loop.commit()
    history = [json.loads(line) for line in (tmp_path / "models" / "history.jsonl").read_text().splitlines()]
    assert [entry["window"] for entry in history] == [0, 1, 3, 7]
    assert learner.message is not None and "learning does not pay: it pauses for 4 windows" in learner.message
