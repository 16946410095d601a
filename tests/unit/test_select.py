"""Selecting samples: a stable hold-out, no near-duplicates, every structure its turn."""

from __future__ import annotations

import numpy as np

from neuroscale_couple.learning.select import held_out, select


def test_the_hold_out_depends_on_the_id_alone_and_has_the_configured_share() -> None:
    ids = np.arange(100_000)
    held = held_out(ids, 0.25)
    assert abs(held.mean() - 0.25) < 0.005
    order = np.random.default_rng(0).permutation(ids)[:500]
    assert np.array_equal(held_out(order, 0.25), held[order])
    assert not (held & ~held_out(ids, 0.5)).any()  # a larger share only adds points
    assert not held_out(ids, 0.0).any() and held_out(ids, 1.0).all()


def test_of_near_duplicates_the_latest_stays() -> None:
    structure = np.array([0, 0, 1, 0, 0])
    inputs = np.array([[0.0], [0.5], [0.5], [0.5001], [1.0]])
    assert select(structure, inputs, 100).tolist() == [0, 2, 3, 4]


def test_no_sample_is_dropped_while_there_is_room() -> None:
    rng = np.random.default_rng(1)
    structure, inputs = rng.integers(0, 50, 400), rng.normal(size=(400, 3))
    rows = select(structure, inputs, 400)
    assert np.array_equal(rows, np.unique(rows)) and len(rows) > 390
    assert len(select(np.zeros(0, np.int64), np.zeros((0, 3)), 5)) == 0


def test_with_a_cap_structures_take_turns_and_give_their_latest_first() -> None:
    rng = np.random.default_rng(2)
    structure = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 101)])
    order = rng.permutation(len(structure))
    structure, inputs = structure[order], rng.normal(size=(1100, 3))
    rows = select(structure, inputs, 150)
    assert len(rows) == 150
    chosen = structure[rows]
    assert set(chosen.tolist()) == set(range(101))  # none is left out for the one that has many
    assert np.count_nonzero(chosen == 0) == 50
    kept = select(structure, inputs, 10**6)
    assert kept[structure[kept] == 0][-1] in rows  # its latest is among them


def test_with_a_cap_the_history_of_a_structure_is_covered() -> None:
    inputs = np.linspace(0, 1, 4001)[:, None]  # 51 cells, in the order of time
    rows = select(np.zeros(4001, np.int64), inputs, 10)
    assert len(rows) == 10
    gaps = np.diff(np.r_[0.0, inputs[rows, 0], 1.0])
    assert gaps.max() < 0.25
