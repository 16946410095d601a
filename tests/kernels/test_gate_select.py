"""Scores to reasons, error estimates and refused rows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroscale_couple import kernels

Floats = npt.NDArray[Any]
BACKENDS = ["compiled", "reference", "numpy", "auto"]
CODES = (6, 5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats, Floats, Floats, float]:
    n, c = draw(st.integers(0, 300)), draw(st.sampled_from([0, 1, 2, 7, 20, 100]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    score = rng.random(n).astype(dtype)
    score[rng.random(n) < 0.05] = np.nan
    score[rng.random(n) < 0.05] = np.inf
    knots = np.sort(rng.random(c)).astype(dtype)
    score[: min(n, c)] = knots[: min(n, c)]  # exactly on knots
    reason = np.where(rng.random(n) < 0.2, 4, 0).astype(np.uint8)
    return (
        score,
        knots,
        rng.random(c).astype(dtype),
        reason,
        float(dtype(draw(st.sampled_from([-np.inf, 0.3, np.inf])))),
    )


@given(case=cases())
@settings(deadline=None, max_examples=80)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_numpy(backend: Any, case: Any) -> None:
    score, knots, levels, before, threshold = case
    reason, error = before.copy(), np.zeros_like(score)
    refused = kernels.gate_select(score, threshold, (knots, levels), CODES, reason, error, backend)
    finite = np.isfinite(score)
    expected = np.where(before != 0, before, np.where(~finite, 6, np.where(score <= threshold, 0, 5)))
    np.testing.assert_array_equal(reason, expected)
    assert refused.dtype == np.int64
    np.testing.assert_array_equal(refused, np.flatnonzero(expected))
    assert np.isinf(error[~finite]).all()
    if len(knots):
        eps = float(np.finfo(score.dtype).eps)
        np.testing.assert_allclose(error[finite], np.interp(score[finite], knots, levels), rtol=64 * eps, atol=4 * eps)
    else:
        assert np.isinf(error).all()


@given(case=cases())
@settings(deadline=None, max_examples=60)
def test_compiled_and_reference_agree_bit_for_bit(case: Any) -> None:
    score, knots, levels, before, threshold = case
    results = []
    for backend in ("compiled", "reference"):
        reason, error = before.copy(), np.zeros_like(score)
        rows = kernels.gate_select(score, threshold, (knots, levels), CODES, reason, error, backend)  # type: ignore[arg-type]
        results.append((rows, reason, error))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def beside(values: Floats) -> Floats:
    """The values and their neighbours on both sides."""
    up, down = (np.nextafter(values, values.dtype.type(side)) for side in (np.inf, -np.inf))
    return np.concatenate([values, up, down])


CURVES = {
    "one knot": np.array([0.5]),
    "uniform": np.linspace(0.0, 1.0, 20),
    "pairs of neighbours": beside(np.linspace(0.01, 0.9, 21))[:42],
    "pairs and a last knot far out, as calibrated": np.append(beside(np.linspace(0.01, 0.9, 21))[:42], 1e6),
    "all but one in a cell": np.append(np.geomspace(1e-12, 1e-6, 60), [1.0, 1e3, 1e6]),
    "equal knots": np.array([0.2, 0.2, 0.2, 0.4, 0.4, 0.9, 0.9]),
    "without width": np.full(5, 0.3),
    "more than are prepared for": np.linspace(0.0, 1.0, 100),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("odd", [False, True])
def test_scores_at_and_beside_knots_agree_bit_for_bit(name: str, dtype: Any, odd: bool) -> None:
    """More than a tile and not a multiple of 64; `odd`: with scores that are not finite among them."""
    rng = np.random.default_rng(0)
    knots = np.sort(CURVES[name].astype(dtype))
    levels = rng.random(len(knots)).astype(dtype)
    score = np.concatenate([beside(knots), rng.random(3000).astype(dtype), np.array([-1.0, 0.0, 3e38], dtype)])
    score = rng.permutation(score)
    if odd:
        score[::7] = rng.choice(np.array([np.nan, np.inf, -np.inf], dtype), len(score[::7]))
    before = np.where(rng.random(len(score)) < 0.1, 4, 0).astype(np.uint8)
    for threshold in (0.3, np.inf, -np.inf):
        results = []
        for backend in ("compiled", "reference"):
            reason, error = before.copy(), np.zeros_like(score)
            rows = kernels.gate_select(score, threshold, (knots, levels), CODES, reason, error, backend)  # type: ignore[arg-type]
            results.append((rows.tolist(), reason.tolist(), error.tobytes()))
        assert results[0] == results[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: Any) -> None:
    score = np.array([0.0, 0.5, 1.0, 1.5, np.nan, 0.25, 3.0])
    reason = np.array([0, 0, 0, 0, 0, 4, 0], np.uint8)
    error = np.zeros(7)
    curve = (np.array([0.5, 1.5]), np.array([10.0, 20.0]))
    refused = kernels.gate_select(score, 1.0, curve, CODES, reason, error, backend)
    assert refused.tolist() == [3, 4, 5, 6]
    assert reason.tolist() == [0, 0, 0, 5, 6, 4, 5]
    assert error.tolist() == [10.0, 10.0, 15.0, 20.0, np.inf, 10.0, 20.0]


def test_many_rows_keep_their_order_on_every_part() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(1_000_003)
    reason, error = np.zeros(len(score), np.uint8), np.zeros(len(score))
    refused = kernels.gate_select(score, 0.9, (np.zeros(1), np.ones(1)), CODES, reason, error, "compiled")
    np.testing.assert_array_equal(refused, np.flatnonzero(score > 0.9))


def test_bad_input_is_refused_with_got_and_expected() -> None:
    score, reason, error = np.zeros(3), np.zeros(3, np.uint8), np.zeros(3)
    curve = (np.zeros(2), np.zeros(2))
    for arguments, text in (
        ((score[::2], 1.0, curve, CODES, reason, error), r"^score: got strides \(2,\)"),
        (
            (score, 1.0, (np.zeros(2), np.zeros(3)), CODES, reason, error),
            r"^levels: got float64 \(3,\), expected float64",
        ),
        ((score, 1.0, curve, CODES, np.zeros(3, bool), error), r"^reason: got bool \(3,\), expected uint8 \(3,\)"),
        ((score, 1.0, curve, CODES, reason, np.zeros(3, np.float32)), r"^error: got float32 \(3,\), expected float64"),
        (
            (score, 1.0, curve, CODES, reason, score),
            "^error: got memory that overlaps score, expected memory of its own",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            kernels.gate_select(*arguments)


@pytest.mark.needs("cuda")
def test_cuda_agrees_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(10_000)
    curve = (np.sort(rng.random(20)), rng.random(20))
    reason, error = np.zeros(10_000, np.uint8), np.zeros(10_000)
    on_device = [torch.from_numpy(a.copy()).cuda() for a in (score, *curve, reason, error)]
    refused = kernels.gate_select(on_device[0], 0.5, (on_device[1], on_device[2]), CODES, on_device[3], on_device[4])
    np.testing.assert_array_equal(refused.cpu().numpy(), kernels.gate_select(score, 0.5, curve, CODES, reason, error))
    np.testing.assert_array_equal(on_device[4].cpu().numpy(), error)


def test_the_seconds_of_a_call_are_counted_once() -> None:
    kernels.seconds_spent()
    reason, error = np.zeros(100_000, np.uint8), np.zeros(100_000)
    curve = np.zeros(0), np.zeros(0)
    start = time.perf_counter()
    for backend in ("auto", "numpy"):
        kernels.gate_select(np.zeros(100_000), 0.5, curve, CODES, reason, error, backend)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        kernels.gate_select(None, 0.5, curve, CODES, reason, error)
    passed = time.perf_counter() - start
    assert 0.0 < kernels.seconds_spent() <= passed
    assert kernels.seconds_spent() == 0.0


def test_the_environment_asks_for_numpy_without_a_warning() -> None:
    program = "from neuroscale_couple import kernels; print(kernels.has_compiled())"
    environment = {**os.environ, "NEUROSCALE_KERNELS": "numpy"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
