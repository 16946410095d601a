"""Stage `audit`: which points are audited, and when the alarm is raised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from neuroscale_couple.config import schema
from neuroscale_couple.gate.audit import RECENT, Monitor, draw
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, Audit, Points


def stage(**settings: float) -> Monitor:
    return Monitor(
        schema.Gate(**{"tolerance": 0.02, **settings}), make_problem(schema.Problem(name="composite", grid=8))
    )


def audits(error: F64, score: float = 0.01) -> Audit:
    n = len(error)
    return Audit(np.arange(n), np.zeros(n, np.uint8), np.full(n, score), np.full(n, 0.02), error)


def test_only_accepted_points_are_audited_and_the_share_is_the_configured_one() -> None:
    source = np.zeros(50_000, np.uint8)
    source[::2] = Source.FINE
    rows = stage(audit=0.04).select(5, np.arange(50_000), source)
    assert (source[rows] != Source.FINE).all()
    low, high = binom.ppf([1e-4, 1 - 1e-4], 25_000, 0.04)
    assert low <= len(rows) <= high


def test_audited_points_do_not_depend_on_the_rank_layout() -> None:
    monitor, ids, source = stage(audit=0.1), np.arange(1000, dtype=np.int64), np.zeros(1000, np.uint8)
    together = set(ids[monitor.select(3, ids, source)].tolist())
    parts = np.array_split(np.random.default_rng(0).permutation(ids), 3)
    apart = [set(part[monitor.select(3, part, source[: len(part)])].tolist()) for part in parts]
    assert set.union(*apart) == together and together


def test_audited_points_change_from_window_to_window_and_with_the_seed() -> None:
    ids = np.arange(20_000)
    first, second, other = draw(1, 0, ids), draw(1, 1, ids), draw(2, 0, ids)
    for a, b in ((first, second), (first, other)):
        both = np.count_nonzero((a < 2**62) & (b < 2**62))  # a quarter each, independent
        assert abs(both - 20_000 / 16) < 5 * np.sqrt(20_000 / 16)


def test_numbers_are_uniform() -> None:
    numbers = draw(7, 12, np.arange(-50_000, 50_000)).astype(np.float64) / 2.0**64
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert np.sum((counts - 5000.0) ** 2 / 5000.0) < 44.0  # chi-square, 19 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 100)])
def test_no_audits_and_all_audits(share: float, count: int) -> None:
    assert len(stage(audit=share).select(0, np.arange(100), np.zeros(100, np.uint8))) == count


def test_audits_come_every_so_many_windows() -> None:
    monitor = stage(audit=1.0, audit_every=3)
    counts = [len(monitor.select(window, np.arange(10), np.zeros(10, np.uint8))) for window in range(7)]
    assert counts == [0, 0, 10, 0, 0, 10, 0]


def test_the_alarm_is_a_one_sided_binomial_test() -> None:
    for n in (30, 100, 300):
        critical = next(k for k in range(n) if binom.sf(k - 1, n, 0.05) < 0.01)
        for bad, expected in ((critical - 1, False), (critical, True)):
            monitor = stage(confidence=0.95)
            error = np.full(n, 0.01)
            error[:bad] = 0.03
            monitor.learn(audits(error))
            assert (monitor.bad, monitor.alarm) == (bad, expected)


def test_an_error_that_is_not_a_number_counts_as_bad() -> None:
    monitor = stage()
    monitor.learn(audits(np.array([np.nan, np.inf, 0.01])))
    assert monitor.bad == 2


def test_only_recent_audits_count() -> None:
    monitor = stage()
    monitor.learn(audits(np.full(50, 1.0)))
    assert monitor.alarm
    monitor.learn(audits(np.full(RECENT, 1e-3)))
    assert not monitor.alarm and monitor.bad == 0 and len(monitor.record) == RECENT


def test_the_record_survives_a_checkpoint_and_a_new_surrogate_clears_it() -> None:
    monitor, again = stage(), stage()
    monitor.learn(audits(np.array([0.5, 0.01, 0.02])))
    again.set_state({key: np.asarray(value) for key, value in monitor.get_state().items()})
    assert np.array_equal(again.record, monitor.record) and len(again.record) == 3
    again.attach(Points(np.arange(1), np.zeros((1, 2)), np.ones(1)), None)
    assert len(again.record) == 0
    again.set_state({})
    assert len(again.record) == 0 and not again.alarm
