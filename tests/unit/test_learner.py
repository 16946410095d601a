"""The learner: when it trains, what it trains on, what it promotes, and that nothing of it can end a run."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuroscale_couple.surrogate
from neuroscale_couple.config import schema
from neuroscale_couple.learning import make_learner
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.learning.select import held_out
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, I64, FineAnswer, Points, Prediction
from tests.stand_ins import CoarseOnly, card

N = 60
PROBLEM = make_problem(schema.Problem(name="composite", grid=4))
POINTS = Points(
    np.arange(N) + 1000, np.zeros((N, 2)), np.ones(N),
    {"phase": np.random.default_rng(0).integers(0, 2, (N, 4, 4)).astype(np.uint8)},
)  # fmt: skip
Fit = Callable[..., Path]


def truth(phase: Any, inputs: F64) -> F64:
    """The fine answer of this file: a law that depends on the micro structure."""
    return np.asarray((1e4 + 1e4 * phase.mean(axis=(1, 2)))[:, None] * inputs)


class Toy(CoarseOnly):
    """The true law, wrong by the bias written in its file."""

    def __init__(self, path: Path) -> None:
        self.path, self.version = path, 0
        self.bias = float(json.loads(path.read_text())["bias"])
        score = np.linspace(0.0, 2.0, 500)
        self.card = card(PROBLEM.signature, score, self.bias * score)

    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        outputs = truth(self.points.parameters["phase"][rows], inputs) * (1 + self.bias)
        return Prediction(rows, outputs, np.zeros((len(rows), 3, 3)), np.ones(len(rows)))


def artifact(path: Path, bias: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"bias": bias}))
    return path


class Calls:
    """Stands in for `training.fit`: keeps what it was given and writes artifacts of the given biases in turn."""

    def __init__(self, *biases: float) -> None:
        self.biases = list(biases)
        self.data: list[Any] = []
        self.given: list[dict[str, Any]] = []

    def __call__(self, problem: Any, data: Any, settings: Any, out: Path, **given: Any) -> Path:
        self.data.append(data)
        self.given.append(given)
        return artifact(out, self.biases.pop(0))


@pytest.fixture(autouse=True)
def toy_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuroscale_couple.surrogate, "load", lambda path, problem, device="auto": Toy(path))


def learner(
    folder: Path, fit: Fit | None, monkeypatch: pytest.MonkeyPatch, device: str = "auto", **settings: Any
) -> Learner:
    monkeypatch.setattr(importlib.import_module("neuroscale_couple.training.fitting"), "fit", fit)
    made = make_learner(
        schema.Learning(**{"mode": "online", "min_samples": 100, "first_samples": 100, "hold_out": 0.3, **settings}),
        schema.Training(),
        PROBLEM,
        folder,
        device=device,
    )
    assert made is not None
    made.attach(POINTS)
    return made


def window_of(made: Learner, window: int, current: Surrogate | None = None, iterations: int = 2) -> Surrogate | None:
    rng = np.random.default_rng(window)
    for _ in range(iterations):
        inputs = rng.normal(0.0, 0.02, (N, 3))
        rows = np.arange(N)
        answer = FineAnswer(
            rows, truth(POINTS.parameters["phase"], inputs), np.zeros((N, 3, 3)), np.ones(N, bool), rows, np.zeros(N)
        )
        made.observe(window, inputs, answer)
    return made.propose(window, current)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "models" / "history.jsonl").read_text().splitlines()]


def test_a_run_without_a_model_gets_its_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Calls(0.005)
    made = learner(tmp_path, fit, monkeypatch, seconds=7.0, steps=33)
    first = window_of(made, 0)
    assert isinstance(first, Toy) and first.version == 1 and first.path == tmp_path / "models" / "v001.pt"
    assert first.points is POINTS  # ready for the run's own points
    assert fit.given == [{"seconds": 7.0, "max_steps": 33, "start": None, "expected": None}]
    entry = history(tmp_path)[0]
    assert (entry["window"], entry["decision"], entry["before"]) == (0, "promoted", None)
    assert entry["after"]["surrogate_coarse"]["p50"] == pytest.approx(0.005)


def test_held_out_points_are_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Calls(0.005, 0.004)
    made = learner(tmp_path, fit, monkeypatch)
    window_of(made, 1, window_of(made, 0))
    held = held_out(POINTS.ids, 0.3)
    assert 5 < np.count_nonzero(held) < 30
    of_held = {p.tobytes() for p in POINTS.parameters["phase"][held]}
    for data in fit.data:
        assert len(data.phase) == np.count_nonzero(~held)
        assert not of_held & {p.tobytes() for p in data.phase}
        np.testing.assert_allclose(data.outputs, truth(data.phase[data.structure], data.inputs))
    assert history(tmp_path)[0]["held_out"] == 2 * np.count_nonzero(held)


def test_a_better_surrogate_is_promoted_and_the_old_one_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = Toy(artifact(tmp_path / "model.pt", 0.01))
    current.attach(POINTS)
    made = learner(tmp_path, fit := Calls(0.004), monkeypatch)
    better = window_of(made, 0, current)
    assert isinstance(better, Toy) and better.bias == 0.004
    assert fit.given[0]["start"] == current.path
    assert (tmp_path / "models" / "v000.pt").read_text() == current.path.read_text()
    assert current.points is POINTS  # the running surrogate was not disturbed
    assert history(tmp_path)[0]["before"]["surrogate_coarse"]["p50"] == pytest.approx(0.01)


def test_a_new_run_keeps_its_own_first_surrogate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bias in (0.01, 0.02):
        current = Toy(artifact(tmp_path / "model.pt", bias))
        made = learner(tmp_path, Calls(0.004, 0.003), monkeypatch)
        for window in range(2):
            current = window_of(made, window, current) or current
        assert json.loads((tmp_path / "models" / "v000.pt").read_text())["bias"] == bias


def test_surrogates_are_read_for_the_device_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        neuroscale_couple.surrogate, "load", lambda path, problem, device: asked.append(device) or Toy(path)
    )
    made = learner(tmp_path, Calls(0.004), monkeypatch, device="cpu")
    assert window_of(made, 0) is not None
    assert set(asked) == {"cpu"}


def test_a_worse_candidate_is_rejected_and_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = Toy(artifact(tmp_path / "model.pt", 0.01))
    made = learner(tmp_path, Calls(0.015, 0.004), monkeypatch)
    assert window_of(made, 0, current) is None
    assert history(tmp_path)[0]["reason"] == "surrogate_coarse: p50 would rise from 0.01 to 0.015"
    assert sorted(p.name for p in (tmp_path / "models").glob("*.pt")) == ["v000.pt", "v001_rejected.pt"]
    better = window_of(made, 1, current)
    assert better is not None and better.version == 2


def test_a_useless_first_candidate_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(tmp_path, Calls(0.5), monkeypatch)
    assert window_of(made, 0) is None
    assert history(tmp_path)[0]["reason"] == "no answer of the candidate would be accepted at a tolerance of 0.02"


def test_training_waits_for_enough_new_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Calls(0.005, 0.004)
    made = learner(tmp_path, fit, monkeypatch, min_samples=4 * N, first_samples=4 * N)
    assert [window_of(made, w) is not None for w in range(4)] == [False, True, False, True]
    assert len(fit.data) == 2 and len(fit.data[1]) == 2 * len(fit.data[0])


def test_there_are_no_more_trainings_than_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Calls(0.01, 0.009, 0.008)
    made = learner(tmp_path, fit, monkeypatch, max_trainings=2)
    for window in range(4):
        window_of(made, window)
    assert len(fit.data) == 2


def test_a_training_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Path:
        raise RuntimeError("loss is not finite")

    made = learner(tmp_path, broken, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert window_of(made, 5) is None
    assert caplog.records[0].message == (
        "learning: window 5: training failed (RuntimeError: loss is not finite); "
        "the run goes on with the current surrogate"
    )
    assert history(tmp_path)[0]["decision"] == "failed"


def test_too_few_points_to_hold_out_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = learner(tmp_path, Calls(), monkeypatch, hold_out=0.0)
    with caplog.at_level(logging.WARNING):
        assert window_of(made, 0) is None
    assert "0 held-out ones are too few; change learning.hold_out" in caplog.text


def test_store_mode_stores_and_never_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(tmp_path, Calls(), monkeypatch, mode="store")
    assert window_of(made, 0) is None and not (tmp_path / "models").exists()
    assert len(list((tmp_path / "samples").glob("*window*"))) == 1


def test_off_means_no_learner(tmp_path: Path) -> None:
    assert make_learner(schema.Learning(mode="off"), schema.Training(), PROBLEM, tmp_path) is None


def test_a_resumed_run_goes_on_and_a_new_run_sets_old_samples_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Calls(0.01, 0.009)
    made = learner(tmp_path, fit, monkeypatch, max_trainings=2)
    window_of(made, 0)
    state = {key: np.asarray(value) for key, value in made.get_state().items()}

    resumed = learner(tmp_path, fit, monkeypatch, max_trainings=2)
    resumed.set_state(state)
    assert window_of(resumed, 1) is not None
    assert len(fit.data[1]) == 2 * len(fit.data[0])  # the samples of both
    assert window_of(resumed, 2) is None  # two trainings were made in all

    fresh = learner(tmp_path, Calls(0.01), monkeypatch)
    window_of(fresh, 0)
    assert len(list((tmp_path / "samples_before_000").glob("*window*"))) == 3
    assert len(list((tmp_path / "samples").glob("*window*"))) == 1
    assert (tmp_path / "models" / "v003.pt").exists()  # no artifact of the earlier run is overwritten


def test_where_old_samples_cannot_be_set_aside_nothing_is_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = learner(tmp_path, Calls(0.01), monkeypatch, max_trainings=1)
    window_of(made, 0)
    before = sorted((tmp_path / "samples").iterdir())

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("neuroscale_couple.learning.promoting.set_aside", refuse)
    fresh = learner(tmp_path, None, monkeypatch)
    assert window_of(fresh, 0) is window_of(fresh, 1) is None
    assert sorted((tmp_path / "samples").iterdir()) == before
    assert caplog.text.count("learning stops, the run goes on") == 1
