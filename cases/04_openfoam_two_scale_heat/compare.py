"""The heat flow of the run beside that of the finite elements of case 02; and a picture of the plate.

python3 compare.py [picture.png] [record.json] [macro.npz]        after run.sh

macro.npz: of the finite elements, instead of what expected.toml keeps of them; README.md has the command that makes it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
from foam_case import internal_field, times

HEAT_CAPACITY = 2.0e6  # J/(m3 K), 1/factor of constant/fvOptions


def heat_flow(log: Path) -> list[float]:
    """Heat that enters through the hot edge at the end of each time step, W per m of thickness."""
    steps = re.split(r"^Time = ", log.read_text(), flags=re.MULTILINE)[1:]
    return [HEAT_CAPACITY * float(re.findall(r"hot ([-+\d.e]+)", step)[-1]) for step in steps]


def main() -> int:
    """Print the heat flows; 1 if one differs by more than expected.toml allows."""
    expected = tomllib.loads(Path("expected.toml").read_text())["finite_elements"]
    worst, flow = 0.0, heat_flow(Path("log.laplacianFoam"))
    elements = expected["heat_flow"]
    for file in sys.argv[1:]:
        if file.endswith(".npz"):
            elements = np.load(file)["heat_flow"].ravel().tolist()
    for step, (ours, theirs) in enumerate(zip(flow, elements, strict=True)):
        worst = max(worst, abs(ours / theirs - 1))
        print(
            f"step {step + 1}: heat flow {ours:9.3f} W/m, finite elements {theirs:9.3f} W/m, {ours / theirs - 1:+.3%}"
        )
    print(f"largest difference {worst:.3%} (expected at most {expected['largest_difference']:.1%} on 200 x 100 cells)")
    for file in sys.argv[1:]:
        if file.endswith(".json"):
            record = {"ours": flow, "finite_elements": elements, "largest_difference": worst}
            Path(file).write_text(json.dumps(record, indent=1) + "\n")
        elif not file.endswith(".npz"):
            draw(file)
    return int(worst > expected["largest_difference"])


def draw(picture: str) -> None:
    """Temperature, who answered, estimated error and micro structure of the cells at the last time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = times(Path())[-1]
    x, y = (internal_field(Path("0", name)) for name in ("Cx", "Cy"))
    names = {"temperature, K": Path(last, "T"), "estimated error": Path(last, "heat:error")}
    names |= {"answered by fine head": Path(last, "heat:source"), "micro structure": Path("0", "structure")}
    along = len(np.unique(np.round(x, 9)))
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for at, (title, file) in zip(axes.ravel(), names.items(), strict=True):
        grids = (values.reshape(-1, along) for values in (x, y, internal_field(file)))
        figure.colorbar(at.pcolormesh(*grids, shading="nearest", rasterized=True), ax=at)
        at.set_title(f"{title} at {last} s" if file.parent.name == last else title)
        at.set_aspect("equal")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
