"""Loads that a run may meet later, and whom to ask about them."""

from __future__ import annotations

import numpy as np
import pytest

from neuroscale_couple.learning.ahead import MARGIN, choose, expected, growth, questions

LOADS = slice(0, 2)
BOX = np.array([[-1.0, 4.0], [-2.0, 2.0], [250.0, 350.0]])


def test_loads_grow_until_the_first_point_leaves_the_range() -> None:
    inputs = np.array([[0.1, 0.02, 300.0], [-0.05, 0.2, 300.0]])  # shares of the limits: 1/40, 1/100; 1/20, 1/10
    assert growth(inputs, LOADS, BOX, 100.0) == pytest.approx(MARGIN * 10.0)
    assert growth(inputs, LOADS, BOX, 3.0) == 3.0
    assert growth(inputs, LOADS, None, 3.0) == 3.0


def test_loads_that_have_reached_the_range_do_not_shrink() -> None:
    assert growth(np.array([[5.0, 0.0, 300.0]]), LOADS, BOX, 100.0) == 1.0
    assert growth(np.zeros((3, 3)), LOADS, BOX, 7.0) == 7.0


def test_expected_loads_stay_in_the_range_and_leave_conditions_alone() -> None:
    rng = np.random.default_rng(1)
    inputs = np.array([[0.4, 0.1, 300.0], [-0.1, 0.3, 320.0]])[rng.integers(2, size=4000)]
    found = expected(inputs, LOADS, BOX, 12.0, rng)
    assert (found >= BOX[:, 0]).all() and (found <= BOX[:, 1]).all()
    assert np.array_equal(found[:, 2], inputs[:, 2])
    size = np.linalg.norm(found[:, :2], axis=1) / np.linalg.norm(inputs[:, :2], axis=1)
    assert size.min() < 0.5 and size.max() > 6.0  # from below the present loads up to far beyond
    cosine = np.sum(found[:, :2] * inputs[:, :2], axis=1) / size / np.sum(inputs[:, :2] ** 2, axis=1)
    assert np.quantile(cosine, 0.1) > 0.8  # along the run's own directions


def test_half_of_those_asked_are_held_out_and_no_batch_asks_twice() -> None:
    held = np.arange(20) < 5
    batches = choose(held, 24, np.random.default_rng(0))
    rows = np.concatenate(batches)
    assert len(rows) == 24 and np.count_nonzero(held[rows]) == 12
    assert all(len(np.unique(batch)) == len(batch) for batch in batches)


def test_without_points_nothing_is_asked() -> None:
    none = np.zeros(0, dtype=bool)
    assert questions(np.zeros((0, 3)), none, 0, LOADS, BOX, 2.0, np.random.default_rng(0)) == []
    assert choose(np.ones(3, dtype=bool), 4, np.random.default_rng(0))[0].tolist() == [0, 1, 2]
