"""What plug-in and transport cost an OpenFOAM solver: a time step with a closure that does nothing, and without.

    python benchmarks/openfoam.py [--quick] [--json FILE]       needs OpenFOAM and what adapters/openfoam/build makes

The model is a no-op (zeros, kept ready), so what is left is the plug-in, the socket and the loop around the model.
Steps are timed from outside, by the solver's own lines; the two runs take turns, and the median step counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CAVITY = ROOT / "cases" / "05_openfoam_cavity_closure"
NOOP = '''"""A fine solver that does nothing."""
import numpy as np
from neuroscale_couple.values import FineAnswer
from stress import ExactStress


class Nothing(ExactStress):
    """Zeros, kept ready."""

    def attach(self, points):
        n = len(points)
        outputs, tangent, converged = np.zeros((n, 4)), np.zeros((n, 4, 4)), np.ones(n, dtype=bool)
        self.answer = FineAnswer(np.arange(n), outputs, tangent, converged, np.zeros(n, dtype=np.int64), np.zeros(n))

    def solve(self, rows, inputs, guess=None):
        return self.answer
'''


def environment(case: Path) -> dict[str, str]:
    """One thread; the plug-in and the service of this environment."""
    service = Path(sys.executable).parent / "neuroscale-couple"
    mine = {**os.environ, "OMP_NUM_THREADS": "1", "NEUROSCALE_COUPLE": str(service)}
    mine["LD_LIBRARY_PATH"] = f"{ROOT / 'build' / 'openfoam'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    mine["PYTHONPATH"] = str(case)
    if "WM_PROJECT_DIR" not in mine and Path("/usr/share/openfoam/etc").is_dir():
        mine["WM_PROJECT_DIR"] = "/usr/share/openfoam"
    return mine


def prepare(folder: Path, cells: int, steps: int, closed: bool) -> Path:
    """The cavity of case 05 with cells x cells cells and one outer corrector."""
    case = folder / ("closed" if closed else "open")
    case.mkdir(parents=True)
    for name in ("0", "constant", "system", "neuroscale.yaml", "stress.py"):
        subprocess.run(["cp", "-r", str(CAVITY / name), str(case)], check=True)
    (case / "noop.py").write_text(NOOP)
    step = 0.16 / cells
    change(case / "system/blockMeshDict", r"^cells .*", f"cells {cells};")
    change(case / "system/controlDict", r"^deltaT .*", f"deltaT {step};")
    change(case / "system/controlDict", r"^endTime .*", f"endTime {steps * step};")
    change(case / "system/controlDict", r"^writeInterval .*", "writeInterval 1000000;")
    change(case / "system/controlDict", r"^functions[\s\S]*", "")
    change(case / "system/fvSolution", r"nOuterCorrectors .*", "nOuterCorrectors 1;")
    change(case / "neuroscale.yaml", "stress:ExactStress", "noop:Nothing")
    change(case / "neuroscale.yaml", "output: {", "output: {checkpoint: false, ")
    change(case / "constant/fvOptions", "every;", "once;")
    if not closed:
        (case / "constant/fvOptions").unlink()
        change(case / "system/controlDict", r"^libs .*", "")
    subprocess.run(["blockMesh"], cwd=case, env=environment(case), check=True, capture_output=True)
    return case


def change(file: Path, pattern: str, new: str) -> None:
    """Replace what a pattern matches, which must be there."""
    text, found = re.subn(pattern, lambda _: new, file.read_text(), flags=re.MULTILINE)
    assert found, f"{file}: {pattern}"
    file.write_text(text)


def step_times(case: Path) -> list[float]:
    """Seconds of each time step but the first, in which the service starts."""
    solver = subprocess.Popen(
        ["pimpleFoam"], cwd=case, env=environment(case), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert solver.stdout is not None
    marks, lines = [], []
    for line in solver.stdout:
        lines.append(line)
        if line.startswith("ExecutionTime"):
            marks.append(time.monotonic())
    if solver.wait() != 0:
        raise SystemExit("".join(lines[-30:]))
    return [b - a for a, b in itertools.pairwise(marks)]


def measure(cells: int, steps: int, rounds: int) -> dict[str, Any]:
    """Median step with and without the closure, and the share that the closure adds."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for closed in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                found[closed] += step_times(prepare(Path(folder), cells, steps, closed))
    alone, closed_step = (statistics.median(found[key]) for key in (False, True))
    return {
        "cells": cells * cells,
        "step_alone_s": alone,
        "step_with_closure_s": closed_step,
        "added": (closed_step - alone) / alone,
        "steps": len(found[True]),
    }


def main() -> int:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small mesh and few steps: whether it works")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if not (ROOT / "build/openfoam/libneuroscaleFoam.so").exists():
        print("openfoam: build/openfoam has no plug-in (adapters/openfoam/build makes it); nothing measured")
        rows = []
    else:
        sizes = (100,) if options.quick else (100, 316)
        rows = [measure(cells, *((4, 1) if options.quick else (12, 3))) for cells in sizes]
    for row in rows:
        alone, closed = row["step_alone_s"], row["step_with_closure_s"]
        print(f"{row['cells']:>8} cells: step {alone:.4f} s, with the closure {closed:.4f} s: {row['added']:+.1%}")
    if options.json:
        options.json.write_text(json.dumps({"machine": platform.machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
