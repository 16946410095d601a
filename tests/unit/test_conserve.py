"""Correction `conserve`: exact balances by the smallest change, weighted with the variance."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.correction import make_corrections
from neuroscale_couple.correction.conserve import Conserve
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, U8, Batch, Points

PROBLEM = make_problem(schema.Problem(name="composite", grid=8))
FLOOR = PROBLEM.output_floor()


@dataclass
class Answers:
    """Random mixed answers of n points."""

    n: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.outputs = rng.normal(0.0, 100.0, (self.n, 3))
        self.volumes = rng.uniform(0.1, 2.0, self.n)
        self.error = rng.uniform(0.001, 0.05, self.n)
        self.source: U8 = np.where(rng.uniform(size=self.n) < 0.3, Source.FINE, Source.SURROGATE_COARSE).astype(
            np.uint8
        )
        self.error[self.source == Source.FINE] = 0.0
        self.points = Points(np.arange(self.n), np.zeros((self.n, 2)), self.volumes)

    def sums(self, outputs: F64) -> F64:
        return np.asarray((self.volumes.astype(np.longdouble)[:, None] * outputs).sum(axis=0), dtype=np.float64)

    def size(self) -> F64:
        return np.asarray(self.volumes @ np.abs(self.outputs))


def correct(
    answers: Answers, totals: dict[str, float], names: tuple[str, ...], comm: Any = None
) -> tuple[F64, Conserve]:
    correction = Conserve(tuple(schema.Conserve(output=name) for name in names), PROBLEM, comm)
    correction.attach(answers.points)
    outputs, tangent = answers.outputs.copy(), np.random.default_rng(9).normal(size=(answers.n, 3, 3))
    kept = tangent.copy()
    batch = Batch(4, 2, 0.0, 1.0, np.zeros((answers.n, 3)), totals)
    correction.apply(batch, outputs, tangent, answers.error, answers.source)
    assert np.array_equal(tangent, kept)
    return outputs, correction


def test_balances_are_restored_to_round_off_and_other_columns_are_not_touched() -> None:
    answers = Answers()
    sums, size = answers.sums(answers.outputs), answers.size()
    totals = {"stress.xx": sums[0] * 1.01 + 3.0, "stress.xy": sums[2] - 5.0}
    outputs, correction = correct(answers, totals, ("stress.xx", "stress.xy"))
    after = answers.sums(outputs)
    assert abs(after[0] - totals["stress.xx"]) <= 1e-14 * size[0]
    assert abs(after[2] - totals["stress.xy"]) <= 1e-14 * size[2]
    assert np.array_equal(outputs[:, 1], answers.outputs[:, 1])
    assert max(correction.defect.values()) <= 1e-14


def test_fine_answers_stay_as_they_are_to_the_bit() -> None:
    answers = Answers()
    outputs, _ = correct(answers, {"stress.yy": 1e4}, ("stress.yy",))
    fine = answers.source == Source.FINE
    assert np.array_equal(outputs[fine], answers.outputs[fine])
    assert (outputs[~fine, 1] != answers.outputs[~fine, 1]).all()


def test_the_change_solves_the_constrained_minimum() -> None:
    """Against the dense KKT system of: minimise sum d^2 / v subject to sum V (y + d) = B."""
    answers = Answers(n=40, seed=3)
    total = 123.0
    outputs, _ = correct(answers, {"stress.xx": total}, ("stress.xx",))
    free = np.flatnonzero(answers.source != Source.FINE)
    size = np.maximum(np.linalg.norm(answers.outputs[free], axis=1), FLOOR)
    variance = (answers.error[free] * size) ** 2
    m = len(free)
    kkt = np.zeros((m + 1, m + 1))
    kkt[:m, :m] = np.diag(2.0 / variance)
    kkt[:m, m] = kkt[m, :m] = answers.volumes[free]
    right = np.zeros(m + 1)
    right[m] = total - answers.volumes @ answers.outputs[:, 0]
    np.testing.assert_allclose(outputs[free, 0] - answers.outputs[free, 0], np.linalg.solve(kkt, right)[:m], rtol=1e-9)


def test_small_outputs_are_weighted_with_the_floor() -> None:
    answers = Answers(n=2)
    answers.outputs[:] = 0.0
    answers.volumes[:], answers.error[:], answers.source[:] = 1.0, [0.01, 0.02], 0
    outputs, _ = correct(answers, {"stress.xx": 5.0}, ("stress.xx",))
    np.testing.assert_allclose(outputs[:, 0], [1.0, 4.0], rtol=1e-14)  # variances 1 : 4


def test_an_estimate_that_is_not_finite_counts_as_a_hundred_percent() -> None:
    answers = Answers(n=3)
    answers.outputs[:] = [100.0, 0.0, 0.0]
    answers.volumes[:], answers.source[:] = 1.0, 0
    answers.error[:] = [np.inf, np.nan, 1.0]
    outputs, _ = correct(answers, {"stress.xx": 303.0}, ("stress.xx",))
    np.testing.assert_allclose(outputs[:, 0], 101.0)


def test_a_balance_that_holds_changes_nothing_but_round_off() -> None:
    answers = Answers()
    outputs, correction = correct(answers, {"stress.xx": answers.sums(answers.outputs)[0]}, ("stress.xx",))
    np.testing.assert_allclose(outputs, answers.outputs, rtol=1e-12)
    assert correction.change["stress.xx"] < 1e-9


def test_without_a_total_nothing_is_done() -> None:
    answers = Answers()
    outputs, correction = correct(answers, {"stress.yy": 1.0}, ("stress.xx",))
    assert np.array_equal(outputs, answers.outputs) and correction.defect == {}


def test_when_all_answers_are_exact_the_defect_is_reported_once_and_nothing_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = Answers()
    answers.source[:], answers.error[:] = Source.FINE, 0.0
    correction = Conserve((schema.Conserve(output="stress.xx"),), PROBLEM)
    correction.attach(answers.points)
    outputs = answers.outputs.copy()
    total = answers.sums(outputs)[0] + 7.0
    with caplog.at_level(logging.WARNING):
        for iteration in range(3):
            batch = Batch(4, iteration, 0.0, 1.0, np.zeros((answers.n, 3)), {"stress.xx": total})
            correction.apply(batch, outputs, np.zeros((answers.n, 3, 3)), answers.error, answers.source)
    assert np.array_equal(outputs, answers.outputs)
    assert correction.defect["stress.xx"] == pytest.approx(7.0 / (answers.size()[0] + abs(total)))
    assert [r.message for r in caplog.records] == [
        f"window 4, iteration 0: the balance of 'stress.xx' misses its total {total:g} by 7 and cannot be restored, "
        "because every answer counts as exact or is at a bound; check the total, the volumes and the bounds"
    ]


def test_a_total_out_of_reach_of_the_error_estimates_is_restored_and_said(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers()
    with caplog.at_level(logging.WARNING):
        outputs, correction = correct(answers, {"stress.xx": 1e6}, ("stress.xx",))
    assert answers.sums(outputs)[0] == pytest.approx(1e6, rel=1e-13)
    sigma = answers.error * np.maximum(np.linalg.norm(answers.outputs, axis=1), FLOOR)
    free = answers.source != Source.FINE
    largest = np.max(np.abs(outputs - answers.outputs)[free, 0] / sigma[free])
    assert correction.change["stress.xx"] == pytest.approx(largest, rel=1e-9)
    assert f"some answers change by {largest:.1f} times their estimated error" in caplog.text


def test_permuting_the_points_permutes_the_answers() -> None:
    answers, total = Answers(), {"stress.xx": 10.0}
    outputs, _ = correct(answers, total, ("stress.xx",))
    order = np.random.default_rng(1).permutation(answers.n)
    other = Answers()
    other.outputs, other.error, other.source = answers.outputs[order], answers.error[order], answers.source[order]
    other.volumes = answers.volumes[order]
    other.points = Points(np.arange(answers.n), np.zeros((answers.n, 2)), other.volumes)
    np.testing.assert_allclose(correct(other, total, ("stress.xx",))[0], outputs[order], rtol=1e-13)


def test_the_balance_runs_over_all_ranks() -> None:
    """Two ranks as two threads that meet in allgather; the result is that of one rank with all points."""
    import threading

    whole = Answers()
    expected, _ = correct(whole, {"stress.xx": 50.0}, ("stress.xx",))
    barrier, board = threading.Barrier(2), [None, None]

    class Rank:
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def allgather(self, mine: Any) -> list[Any]:
            board[self.rank] = mine
            barrier.wait(10)
            both = list(board)
            barrier.wait(10)
            return both

    results: dict[int, F64] = {}

    def work(rank: int, rows: slice) -> None:
        part = Answers()
        part.outputs, part.error, part.source = whole.outputs[rows], whole.error[rows], whole.source[rows]
        part.n = len(part.outputs)
        part.points = Points(np.arange(part.n), np.zeros((part.n, 2)), whole.volumes[rows])
        results[rank] = correct(part, {"stress.xx": 50.0}, ("stress.xx",), Rank(rank))[0]

    threads = [threading.Thread(target=work, args=(r, rows)) for r, rows in ((0, slice(0, 37)), (1, slice(37, 200)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    np.testing.assert_allclose(np.vstack([results[0], results[1]]), expected, rtol=1e-13)


LEFT = schema.Group(name="left", box=((0.0, 0.5), (0.0, 1.0)))
SHORE = schema.Group(name="shore", box=((0.4, 1.0), (0.0, 0.2)))


def grouped(answers: Answers, totals: dict[str, float], *balances: schema.Conserve) -> tuple[F64, Conserve]:
    """With two overlapping groups; the first that has a point takes it."""
    answers.points = Points(
        np.arange(answers.n), np.random.default_rng(3).uniform(size=(answers.n, 2)), answers.volumes
    )
    made = Conserve(balances, PROBLEM, None, (LEFT, SHORE))
    made.attach(answers.points)
    outputs = answers.outputs.copy()
    batch = Batch(4, 2, 0.0, 1.0, np.zeros((answers.n, 3)), totals)
    made.apply(batch, outputs, np.zeros((answers.n, 3, 3)), answers.error, answers.source)
    return outputs, made


def test_groups_and_the_whole_have_their_own_totals() -> None:
    answers = Answers()
    totals = {"stress.xx@left": 30.0, "stress.xx@shore": -4.0, "stress.xx": 100.0, "stress.xy@left": 7.0}
    outputs, correction = grouped(
        answers, totals, schema.Conserve(output="stress.xx"), schema.Conserve(output="stress.xy")
    )
    at = answers.points.coordinates
    left = at[:, 0] <= 0.5
    shore = ~left & (at[:, 1] <= 0.2)
    size = answers.size()
    weighted = answers.volumes[:, None] * outputs
    assert abs(weighted[left, 0].sum() - 30.0) <= 1e-13 * size[0]
    assert abs(weighted[shore, 0].sum() + 4.0) <= 1e-13 * size[0]
    assert abs(weighted[:, 0].sum() - 100.0) <= 1e-13 * size[0]
    assert abs(weighted[left, 2].sum() - 7.0) <= 1e-13 * size[2]
    np.testing.assert_array_equal(outputs[~left, 2], answers.outputs[~left, 2])
    assert set(correction.defect) == set(totals)
    assert max(correction.defect.values()) <= 1e-14


def test_a_total_of_a_group_alone_leaves_all_other_points_as_they_are() -> None:
    answers = Answers()
    outputs, _ = grouped(answers, {"stress.xx@shore": 11.0}, schema.Conserve(output="stress.xx"))
    at = answers.points.coordinates
    shore = (at[:, 0] > 0.5) & (at[:, 1] <= 0.2)
    np.testing.assert_array_equal(outputs[~shore], answers.outputs[~shore])
    assert (answers.volumes[shore] @ outputs[shore, 0]) == pytest.approx(11.0, abs=1e-10)


def test_restored_answers_keep_their_bounds(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers()
    total = answers.sums(np.clip(answers.outputs, -150.0, 150.0))[0] + 200.0
    bounded = schema.Conserve(output="stress.xx", lower=-150.0, upper=150.0)
    outputs, _ = grouped(answers, {"stress.xx": total}, bounded)
    free = answers.source != Source.FINE
    assert outputs[free, 0].min() >= -150.0 and outputs[free, 0].max() <= 150.0
    np.testing.assert_array_equal(outputs[~free], answers.outputs[~free])
    assert answers.sums(outputs)[0] == pytest.approx(total, abs=1e-12 * answers.size()[0])
    with caplog.at_level(logging.WARNING):
        outputs, _ = grouped(answers, {"stress.xx": 1e9}, bounded)
    assert (outputs[free, 0] == 150.0).all()
    assert "counts as exact or is at a bound; check the total, the volumes and the bounds" in caplog.text


def test_wrong_groups_and_bounds_are_refused() -> None:
    answers = Answers()
    with pytest.raises(ConfigError, match=r"unknown group in the total 'stress\.xx@right'; .* has \['left', 'shore'\]"):
        grouped(answers, {"stress.xx@right": 1.0}, schema.Conserve(output="stress.xx"))
    with pytest.raises(ConfigError, match=r"bounds of 'stress\.xx' are 2 and 1; lower must be below upper"):
        grouped(answers, {}, schema.Conserve(output="stress.xx", lower=2.0, upper=1.0))
    with pytest.raises(ConfigError, match=r"correction\.groups: a name is there twice in \['left', 'left'\]"):
        Conserve((), PROBLEM, None, (LEFT, LEFT))
    flat = Conserve((), PROBLEM, None, (schema.Group(name="low", box=((0.0, 1.0),)),))
    with pytest.raises(ConfigError, match=r"correction\.groups\[0\]\.box: got 1 ranges, expected 2"):
        flat.attach(answers.points)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"correction.conserve: unknown output 'stress.zz'; one of \['stress.xx'"):
        Conserve((schema.Conserve(output="stress.zz"),), PROBLEM)


def test_conservation_comes_last() -> None:
    made = make_corrections(schema.Correction(conserve=(schema.Conserve(output="stress.xx"),)), PROBLEM)
    assert [type(c).__name__ for c in made] == ["Admissible", "Conserve"]
    assert make_corrections(schema.Correction(admissible=False), PROBLEM) == ()
