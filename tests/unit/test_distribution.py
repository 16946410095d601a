"""Dealing points: even, fixed by id, blind to order and place; the serial deal is free."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple.errors import InputError
from neuroscale_couple.serial import SerialComm
from neuroscale_couple.transport.distribution import (
    Distribution,
    deal,
    hash_ids,
    incoming,
    outgoing,
    pack_reply,
    reply_columns,
    unpack_reply,
)
from neuroscale_couple.values import Points, Reply

SERIAL = SerialComm()
ids_of_points = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=60).map(
    lambda ids: np.array(ids, dtype=np.int64)
)


def test_the_hash_is_splitmix64() -> None:
    """First outputs of SplitMix64 seeded with 0 are the hashes of 0 and of the golden gamma."""
    gamma = np.array([0x9E3779B97F4A7C15], dtype=np.uint64).view(np.int64)
    assert hash_ids(np.array([0]))[0] == 0xE220A8397B1DCDAF
    assert hash_ids(gamma)[0] == 0x6E789E6AA1B965F4


@given(ids_of_points, st.integers(1, 7), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_hands_are_even_and_do_not_depend_on_the_order(ids: np.ndarray, hands: int, random: object) -> None:
    owner = deal(SERIAL, ids, hands)
    counts = np.bincount(owner, minlength=hands)
    assert counts.max() - counts.min() <= 1
    shuffled = np.random.default_rng(random.randrange(10**6)).permutation(len(ids))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(deal(SERIAL, ids[shuffled], hands), owner[shuffled])


def test_a_crowd_in_space_is_spread_over_all_hands() -> None:
    """Neighbouring ids, such as the points of a hole's rim, go to all ranks in nearly equal numbers."""
    owner = deal(SERIAL, np.arange(20_000), 4)
    crowd = np.bincount(owner[7000:7400], minlength=4)
    assert crowd.min() > 70, crowd


def test_an_id_given_twice_is_named() -> None:
    with pytest.raises(InputError, match=r"point id 17 is given twice, by rank 0 and by rank 0: ids must be global"):
        Distribution(SERIAL, np.array([3, 17, 5, 17]))


@given(ids_of_points, st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_sending_and_receiving_are_inverse(ids: np.ndarray, hands: int) -> None:
    """One sender, several owners, the messages played by hand."""
    rows = np.stack([ids, ids], axis=1)
    out = outgoing(SERIAL, ids, hands)
    packed, cuts = out.pack(rows), np.cumsum(out.counts)[:-1]
    answers = []
    for block, sent in zip(np.split(packed, cuts), np.split(out.pack(ids), cuts), strict=True):
        owned = incoming(sent, np.array([len(sent)]))
        assert (owned.pack(sent)[1:] > owned.pack(sent)[:-1]).all()
        answers.append(owned.unpack(owned.pack(block)))
    np.testing.assert_array_equal(out.unpack(np.concatenate(answers)), rows)


def test_an_owner_sorts_what_several_senders_sent() -> None:
    received = np.array([4, 9, 1, 7, 2])
    owned = incoming(received, np.array([2, 3]))
    np.testing.assert_array_equal(owned.pack(received), [1, 2, 4, 7, 9])
    np.testing.assert_array_equal(owned.unpack(owned.pack(received)), received)


def test_ascending_ids_of_one_rank_pass_through_uncopied() -> None:
    distribution = Distribution(SERIAL, np.array([2, 5, 11]))
    rows = np.ones((3, 4))
    assert distribution.identity
    assert distribution.forward(rows) is rows
    assert distribution.backward(rows) is rows


def test_points_move_with_parameters_of_any_dtype_and_shape() -> None:
    ids = np.array([8, 3, 5])
    phase = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    parameters = {"phase": phase, "name": np.array(["a", "bb", "c"]), "flag": np.array([True, False, True])}
    points = Points(ids, np.ones((3, 2)) * ids[:, None], 1.0 * ids, parameters)
    owned = Distribution(SERIAL, ids).move(points)
    np.testing.assert_array_equal(owned.ids, [3, 5, 8])
    np.testing.assert_array_equal(owned.coordinates[:, 0], [3.0, 5.0, 8.0])
    np.testing.assert_array_equal(owned.volumes, [3.0, 5.0, 8.0])
    np.testing.assert_array_equal(owned.parameters["phase"], phase[[1, 2, 0]])
    assert owned.parameters["name"].tolist() == ["bb", "c", "a"]
    assert owned.parameters["flag"].tolist() == [False, True, True]


@pytest.mark.parametrize("name", ["objects", "ids"])
def test_parameters_that_cannot_travel_are_named(name: str) -> None:
    values = np.array([{}, {}], dtype=object) if name == "objects" else np.zeros(2)
    points = Points(np.arange(2), np.zeros((2, 2)), np.ones(2), {name: values})
    with pytest.raises(InputError, match=f"parameter '{name}' of dtype .* cannot be sent"):
        Distribution(SERIAL, points.ids).move(points)


def test_a_packed_reply_holds_every_bit() -> None:
    random = np.random.default_rng(3)
    n, n_out, n_in = 300, 4, 3
    reply = Reply(
        random.standard_normal((n, n_out)),
        random.standard_normal((n, n_out, n_in)),
        random.integers(0, 256, n).astype(np.uint8),
        random.integers(0, 256, n).astype(np.uint8),
        random.random(n),
    )
    packed = pack_reply(reply)
    assert packed.shape == (n, reply_columns(n_in, n_out))
    back = unpack_reply(packed, n_in, n_out)
    for name in ("outputs", "tangent", "source", "reason", "error"):
        np.testing.assert_array_equal(getattr(back, name), getattr(reply, name), err_msg=name)
        assert getattr(back, name).dtype == getattr(reply, name).dtype
