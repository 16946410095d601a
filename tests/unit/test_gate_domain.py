"""Stage `domain`: known ground is let through to the last point, unknown ground never."""

from __future__ import annotations

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.gate.domain import Domain
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Reason
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, U8, Points

LOW, HIGH = np.array([-0.01, -0.02, -0.03]), np.array([0.04, 0.05, 0.06])


def stage(domain: dict[str, object] | None = None, phase: U8 | None = None, n: int = 0) -> Domain:
    ranges = list(zip(LOW.tolist(), HIGH.tolist(), strict=True))
    card = Card(
        problem={}, input_range=ranges, output_floor=1.0, domain=domain or {}, calibration={}, metrics={},
        versions={}, data_sha256="",
    )  # fmt: skip
    made = Domain(schema.Gate(), make_problem(schema.Problem(name="composite", grid=8)))
    n = n if phase is None else len(phase)
    made.attach(Points(np.arange(n), np.zeros((n, 2)), np.ones(n), {} if phase is None else {"phase": phase}), card)
    return made


def asked(made: Domain, inputs: F64, before: U8 | None = None) -> U8:
    reason = np.zeros(len(inputs), dtype=np.uint8) if before is None else before
    made.admit(inputs, reason)
    return reason


def test_inputs_within_the_training_ranges_are_admitted_up_to_their_ends() -> None:
    inputs = np.vstack([LOW, HIGH, 0.5 * (LOW + HIGH)])
    assert not asked(stage(), inputs).any()


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("side", [LOW, HIGH])
def test_one_input_beyond_its_range_refuses_its_point_alone(column: int, side: F64) -> None:
    inputs = np.tile(0.5 * (LOW + HIGH), (5, 1))
    inputs[3, column] = side[column] * 1.01
    assert asked(stage(), inputs).tolist() == [0, 0, 0, Reason.OUT_OF_DOMAIN, 0]


def test_the_first_read_of_a_coupling_is_all_zeros_and_known_ground() -> None:
    far = {"inputs_mean": [1.0, 1.0, 1.0], "inputs_cov_inv": np.eye(3).tolist(), "inputs_max_distance": 0.1}
    assert not asked(stage(far), np.zeros((4, 3))).any()


def test_an_input_that_is_not_a_number_is_refused() -> None:
    inputs = np.tile(0.5 * (LOW + HIGH), (3, 1))
    inputs[1, 2] = np.nan
    assert asked(stage(), inputs).tolist() == [0, Reason.OUT_OF_DOMAIN, 0]


def test_distance_is_that_of_the_training_cloud() -> None:
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.2], [0.0, 0.2, 0.5]]) * 1e-4
    mean = np.array([0.01, 0.012, 0.015])
    domain = {
        "inputs_mean": mean.tolist(), "inputs_cov_inv": np.linalg.inv(covariance).tolist(), "inputs_max_distance": 2.0,
    }  # fmt: skip
    inputs = rng.uniform(LOW, HIGH, (500, 3))
    offset = inputs - mean
    distance = np.sqrt(np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset))
    assert 0 < np.count_nonzero(distance > 2.0) < 500
    assert np.array_equal(asked(stage(domain), inputs) == Reason.OUT_OF_DOMAIN, distance > 2.0)


def test_micro_structures_of_foreign_inclusion_share_are_refused() -> None:
    phase = np.zeros((4, 8, 8), dtype=np.uint8)
    phase[1, :2] = 1  # share 0.25
    phase[2, :4] = 1  # share 0.5
    phase[3, 0, :7] = 1  # share 0.11, within a pixel of 0.12
    reason = asked(stage({"phase_mean_range": [0.12, 0.3]}, phase), np.tile(0.5 * (LOW + HIGH), (4, 1)))
    assert reason.tolist() == [Reason.OUT_OF_DOMAIN, 0, Reason.OUT_OF_DOMAIN, 0]


def test_an_earlier_reason_is_kept() -> None:
    inputs = np.tile(HIGH * 2, (2, 1))
    before = np.array([Reason.HELD, 0], dtype=np.uint8)
    assert asked(stage(), inputs, before).tolist() == [Reason.HELD, Reason.OUT_OF_DOMAIN]


def test_a_row_is_judged_alone() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.uniform(1.3 * LOW, 1.3 * HIGH, (300, 3))
    domain = {"inputs_mean": [0, 0, 0], "inputs_cov_inv": (np.eye(3) * 600).tolist(), "inputs_max_distance": 1.0}
    made = stage(domain)
    together = asked(made, inputs)
    order = rng.permutation(300)
    assert np.array_equal(asked(made, inputs[order]), together[order])
    assert np.array_equal(np.concatenate([asked(made, row[None]) for row in inputs]), together)
    assert 0 < np.count_nonzero(together) < 300


def test_no_points_are_no_problem() -> None:
    assert asked(stage(), np.zeros((0, 3))).shape == (0,)
