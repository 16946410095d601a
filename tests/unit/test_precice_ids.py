"""Ids of the vertices of a macro mesh: by place, or by a data field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroscale_couple.errors import InputError
from neuroscale_couple.transport.precice_ids import by_coordinates, from_field, in_order_of

GRID = np.array([[x, y] for y in (0.0, 0.5, 1.0) for x in (-1.0, 0.1 + 0.2, 2.0)])


def test_places_are_numbered_along_the_first_direction_first() -> None:
    assert by_coordinates(GRID).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]


@pytest.mark.parametrize("seed", range(5))
def test_neither_order_nor_round_off_changes_an_id(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(GRID))
    shaken = GRID * (1 + 4e-16 * rng.integers(-1, 2, GRID.shape))
    assert by_coordinates(shaken[order]).tolist() == by_coordinates(GRID)[order].tolist()


def test_a_large_mesh_far_from_the_origin() -> None:
    rng = np.random.default_rng(7)
    far = np.stack(np.meshgrid(*[1e3 + 0.01 * np.arange(20)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    order = rng.permutation(len(far))
    assert np.array_equal(by_coordinates(far[order]), order)


def test_vertices_at_one_place_keep_their_order() -> None:
    assert by_coordinates(GRID[[4, 0, 4, 0]]).tolist() == [2, 0, 3, 1]
    assert by_coordinates(np.zeros((0, 2))).tolist() == []


def test_ids_of_a_field_are_taken_as_they_are() -> None:
    assert from_field([5.0, 0.0, 2.0**52], GRID[:3], "M", "Point-Id").tolist() == [5, 0, 2**52]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 0.5, 2.0], r"mesh 'M': data 'Id' \(neuroscale.precice.ids\) holds 0.5 at the vertex \(0.3, 0\): an id"),
        ([0.0, 1.0, -1.0], r"holds -1 at the vertex \(2, 0\)"),
        ([np.nan, 1.0, 2.0], "holds nan at the vertex"),
        ([1e300, 1.0, 2.0], "an id is a whole number from 0 on"),
        ([0.0, 0.0, 0.0], 'is 0 at all 3 vertices: the macro solver must write it before its first advance'),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused(values: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_field(values, GRID[:3], "M", "Id")


def test_volumes_follow_the_ids_of_all_ranks() -> None:
    other = np.array([7, 40])
    assert in_order_of(np.array([90, 3]), lambda mine: [other, mine]).tolist() == [3, 0]
