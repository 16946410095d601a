"""How far the run with the closure is from the run at the viscosity that the closure stands for.

python3 compare.py [picture.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from foam_case import internal_field, relative_l2, times


def main() -> None:
    """Print the relative L2 difference of the velocity at the last time; draw it."""
    last = times(Path("run"))[-1]
    closed, exact = (internal_field(case / last / "U") for case in (Path("run"), Path("reference")))
    cells = round(np.sqrt(len(closed)))
    print(f"{cells} x {cells} cells, time {last}: velocity differs by {relative_l2(closed, exact):.3%} (relative L2)")
    if len(sys.argv) > 1:
        draw(closed.reshape(cells, cells, 3), exact.reshape(cells, cells, 3), sys.argv[1])


def draw(closed: np.ndarray, exact: np.ndarray, picture: str) -> None:
    """Speed and streamlines of the run, and the difference to the exact viscosity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    centres = (np.arange(len(closed)) + 0.5) / len(closed)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    shown = left.pcolormesh(centres, centres, np.linalg.norm(closed, axis=2), shading="nearest")
    left.streamplot(centres, centres, closed[:, :, 0], closed[:, :, 1], color="w", linewidth=0.6, density=1.2)
    left.set_title("speed with the closure, m/s")
    figure.colorbar(shown, ax=left)
    gap = right.pcolormesh(centres, centres, np.linalg.norm(closed - exact, axis=2), shading="nearest")
    right.set_title("difference to the run at that viscosity, m/s")
    figure.colorbar(gap, ax=right)
    for axes in (left, right):
        axes.set_aspect("equal")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
