"""Promotion: only what is better on held-out fine answers, and never what would break the promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.learning.promote import Metrics, decide, evaluate, write_history
from neuroscale_couple.learning.store import Samples
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, I64, Prediction
from tests.stand_ins import CoarseOnly, card

GATE = schema.Gate(tolerance=0.02, confidence=0.95)
GOOD = Metrics(n=1000, p50=0.005, p95=0.018, accepted=0.9, above=0.02)


def decided(candidate: Metrics, current: Metrics | None = GOOD) -> tuple[bool, str]:
    return decide({"surrogate_coarse": candidate}, None if current is None else {"surrogate_coarse": current}, GATE)


def test_a_clearly_better_candidate_is_promoted() -> None:
    promoted, reason = decided(replace(GOOD, p50=0.004, p95=0.015))
    assert promoted and reason == (
        "surrogate_coarse: the combined error falls by 18.4% on held-out fine answers, "
        "the accepted share goes from 90% to 90%"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"p50": 0.006, "p95": 0.001}, "surrogate_coarse: p50 would rise from 0.005 to 0.006"),
        ({"p50": 0.001, "p95": 0.019}, "surrogate_coarse: p95 would rise from 0.018 to 0.019"),
        ({"p50": 0.001, "accepted": 0.8}, "surrogate_coarse: the accepted share would fall from 90% to 80%"),
        (
            {"p50": 0.004, "above": 0.1},
            "surrogate_coarse: 10.0% of the held-out answers it would accept exceed the tolerance",
        ),
        ({"p50": 0.004, "accepted": 0.0}, "no answer of the candidate would be accepted at a tolerance of 0.02"),
        ({}, "neither error nor accepted share improve by 2% on any rung"),
        ({"p50": np.nan}, "surrogate_coarse: p50 would rise from 0.005 to nan"),
    ],
)
def test_a_candidate_that_is_worse_in_anything_is_rejected(change: dict[str, float], text: str) -> None:
    assert decided(replace(GOOD, **change)) == (False, text)


def test_a_first_surrogate_must_be_of_use() -> None:
    promoted, reason = decided(GOOD, None)
    assert promoted and reason == "first surrogate: 90% of the held-out answers would be accepted"
    assert not decided(replace(GOOD, accepted=0.0), None)[0]
    assert not decided(replace(GOOD, above=0.2), None)[0]


def test_a_few_bad_answers_among_few_are_not_held_against_a_candidate() -> None:
    assert decided(replace(GOOD, n=20, accepted=1.0, above=0.1), None)[0]  # 2 of 20


def test_every_rung_must_not_be_worse_and_one_must_be_better() -> None:
    better, worse = replace(GOOD, p50=0.003), replace(GOOD, p95=0.03)
    current = {"surrogate_coarse": GOOD, "surrogate_fine": GOOD}
    assert decide({"surrogate_coarse": better, "surrogate_fine": GOOD}, current, GATE)[0]
    assert not decide({"surrogate_coarse": better, "surrogate_fine": worse}, current, GATE)[0]


def test_errors_far_below_the_tolerance_count_as_equal() -> None:
    tiny, tinier = replace(GOOD, p50=2e-4, p95=1.5e-3), replace(GOOD, p50=1e-4, p95=1e-3)
    better = replace(GOOD, p50=0.003)
    current = {"surrogate_coarse": GOOD, "surrogate_fine": tinier}
    assert decide({"surrogate_coarse": better, "surrogate_fine": tiny}, current, GATE)[0]
    assert decided(tinier, tiny) == (False, "neither error nor accepted share improve by 2% on any rung")


def test_accepting_more_is_better() -> None:
    promoted, reason = decided(replace(GOOD, accepted=0.95))
    assert promoted and reason.endswith("the accepted share goes from 90% to 95%")
    useless = replace(GOOD, p50=np.inf, p95=np.inf, accepted=0.0)
    assert decided(GOOD, useless)[0]


class Linear(CoarseOnly):
    """Ten times the input, wrong by `bias`; points beyond the first know their own structure only."""

    def __init__(self, bias: float, calibrated: bool = True) -> None:
        self.bias = bias
        score = np.linspace(0.0, 2.0, 1000)
        self.card = card({}, score, abs(bias) * score, reach=10.0)
        if not calibrated:
            self.card = self.card.model_copy(update={"calibration": {}})

    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        level = self.points.parameters["phase"][rows].mean(axis=(1, 2))[:, None]
        return Prediction(rows, 10 * level * inputs * (1 + self.bias), np.zeros((len(rows), 3, 3)), np.ones(len(rows)))


def samples(n: int = 300) -> Samples:
    rng = np.random.default_rng(0)
    phase = rng.integers(0, 2, (20, 4, 4)).astype(np.uint8)
    structure = rng.integers(0, 20, n)
    inputs = rng.normal(size=(n, 3)) + 3.0
    outputs = 10 * phase[structure].mean(axis=(1, 2))[:, None] * inputs
    ids = np.arange(20) * 7
    return Samples(
        ids[structure], np.zeros(n, np.int64), inputs, outputs, np.zeros((n, 3, 3)), ids, {"phase": phase}, structure
    )


def test_metrics_are_those_of_the_held_out_answers() -> None:
    found = evaluate(Linear(0.01), samples(), 1e-3, GATE)["surrogate_coarse"]
    assert (found.n, found.accepted, found.above) == (300, 1.0, 0.0)
    assert found.p50 == pytest.approx(0.01) and found.p95 == pytest.approx(0.01)
    assert evaluate(Linear(0.01, calibrated=False), samples(), 1e-3, GATE)["surrogate_coarse"].accepted == 0.0
    assert evaluate(Linear(0.5), samples(), 1e-3, GATE)["surrogate_coarse"].accepted == 0.0


def test_answers_outside_the_training_ranges_are_not_accepted() -> None:
    surrogate, held = Linear(0.01), samples()
    surrogate.card = surrogate.card.model_copy(update={"input_range": [(-10.0, 10.0), (-10.0, 3.0), (-10.0, 10.0)]})
    found = evaluate(surrogate, held, 1e-3, GATE)["surrogate_coarse"]
    assert found.accepted == pytest.approx(np.mean(held.inputs[:, 1] <= 3.0)) and 0.3 < found.accepted < 0.7


def test_answers_that_are_not_numbers_count_as_infinitely_wrong() -> None:
    found = evaluate(Linear(np.nan), samples(), 1e-3, GATE)["surrogate_coarse"]
    assert found.p50 == np.inf and not decided(found)[0]


def test_the_history_is_one_line_of_json_per_decision(tmp_path: Path) -> None:
    path = tmp_path / "models" / "history.jsonl"
    for window in (3, 7):
        write_history(path, {"window": window, "after": {"surrogate_coarse": GOOD}, "start": Path("v000.pt")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["window"] for line in lines] == [3, 7]
    assert lines[0]["after"]["surrogate_coarse"]["p95"] == 0.018 and lines[0]["start"] == "v000.pt"
