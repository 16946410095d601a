"""Stage `uncertainty`: the configured tolerance and confidence mean what they say."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.stats import binom

from neuroscale_couple.calibration import (
    DELTA,
    certified_threshold,
    clean_pairs,
    error_curve,
    largest_score,
    smallest_certifiable,
)
from neuroscale_couple.config import schema
from neuroscale_couple.gate.uncertainty import Uncertainty
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.values import F64, U8, Points, Prediction

COARSE = Source.SURROGATE_COARSE


def pairs(rng: np.random.Generator, n: int, noise: float = 0.5, quality: float = 1.0) -> tuple[F64, F64]:
    """Scores and errors of an honest but noisy surrogate: log-normal around each other."""
    score = rng.lognormal(-4.6, 0.8, n)
    return score, quality * score * rng.lognormal(0.0, noise, n)


def stage(score: F64, error: F64, tolerance: float = 0.02, confidence: float = 0.95) -> Uncertainty:
    settings = schema.Gate(tolerance=tolerance, confidence=confidence)
    made = Uncertainty(settings, make_problem(schema.Problem(name="composite", grid=8)))
    made.attach(Points(np.arange(3), np.zeros((3, 2)), np.ones(3)), card(score, error))
    return made


def card(score: F64, error: F64) -> Card:
    calibration = {"surrogate_coarse": Calibration(score=score.tolist(), error=error.tolist())}
    return Card(
        problem={}, input_range=[(-1, 1)] * 3, output_floor=1.0, domain={}, calibration=calibration, metrics={},
        versions={}, data_sha256="",
    )  # fmt: skip


def accept(made: Uncertainty, score: F64, rung: Source = COARSE) -> tuple[U8, F64]:
    n = len(score)
    prediction = Prediction(np.arange(n), np.ones((n, 3)), np.tile(np.eye(3), (n, 1, 1)), score)
    reason, error = np.zeros(n, dtype=np.uint8), np.zeros(n)
    made.accept(rung, np.zeros((n, 3)), prediction, error, reason)
    return reason, error


@pytest.mark.parametrize(("noise", "confidence"), [(0.5, 0.95), (0.9, 0.9)])
def test_the_promise_holds_over_repeated_calibrations(noise: float, confidence: float) -> None:
    """At most 1 - confidence of the accepted answers exceed the tolerance, in at least 1 - delta of the draws."""
    rng = np.random.default_rng(2)
    score, error = pairs(rng, 400_000, noise)
    order = np.argsort(score)
    score, bad = score[order], np.cumsum(error[order] > 0.02)
    draws, broken, certified = 200, 0, 0
    for _ in range(draws):
        threshold = certified_threshold(*pairs(rng, 800, noise), 0.02, confidence)
        if threshold is None:
            continue
        certified += 1
        accepted = np.searchsorted(score, threshold, side="right")
        broken += bool(bad[accepted - 1] / accepted > 1.0 - confidence)
    assert certified > 0.9 * draws  # the promise is not kept by promising nothing
    assert broken <= binom.ppf(0.999, draws, DELTA)


def test_the_threshold_is_worth_having() -> None:
    """With many pairs, nearly as many answers are accepted as an oracle that knows the distribution would accept."""
    rng = np.random.default_rng(3)
    score, error = pairs(rng, 400_000)
    order = np.argsort(score)
    share = np.cumsum(error[order] > 0.02) / np.arange(1, 400_001)
    oracle = np.flatnonzero(share <= 0.05)[-1] / 400_000
    threshold = certified_threshold(*pairs(rng, 4000), 0.02, 0.95)
    assert threshold is not None
    accepted = float(np.mean(score <= threshold))
    assert 0.9 * oracle < accepted <= 1.02 * oracle


def test_a_tighter_tolerance_and_a_higher_confidence_accept_fewer() -> None:
    rng = np.random.default_rng(4)
    score, error = pairs(rng, 3000)
    by_tolerance = [certified_threshold(score, error, t, 0.95) or -1.0 for t in (0.005, 0.01, 0.02, 0.04, 0.1)]
    assert by_tolerance == sorted(by_tolerance) and by_tolerance[0] < by_tolerance[-1]
    by_confidence = [certified_threshold(score, error, 0.02, c) or -1.0 for c in (0.98, 0.95, 0.9, 0.7)]
    assert by_confidence == sorted(by_confidence) and by_confidence[0] < by_confidence[-1]


def test_the_order_of_the_pairs_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    score, error = pairs(rng, 2000)
    score[100:200] = score[0]  # ties
    order = rng.permutation(2000)
    assert certified_threshold(score, error, 0.02, 0.95) == certified_threshold(score[order], error[order], 0.02, 0.95)
    for one, other in zip(error_curve(score, error, 0.95), error_curve(score[order], error[order], 0.95), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_a_bad_surrogate_is_never_accepted(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(6)
    score, error = pairs(rng, 3000, quality=1000.0)
    with caplog.at_level(logging.WARNING):
        made = stage(score, error)
    reason, estimate = accept(made, np.array([0.0, 1e-9, 0.01]))
    assert reason.tolist() == [Reason.UNCERTAIN] * 3 and np.isinf(estimate).all()
    assert made.message is not None
    assert (
        "surrogate_coarse accepts nothing at a tolerance of 0.02: 100.0% of 3000 held-out answers exceed it"
        in made.message
    )
    assert [r.message for r in caplog.records] == [made.message]


def test_a_score_that_says_nothing_about_a_poor_surrogate_is_not_accepted() -> None:
    rng = np.random.default_rng(7)
    score, error = rng.uniform(size=3000), rng.lognormal(np.log(0.02), 0.5, 3000)  # half of the answers are bad
    assert certified_threshold(score, error, 0.02, 0.95) is None


def test_too_few_pairs_certify_nothing_and_it_is_said() -> None:
    least = smallest_certifiable(0.95)
    assert 0.95**least <= DELTA / 4 < 0.95 ** (least - 1)
    perfect = np.full(least, 1e-6)
    assert certified_threshold(np.arange(least) * 1.0, perfect, 0.02, 0.95) == least - 1
    assert certified_threshold(np.arange(least - 1) * 1.0, perfect[1:], 0.02, 0.95) is None
    made = stage(np.arange(10) * 1.0, np.full(10, 1e-6))
    assert (
        made.message is not None and f"10 held-out answers are too few to certify 95%, at least {least}" in made.message
    )


def test_with_no_certified_rung_points_are_refused_before_the_surrogate_is_asked() -> None:
    made = stage(np.ones(5), np.ones(5))
    reason = np.array([0, Reason.HELD, 0], dtype=np.uint8)
    made.admit(np.zeros((3, 3)), reason)
    assert reason.tolist() == [Reason.UNCERTAIN, Reason.HELD, Reason.UNCERTAIN]


def test_a_rung_without_calibration_accepts_nothing() -> None:
    rng = np.random.default_rng(8)
    made = stage(*pairs(rng, 2000))
    assert accept(made, np.array([1e-9]))[0][0] == 0
    assert accept(made, np.array([1e-9]), Source.SURROGATE_FINE)[0][0] == Reason.UNCERTAIN


def test_a_score_that_is_not_a_number_refuses_its_point_alone() -> None:
    made = stage(*pairs(np.random.default_rng(9), 2000))
    reason, error = accept(made, np.array([1e-4, np.nan, np.inf, 1e-4]))
    assert reason.tolist() == [0, Reason.NOT_FINITE, Reason.NOT_FINITE, 0]
    assert np.isinf(error[1:3]).all() and np.isfinite(error[[0, 3]]).all()


def test_the_estimate_covers_the_error_and_rises_with_the_score() -> None:
    rng = np.random.default_rng(10)
    made = stage(*pairs(rng, 4000))
    score, error = pairs(rng, 20_000)
    _, estimate = accept(made, score)
    assert np.mean(error <= estimate) >= 0.94
    assert np.median(estimate / error) < 5.0  # not by being huge
    order = np.argsort(score)
    assert (np.diff(estimate[order]) >= 0.0).all()


def test_the_estimate_covers_in_every_part_of_the_score() -> None:
    """Errors that are not proportional to the score: a floor of 1 % at low scores."""
    rng = np.random.default_rng(11)

    def draw(n: int) -> tuple[F64, F64]:
        score = rng.lognormal(-6.0, 1.0, n)
        return score, np.maximum(score, 0.01) * rng.uniform(0.2, 1.0, n)

    made = stage(*draw(6000))
    score, error = draw(50_000)
    _, estimate = accept(made, score)
    for group in np.array_split(np.argsort(score), 10):
        assert np.mean(error[group] <= estimate[group]) >= 0.92


def test_infinite_errors_of_held_out_answers_count_as_bad() -> None:
    cleaned = clean_pairs(np.array([1.0, np.nan, 2.0]), np.array([np.nan, 0.1, 0.2]))
    assert cleaned.tolist() == [[1.0, np.inf], [2.0, 0.2]]
    rng = np.random.default_rng(12)
    score, error = pairs(rng, 1000)
    error[:] = np.nan
    assert certified_threshold(*clean_pairs(score, error).T, 0.02, 0.95) is None


def test_audited_pairs_and_lowered_thresholds_survive_a_checkpoint() -> None:
    rng = np.random.default_rng(13)
    score, error = pairs(rng, 2000)
    made = stage(score, error)
    before = made.thresholds[COARSE]
    made.add_pairs(np.zeros(300, np.uint8), np.full(300, before / 2), np.full(300, 0.5))
    assert made.thresholds.get(COARSE, 0.0) < before
    made.lower(COARSE, 1e-3)
    again = stage(score, error)
    again.set_state({key: np.asarray(value) for key, value in made.get_state().items()})
    assert again.thresholds == made.thresholds
    probe = rng.lognormal(-5, 1, 500)
    for one, other in zip(accept(made, probe), accept(again, probe), strict=True):
        assert np.array_equal(one, other)


def test_audited_pairs_never_raise_a_threshold() -> None:
    """Audits see accepted answers alone: many good ones at low scores say nothing about higher scores."""
    made = stage(*pairs(np.random.default_rng(5), 2000))
    before = made.thresholds[COARSE]
    low = np.random.default_rng(6).uniform(0.0, 0.2 * before, 2000)
    made.add_pairs(np.zeros(2000, dtype=np.uint8), low, low)
    assert made.thresholds[COARSE] <= before


def test_a_new_surrogate_starts_with_its_own_calibration_alone() -> None:
    rng = np.random.default_rng(14)
    score, error = pairs(rng, 2000)
    made = stage(score, error)
    fresh = dict(made.thresholds)
    made.lower(COARSE, 1e-6)
    made.attach(Points(np.arange(3), np.zeros((3, 2)), np.ones(3)), card(score, error))
    assert made.thresholds == fresh


def test_no_accepted_answer_has_an_estimate_above_the_tolerance() -> None:
    """Good scores hide the bad tail: 97 % of all answers are fine, those with the largest scores are not."""
    rng = np.random.default_rng(5)
    score = rng.random(4000)
    error = np.where(score > 0.97, 0.05, 0.01) * rng.random(4000)
    assert (certified_threshold(score, error, 0.02, 0.95) or 0.0) > 0.97
    curve = error_curve(score, error, 0.95)
    limit = largest_score(*curve, 0.02)
    assert np.interp(limit, *curve) <= 0.02
    assert np.interp(limit * 1.01, *curve) > 0.02
    assert largest_score(*curve, 1e9) == curve[0][-1]
    assert largest_score(curve[0][1:], curve[1][1:] + 1.0, 0.02) == -np.inf
