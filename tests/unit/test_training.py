"""Training: budgets are kept, it goes on from an artifact or a checkpoint, and the card says what was found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ArtifactError, ConfigError
from neuroscale_couple.operator.neuroscale import Sizes
from neuroscale_couple.surrogate import artifact, load
from neuroscale_couple.training import evidence, fit, train_case
from neuroscale_couple.training.dataset import Dataset, load_ranges
from neuroscale_couple.training.fitting import halves, ranges_of, split
from neuroscale_couple.training.model import load_weights, make_model, make_physics, save_weights, set_statistics
from neuroscale_couple.training.trainer import Budget, CoarseTrainer, Table
from tests import small_models

SIZES = Sizes(members=2, width=8)


def training() -> schema.Training:
    return small_models.settings("composite").training


def fresh(data: Dataset) -> tuple[object, Table]:
    problem = small_models.problem("composite")
    model = make_model(make_physics(problem, load_ranges(problem, training())), SIZES, 1)
    table = Table(model, data)
    set_statistics(model, table.scalars)
    return model, table


def test_training_lowers_the_error() -> None:
    known = artifact.read(small_models.artifact("composite"))[1].metrics
    before = fit_for(steps=1)
    assert known["surrogate_coarse.p50"] < 0.5 * before["surrogate_coarse.p50"]


def fit_for(steps: int) -> dict[str, float]:
    from tempfile import mkdtemp

    out = Path(mkdtemp()) / "model.pt"
    fit(small_models.problem("composite"), small_models.data("composite"), training(), out, max_steps=steps)
    return artifact.read(out)[1].metrics


def test_card_describes_the_training(tmp_path: Path) -> None:
    card = artifact.read(small_models.artifact("composite"))[1]
    problem, data = small_models.problem("composite"), small_models.data("composite")
    assert card.problem == problem.signature
    assert card.input_range == [(-0.03, 0.03)] * 3
    assert card.output_floor == problem.output_floor()
    used, held = split(data, training())
    assert card.data_sha256 == used.sha256
    assert card.parent is None
    assert set(card.calibration) == {"surrogate_coarse", "surrogate_fine"}
    assert len(card.calibration["surrogate_coarse"].score) == len(halves(held)[1])
    whiten = np.asarray(card.domain["inputs_cov_inv"])
    offset = used.inputs - np.asarray(card.domain["inputs_mean"])
    assert np.sqrt(np.einsum("ni,ij,nj->n", offset, whiten, offset)).max() <= card.domain["inputs_max_distance"]
    low, high = card.domain["phase_mean_range"]
    assert 0.0 < low < high < 0.5


def test_held_out_structures_are_never_trained_on() -> None:
    used, held = split(small_models.data("composite"), training())
    assert len(used.phase) + len(held.phase) == 24
    same = (used.phase[:, None] == held.phase[None]).all(axis=(2, 3))
    assert not same.any()


def test_training_goes_on_from_an_artifact(tmp_path: Path) -> None:
    first = small_models.artifact("composite")
    out = tmp_path / "next.pt"
    problem = small_models.problem("composite")
    data = small_models.data("composite")
    small = np.flatnonzero(np.abs(data.inputs).max(axis=1) < 0.012)
    narrow = Dataset(data.phase, data.structure[small], data.inputs[small], data.outputs[small], data.tangent[small])
    fit(problem, narrow, training(), out, max_steps=3, start=first)
    card, parent = artifact.read(out)[1], artifact.read(first)
    assert card.parent == parent[2]
    assert card.input_range == parent[1].input_range  # the consistency term keeps the old range known
    assert card.metrics["surrogate_coarse.p50"] < 2.0 * parent[1].metrics["surrogate_coarse.p50"]
    load(out, problem, "cpu")


def test_a_start_without_weights_is_refused(tmp_path: Path) -> None:
    import shutil

    shutil.copyfile(small_models.artifact("composite"), tmp_path / "model.pt")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: the weights cannot be read .* train from nothing"):
        fit(
            small_models.problem("composite"), small_models.data("composite"), training(), tmp_path / "out.pt",
            max_steps=1, start=tmp_path / "model.pt",
        )  # fmt: skip
    assert not (tmp_path / "out.pt").exists()


def test_the_budget_in_seconds_ends_a_training() -> None:
    budget = Budget(10**9, 0.05)
    assert budget.fraction(5) < 1.0
    time.sleep(0.06)
    assert budget.fraction(5) == 1.0
    assert Budget(10).fraction(5) == 0.5


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    data = small_models.data("composite")
    model, table = fresh(data)
    checkpoint = tmp_path / "training"
    trainer = CoarseTrainer(model, table, 1, 1e-3, checkpoint)  # type: ignore[arg-type]
    trainer.run(Budget(5))
    trainer._save()
    other, table = fresh(data)
    resumed = CoarseTrainer(other, table, 1, 1e-3, checkpoint)  # type: ignore[arg-type]
    resumed.run(Budget(5))
    assert resumed.step == 5
    for one, two in zip(model.parameters(), other.parameters(), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(one, two)
    resumed.run(Budget(6))
    assert resumed.step == 6


def test_a_checkpoint_of_another_training_is_left_alone(tmp_path: Path) -> None:
    """The same number of micro structures, but other loads or another material: it must not be taken for a start."""
    data, checkpoint = small_models.data("composite"), tmp_path / "training"
    for identity, steps in (("steel", 5), ("brass", 2)):
        model, table = fresh(data)
        before = {name: p.clone() for name, p in model.named_parameters()}  # type: ignore[attr-defined]
        trainer = CoarseTrainer(model, table, 1, 1e-3, checkpoint, identity)  # type: ignore[arg-type]
        trainer._resume()
        assert trainer.step == 0
        for name, p in model.named_parameters():  # type: ignore[attr-defined]
            assert torch.equal(p, before[name])
        trainer.run(Budget(steps))
        assert trainer.step == steps
        trainer._save()


def test_answers_that_are_not_finite_can_be_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that diverged somewhere is read back, and accepts nothing there."""
    data = small_models.data("composite")
    answers = evidence.answers

    def broken(*given: Any) -> tuple[Any, Any]:
        outputs, score = answers(*given)
        outputs[0], score[1] = np.nan, np.nan
        return outputs, score

    monkeypatch.setattr(evidence, "answers", broken)
    model, _ = fresh(data)
    calibration, metrics = evidence.calibrate(model, data, 1.0, 20, np.random.default_rng(1))  # type: ignore[arg-type]
    assert metrics["surrogate_coarse.max"] == evidence.HUGE
    for known in calibration.values():
        again = type(known).model_validate_json(known.model_dump_json())
        assert again.error[0] == evidence.HUGE
        assert np.isfinite(again.score).all()


