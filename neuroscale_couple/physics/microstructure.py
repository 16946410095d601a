"""Periodic two-phase micro structures: generators and the user's own images.

A structure depends on (seed, global point id) alone: random numbers are hashed from seed, id, stream and index, so
any subset of points, in any order and on any rank, gets the same images. Nothing loops over points.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from neuroscale_couple.config.schema import Microstructure
from neuroscale_couple.errors import MicrostructureError
from neuroscale_couple.physics.images import load_images
from neuroscale_couple.values import F64, I64, U8

_CHUNK = 2048
_FRACTION, _SIZE, _X, _Y, _ORDER = range(5)
_FIBRE_GAP = 1.04
_FIBRE_TRIES = 6000
_FIBRE_SHARE = 0.5


def generate(settings: Microstructure, ids: I64, grid: int, folder: Path) -> U8:
    """Micro structures of the points `ids`: uint8 [n, grid, grid], 1 is the inclusion.

    ids: int64 [n] global point ids; folder: where a relative `path` of `kind: image` starts.
    The share of inclusion pixels is drawn per point from `volume_fraction` and met to half a pixel (`voronoi`: to
    half a grain).

    Raises: MicrostructureError if the settings cannot be met or an image cannot be used.
    """
    if settings.kind == "image":
        return load_images(settings, ids, grid, folder)
    if settings.kind == "fibres" and settings.volume_fraction[1] > _FIBRE_SHARE:
        raise MicrostructureError(
            f"microstructure.volume_fraction: fibres that do not overlap cannot fill {settings.volume_fraction[1]:g}"
            f" of the cell (limit {_FIBRE_SHARE:g}); lower it or use kind: blobs"
        )
    make = _GENERATORS[settings.kind]
    phase = np.empty((len(ids), grid, grid), dtype=np.uint8)
    for start in range(0, len(ids), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        phase[chunk] = make(settings, np.asarray(ids[chunk], dtype=np.int64), grid)
    return phase


def _uniform(seed: int, ids: I64, stream: int, index: npt.NDArray[np.int64] | int) -> F64:
    """Uniform numbers in [0, 1) hashed from (seed, id, stream, index); shape of ids broadcast with index.

    Source: splitmix64 (Steele, Lea & Flood 2014), applied to each word in turn.
    """
    x = np.zeros(np.broadcast_shapes(ids.shape, np.shape(index)), dtype=np.uint64)
    for word in (np.int64(seed), ids, np.int64(stream), np.asarray(index, dtype=np.int64)):
        x = x ^ np.asarray(word).astype(np.uint64)
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return np.asarray((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _between(limits: tuple[float, float], u: F64) -> F64:
    return limits[0] + (limits[1] - limits[0]) * u


def _draw(settings: Microstructure, ids: I64) -> tuple[F64, F64]:
    """Inclusion share and diameter of each point."""
    share = _between(settings.volume_fraction, _uniform(settings.seed, ids, _FRACTION, 0))
    return share, _between(settings.size, _uniform(settings.seed, ids, _SIZE, 0))


def _lowest(level: F64, share: F64) -> U8:
    """1 at the share of pixels [n, y, x] with the lowest level."""
    n, ny, nx = level.shape
    wanted = np.rint(share * (ny * nx)).astype(np.int64)
    order = np.argsort(level.reshape(n, -1), axis=1, kind="stable")
    phase = np.zeros((n, ny * nx), dtype=np.uint8)
    np.put_along_axis(phase, order, (np.arange(ny * nx) < wanted[:, None]).astype(np.uint8), axis=1)
    return phase.reshape(n, ny, nx)


def _periodic(difference: F64) -> F64:
    return difference - np.rint(difference)


def _nearest(x: F64, y: F64, count: I64, grid: int) -> tuple[F64, I64]:
    """Squared periodic distance to the nearest of the first `count` seeds [n, k], and its index, [n, y, x]."""
    pixel = (np.arange(grid) + 0.5) / grid
    best = np.full((len(x), grid, grid), np.inf)
    owner = np.zeros(best.shape, dtype=np.int64)
    for k in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > k)
        dx = _periodic(pixel - x[rows, k, None]) ** 2
        dy = _periodic(pixel - y[rows, k, None]) ** 2
        distance = dy[:, :, None] + dx[:, None, :]
        closer = distance < best[rows]
        best[rows] = np.where(closer, distance, best[rows])
        owner[rows] = np.where(closer, k, owner[rows])
    return best, owner


def _fibres(settings: Microstructure, ids: I64, grid: int) -> U8:
    """Equal discs that do not overlap, placed by random sequential addition."""
    share, size = _draw(settings, ids)
    count = np.maximum(np.rint(share / (0.25 * np.pi * size**2)), 1).astype(np.int64)
    gap = _FIBRE_GAP * np.sqrt(share / (0.25 * np.pi * count))
    x = np.full((len(ids), int(count.max(initial=1))), np.nan)
    y = x.copy()
    placed = np.zeros(len(ids), dtype=np.int64)
    for draw in range(_FIBRE_TRIES):
        rows = np.flatnonzero(placed < count)
        if not len(rows):
            break
        u, v = _uniform(settings.seed, ids[rows], _X, draw), _uniform(settings.seed, ids[rows], _Y, draw)
        distance = _periodic(x[rows] - u[:, None]) ** 2 + _periodic(y[rows] - v[:, None]) ** 2
        free = ~np.any(distance < gap[rows, None] ** 2, axis=1)  # NaN (not placed yet) never counts
        hit = rows[free]
        x[hit, placed[hit]], y[hit, placed[hit]] = u[free], v[free]
        placed[hit] += 1
    # a point that is still short of fibres keeps its share: the threshold makes its fibres a little larger
    return _lowest(_nearest(x, y, placed, grid)[0], share)


def _blobs(settings: Microstructure, ids: I64, grid: int) -> U8:
    """A periodic random field, smoothed to the wanted size and cut at the wanted share."""
    share, size = _draw(settings, ids)
    noise = _uniform(settings.seed, ids[:, None], _X, np.arange(grid * grid)).reshape(-1, grid, grid) - 0.5
    ky, kx = np.fft.fftfreq(grid)[:, None] * grid, np.fft.rfftfreq(grid)[None, :] * grid
    width = 0.25 * size[:, None, None]
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * np.exp(-2.0 * np.pi**2 * width**2 * (kx**2 + ky**2)), s=(grid, grid))
    return _lowest(smooth, share)


def _voronoi(settings: Microstructure, ids: I64, grid: int) -> U8:
    """Periodic Voronoi grains; grains are taken in random order until the share is met as well as they allow."""
    share, size = _draw(settings, ids)
    count = np.maximum(np.rint(1.0 / (0.25 * np.pi * size**2)), 2).astype(np.int64)
    index = np.arange(int(count.max(initial=2)))
    x, y, coin = (_uniform(settings.seed, ids[:, None], stream, index) for stream in (_X, _Y, _ORDER))
    owner = _nearest(x, y, count, grid)[1]
    n = len(ids)
    label = owner.reshape(n, -1) + index.size * np.arange(n)[:, None]
    area = np.bincount(label.ravel(), minlength=n * index.size).reshape(n, index.size) / grid**2
    order = np.argsort(np.where(index < count[:, None], coin, 2.0), axis=1, kind="stable")
    filled = np.concatenate([np.zeros((n, 1)), np.cumsum(np.take_along_axis(area, order, axis=1), axis=1)], axis=1)
    taken = np.argmin(np.abs(filled - share[:, None]), axis=1)
    chosen = np.zeros((n, index.size), dtype=np.uint8)
    np.put_along_axis(chosen, order, (index < taken[:, None]).astype(np.uint8), axis=1)
    return np.asarray(np.take_along_axis(chosen, owner.reshape(n, -1), axis=1).reshape(n, grid, grid))


_GENERATORS: dict[str, Callable[[Microstructure, I64, int], U8]] = {
    "fibres": _fibres,
    "blobs": _blobs,
    "voronoi": _voronoi,
}
