"""How far the run with the closure is from the run at the viscosity that the closure stands for.

python3 compare.py [picture.png] [record.json]         the record keeps one number for each mesh
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from foam_case import internal_field, relative_l2, times


def main() -> None:
    """Print the relative L2 difference of the velocity at the last time; draw it."""
    last = times(Path("run"))[-1]
    closed, exact = (internal_field(case / last / "U") for case in (Path("run"), Path("reference")))
    cells = round(np.sqrt(len(closed)))
    difference = relative_l2(closed, exact)
    print(f"{cells} x {cells} cells, time {last}: velocity differs by {difference:.3%} (relative L2)")
    for file in sys.argv[1:]:
        if file.endswith(".json"):
            keep(Path(file), cells, float(last), difference)
        else:
            draw(closed.reshape(cells, cells, 3), exact.reshape(cells, cells, 3), file)


def keep(record: Path, cells: int, time: float, difference: float) -> None:
    """Add this mesh to the record, or replace it there."""
    rows = json.loads(record.read_text())["rows"] if record.exists() else []
    rows = [row for row in rows if row["cells"] != cells] + [{"cells": cells, "time": time, "difference": difference}]
    record.write_text(json.dumps({"rows": sorted(rows, key=lambda row: row["cells"])}, indent=1) + "\n")


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
