"""The user's own micro structures, read from PNG or .npy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.config.schema import Microstructure
from neuroscale_couple.errors import MicrostructureError
from neuroscale_couple.values import I64, U8


def load_images(settings: Microstructure, ids: I64, grid: int, folder: Path) -> U8:
    """Micro structures of the points `ids` from `settings.path`: uint8 [n, grid, grid].

    One image [y, x] serves all points; of a stack [point, y, x] point i takes image i. An image must hold exactly two
    values; the larger (brighter) one is the inclusion.

    Raises: MicrostructureError naming the file and what is wrong with it.
    """
    if settings.path is None:
        raise MicrostructureError("microstructure.path is missing; kind: image needs a PNG or .npy file")
    path = folder / settings.path
    if not path.is_file():
        raise MicrostructureError(f"microstructure.path: there is no file {path}")
    images = _read(path)
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3 or images.shape[1:] != (grid, grid):
        raise MicrostructureError(
            f"{path}: shape {tuple(images.shape)}, expected [{grid}, {grid}] or [point, {grid}, {grid}];"
            " resample the image or set problem.grid to its size"
        )
    stack = len(images) > 1
    last = int(ids.max(initial=0))
    if stack and last >= len(images):
        raise MicrostructureError(
            f"{path}: {len(images)} images, but there is a point with id {last}; give one image per point"
        )
    phase = _two_phase(images, path)
    return phase[ids] if stack else np.repeat(phase, len(ids), axis=0)


def _read(path: Path) -> npt.NDArray[Any]:
    if path.suffix.lower() == ".npy":
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except ValueError as cause:
            raise MicrostructureError(f"{path}: cannot be read as .npy ({cause})") from cause
    from matplotlib import image  # only a PNG needs it

    try:
        pixels = np.asarray(image.imread(path))
    except (OSError, SyntaxError, ValueError) as cause:
        raise MicrostructureError(f"{path}: cannot be read as an image ({cause}); use PNG or .npy") from cause
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3].mean(axis=2)
    return pixels


def _two_phase(images: npt.NDArray[Any], path: Path) -> U8:
    flat = images.reshape(len(images), -1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        n, pixel = (int(i) for i in np.argwhere(~np.isfinite(flat))[0])
        y, x = divmod(pixel, images.shape[2])
        raise MicrostructureError(f"{path}: image {n}, pixel [{y}, {x}] is not finite ({flat[n, pixel]})")
    low, high = flat.min(), flat.max()
    wrong = np.flatnonzero(((flat != low) & (flat != high)).any(axis=1))
    if len(wrong):
        values = np.unique(flat[wrong[0]])
        shown = ", ".join(f"{v:g}" for v in values[:6]) + (", ..." if len(values) > 6 else "")
        raise MicrostructureError(
            f"{path}: image {wrong[0]} is not two-phase: it holds {len(values)} values ({shown});"
            " threshold it to two values"
        )
    inclusion = flat == high if low != high else flat != 0
    return np.asarray(inclusion.reshape(images.shape), dtype=np.uint8)
