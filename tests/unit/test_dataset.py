"""Training data: reproducible, resumable, and refused when they do not fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.training.dataset import Dataset, generate_data, join, load_paths, load_ranges
from tests import small_models


def test_paths_stay_in_the_box_and_rise() -> None:
    problem = small_models.problem("conduction")
    ranges = np.array([[-1.0, 2.0], [-3.0, 0.5], [250.0, 350.0]])
    states = load_paths(ranges, problem, 8, np.random.default_rng(1), 200)
    assert states.shape == (8, 200, 3)
    assert (states >= ranges[:, 0] - 1e-12).all()
    assert (states <= ranges[:, 1] + 1e-12).all()
    size = np.linalg.norm(states[:, :, :2], axis=2)
    for path in (size[:4], size[4:]):
        assert (np.diff(path, axis=0) >= 0.0).all()
    np.testing.assert_array_equal(states[0, :, 2], states[3, :, 2])  # a path keeps its temperature
    assert np.abs(states[3, :, :2] / np.where(states[3, :, :2] < 0, ranges[:2, 0], ranges[:2, 1])).max() > 0.9


def test_data_satisfy_the_physics() -> None:
    data, problem = small_models.data("composite"), small_models.problem("composite")
    assert len(data) == 24 * 4
    work = problem.effective_energy(data.inputs, data.outputs)
    assert (work > 0.0).all()
    np.testing.assert_allclose(data.tangent, np.swapaxes(data.tangent, 1, 2), rtol=1e-3, atol=1e-3 * data.tangent.max())


def test_generation_is_resumed_and_reproducible(tmp_path: Path) -> None:
    config, problem = small_models.settings("conduction", structures=103), small_models.problem("conduction")
    first = generate_data(config, problem, tmp_path)
    shards = sorted(tmp_path.rglob("shard_*.safetensors"))
    assert len(shards) == 2
    kept = shards[0].stat().st_mtime_ns
    shards[1].write_bytes(shards[1].read_bytes()[:200])
    second = generate_data(config, problem, tmp_path)
    assert shards[0].stat().st_mtime_ns == kept
    assert first.sha256 == second.sha256
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_larger_data_set_fills_the_last_shard_of_a_smaller_one(tmp_path: Path) -> None:
    problem = small_models.problem("conduction", 8)
    small, large = (small_models.settings("conduction", 8, structures=n) for n in (101, 103))
    generate_data(small, problem, tmp_path)
    grown = generate_data(large, problem, tmp_path)
    assert len(grown.phase) == 103
    at_once = generate_data(large, problem, tmp_path / "new")
    assert grown.sha256 == at_once.sha256
    assert len(generate_data(small, problem, tmp_path).phase) == 101


def test_a_changed_image_makes_other_data(tmp_path: Path) -> None:
    problem = small_models.problem("conduction", 8)
    image = {"kind": "image", "path": "cell.npy"}
    config = small_models.settings("conduction", 8, structures=4)
    config = config.model_copy(update={"microstructure": schema.Microstructure(**image)})
    means = []
    for columns in (2, 5):
        cell = np.zeros((8, 8), dtype=np.uint8)
        cell[:, :columns] = 1
        np.save(tmp_path / "cell.npy", cell)
        means.append(generate_data(config, problem, tmp_path).phase.mean())
    assert means == [2 / 8, 5 / 8]


def test_other_settings_make_other_data(tmp_path: Path) -> None:
    problem = small_models.problem("conduction")
    config = small_models.settings("conduction", structures=5)
    generate_data(config, problem, tmp_path)
    wider = {**small_models.RANGES["conduction"], "gradient.x": (-2.0, 2.0)}
    training = config.training.model_copy(update={"load_range": wider})
    generate_data(config.model_copy(update={"training": training}), problem, tmp_path)
    assert len(list((tmp_path / "training_data").iterdir())) == 2


def test_ranges_name_the_column_that_is_wrong() -> None:
    problem, training = small_models.problem("composite"), small_models.settings("composite").training
    missing = {k: v for k, v in training.load_range.items() if k != "strain.yy"}
    with pytest.raises(ConfigError, match=r"column 'strain\.yy' of composite has no range"):
        load_ranges(problem, training.model_copy(update={"load_range": missing}))
    with pytest.raises(ConfigError, match=r"unknown column 'strain\.zz'"):
        load_ranges(problem, training.model_copy(update={"load_range": {**missing, "strain.zz": (0.0, 1.0)}}))
    with pytest.raises(ConfigError, match=r"strain\.yy: got \[1, -1\], expected low < high"):
        load_ranges(problem, training.model_copy(update={"load_range": {**missing, "strain.yy": (1.0, -1.0)}}))


def test_structures_are_renumbered() -> None:
    data = small_models.data("composite")
    part = data.take_structures(np.array([7, 3]))
    assert len(part) == 8
    np.testing.assert_array_equal(part.phase[0], data.phase[7])
    np.testing.assert_array_equal(part.inputs[part.structure == 0], data.inputs[data.structure == 7])
    both = join([part, part])
    assert len(both) == 16
    assert both.structure.max() == 3


def test_arrays_must_fit_together() -> None:
    data = small_models.data("composite")
    with pytest.raises(ValueError, match="data set: inputs has 1 rows, structure has 96"):
        Dataset(data.phase, data.structure, data.inputs[:1], data.outputs, data.tangent)
    with pytest.raises(ValueError, match=r"structure indices lie outside 0 \.\. 1"):
        Dataset(data.phase[:2], data.structure, data.inputs, data.outputs, data.tangent)
