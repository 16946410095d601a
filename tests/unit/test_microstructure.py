"""Generators: the same image for the same point, the wanted share, no seam at the border; and images of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from neuroscale_couple.assemble import with_microstructures
from neuroscale_couple.config.load import load
from neuroscale_couple.config.schema import Microstructure
from neuroscale_couple.errors import MicrostructureError
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import Points

KINDS: list[Any] = ["fibres", "blobs", "voronoi"]
HERE = Path()


@pytest.mark.parametrize("kind", KINDS)
def test_a_structure_depends_on_seed_and_global_id_alone(kind: Any) -> None:
    settings = Microstructure(kind=kind, seed=5)
    all_of_them = generate(settings, np.arange(40), 24, HERE)
    some = np.array([31, 4, 17])
    assert np.array_equal(generate(settings, some, 24, HERE), all_of_them[some])
    assert len(np.unique(all_of_them.reshape(40, -1), axis=0)) == 40
    other = generate(Microstructure(kind=kind, seed=6), np.arange(40), 24, HERE)
    assert not np.array_equal(other, all_of_them)
    assert all_of_them.dtype == np.uint8


@pytest.mark.parametrize(("kind", "slack"), [("fibres", 0.5 / 32**2), ("blobs", 0.5 / 32**2), ("voronoi", 0.06)])
def test_the_inclusion_share_stays_in_its_range_and_fills_it(kind: Any, slack: float) -> None:
    settings = Microstructure(kind=kind, volume_fraction=(0.1, 0.4))
    share = generate(settings, np.arange(300), 32, HERE).mean(axis=(1, 2))
    assert share.min() >= 0.1 - slack and share.max() <= 0.4 + slack
    assert share.min() < 0.12 and share.max() > 0.38
    assert abs(share.mean() - 0.25) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_seam_at_the_border(kind: Any) -> None:
    """Neighbours across the border differ as often as neighbours inside."""
    phase = generate(Microstructure(kind=kind), np.arange(600), 32, HERE).astype(np.int64)
    for axis in (1, 2):
        change = (phase != np.roll(phase, 1, axis=axis)).mean(axis=(0, 3 - axis))
        inside = change[1:]
        assert abs(change[0] - inside.mean()) < 4.0 * inside.std(ddof=1), (axis, change[0], inside.mean())


def test_fibres_do_not_overlap_and_have_the_wanted_diameter() -> None:
    from scipy import ndimage

    settings = Microstructure(kind="fibres", volume_fraction=(0.2, 0.2), size=(0.2, 0.2))
    phase = generate(settings, np.arange(5), 96, HERE)
    for one in phase:
        tiled = np.tile(one, (2, 2))
        label, _ = ndimage.label(tiled)
        whole = np.unique(label)[1:]
        border = np.unique(np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]]))
        area = np.array([np.sum(label == k) for k in whole if k not in border])
        count = round(0.2 / (0.25 * np.pi * 0.2**2))
        np.testing.assert_allclose(area / 96**2, 0.2 / count, rtol=0.05)


def test_fibres_that_cannot_fit_are_refused() -> None:
    settings = Microstructure(kind="fibres", volume_fraction=(0.2, 0.7))
    with pytest.raises(
        MicrostructureError, match=r"cannot fill 0\.7 of the cell \(limit 0\.5\); lower it or use kind: blo"
    ):
        generate(settings, np.arange(3), 16, HERE)


def write(folder: Path, array: Any) -> Microstructure:
    np.save(folder / "own.npy", array)
    return Microstructure(kind="image", path="own.npy")


def stack(n: int = 3, grid: int = 8) -> Any:
    return (np.random.default_rng(0).random((n, grid, grid)) < 0.4).astype(np.float64)


def test_a_stack_gives_point_i_image_i_and_one_image_serves_all(tmp_path: Path) -> None:
    images = stack()
    ids = np.array([2, 0])
    assert np.array_equal(generate(write(tmp_path, images), ids, 8, tmp_path), images[ids])
    one = generate(write(tmp_path, 255 * images[1]), ids, 8, tmp_path)
    assert np.array_equal(one, np.stack([images[1], images[1]]))


def test_a_png_is_read_and_its_bright_phase_is_the_inclusion(tmp_path: Path) -> None:
    picture = stack()[0]
    image.imsave(tmp_path / "own.png", picture, cmap="gray")
    settings = Microstructure(kind="image", path="own.png")
    assert np.array_equal(generate(settings, np.arange(1), 8, tmp_path)[0], picture)


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    images, ids = stack(), np.arange(3)
    grey = images.copy()
    grey[1, 0, 0] = 0.25
    with pytest.raises(
        MicrostructureError, match=r"own\.npy: image 1 is not two-phase: it holds 3 values \(0, 0\.25, 1\)"
    ):
        generate(write(tmp_path, grey), ids, 8, tmp_path)
    hole = images.copy()
    hole[2, 3, 4] = np.inf
    with pytest.raises(MicrostructureError, match=r"own\.npy: image 2, pixel \[3, 4\] is not finite \(inf\)"):
        generate(write(tmp_path, hole), ids, 8, tmp_path)
    with pytest.raises(
        MicrostructureError, match=r"shape \(3, 8, 8\), expected \[16, 16\].*set problem\.grid to its size"
    ):
        generate(write(tmp_path, images), ids, 16, tmp_path)
    with pytest.raises(
        MicrostructureError, match=r"3 images, but there is a point with id 3; give one image per point"
    ):
        generate(write(tmp_path, images), np.arange(4), 8, tmp_path)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    with pytest.raises(MicrostructureError, match=r"torn\.png: cannot be read as an image"):
        generate(Microstructure(kind="image", path="torn.png"), ids, 8, tmp_path)
    (tmp_path / "torn.npy").write_bytes(b"no array")
    with pytest.raises(MicrostructureError, match=r"torn\.npy: cannot be read as \.npy"):
        generate(Microstructure(kind="image", path="torn.npy"), ids, 8, tmp_path)
    with pytest.raises(MicrostructureError, match=r"there is no file .*missing\.png"):
        generate(Microstructure(kind="image", path="missing.png"), ids, 8, tmp_path)
    with pytest.raises(MicrostructureError, match=r"microstructure\.path is missing; kind: image needs a PNG or \.npy"):
        generate(Microstructure(kind="image"), ids, 8, tmp_path)


def test_points_of_one_structure_get_one_image(tmp_path: Path) -> None:
    """The macro solver may say which micro structure a point has, e.g. that of the cell next to a boundary face."""
    config = tmp_path / "neuroscale.yaml"
    config.write_text("neuroscale:\n  problem: {name: conduction, grid: 8}\n  microstructure: {seed: 3}\n")
    loaded = load(config)
    ids = np.array([4, 5, 90])
    points = Points(ids, np.zeros((3, 2)), np.ones(3), {"structure": np.array([7, 4, 4])})
    phase = with_microstructures(loaded, make_problem(loaded.config.neuroscale.problem), points).parameters["phase"]
    settings = loaded.config.neuroscale.microstructure
    assert np.array_equal(phase, generate(settings, np.array([7, 4, 4]), 8, tmp_path))
    assert not np.array_equal(phase, generate(settings, ids, 8, tmp_path))