def test_a_damaged_checkpoint_is_left_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "training"
    checkpoint.write_bytes(b"torn")
    model, table = fresh(small_models.data("composite"))
    trainer = CoarseTrainer(model, table, 1, 1e-3, checkpoint)  # type: ignore[arg-type]
    trainer.run(Budget(2))
    assert trainer.step == 2


def test_a_frozen_pyramid_keeps_its_weights() -> None:
    model, table = fresh(small_models.data("composite"))
    table.freeze_pyramid(model)  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in model.pyramid.state_dict().items()}  # type: ignore[attr-defined]
    CoarseTrainer(model, table, 1, 1e-2).run(Budget(3))  # type: ignore[arg-type]
    for name, value in model.pyramid.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, before[name], rtol=0.0, atol=0.0)


def test_weights_survive_the_disk(tmp_path: Path) -> None:
    model, _ = fresh(small_models.data("composite"))
    save_weights(model, SIZES, tmp_path / "w.safetensors")  # type: ignore[arg-type]
    problem = small_models.problem("composite")
    again, sizes = load_weights(tmp_path / "w.safetensors", problem, ())
    assert sizes == SIZES
    assert again.load_scale == model.load_scale  # type: ignore[attr-defined]
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])  # type: ignore[attr-defined]


def test_too_few_structures_are_refused() -> None:
    few = small_models.data("composite").take_structures(np.arange(5))
    with pytest.raises(ValueError, match="5 micro structures are too few to train on, at least 8 are needed"):
        split(few, training())


def test_ranges_in_a_run_follow_the_loads_met_so_far() -> None:
    problem, data = small_models.problem("composite"), small_models.data("composite")
    small = Dataset(data.phase, data.structure, 0.1 * np.abs(data.inputs), data.outputs, data.tangent)
    ranges = ranges_of(problem, training(), small, offline=False)
    assert (ranges[:, 1] >= small.inputs.max(axis=0)).all()
    assert (ranges[:, 1] < 2.0 * small.inputs.max(axis=0)).all()
    np.testing.assert_allclose(ranges_of(problem, training(), small, offline=True), [[-0.03, 0.03]] * 3)


def test_one_call_trains_a_case_from_nothing(tmp_path: Path) -> None:
    small = small_models.settings("conduction", structures=12)
    small = small.model_copy(update={"training": small.training.model_copy(update={"epochs": 2})})
    path = train_case(small, tmp_path)
    assert path == tmp_path / "model.pt"
    assert load(path, small_models.problem("conduction"), "cpu").card.problem["name"] == "conduction"
    with pytest.raises(ConfigError, match=r"neuroscale\.model names no file"):
        train_case(small.model_copy(update={"model": None}), tmp_path)


def test_the_function_is_not_hidden_by_a_module_of_its_name() -> None:
    from neuroscale_couple import training as package

    fit_for(steps=1)
    assert callable(package.fit)
