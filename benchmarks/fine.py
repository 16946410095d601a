"""Cost of the fine solver: milliseconds per point-solve, consistent tangent included.

The load path is that of a macro Newton method: 8 load steps of 4 iterations whose strains approach those of the
step (off by 10 %, 1 %, 0.1 %, 0), fibres that differ from point to point, 32 x 32 pixels, strain up to 2 %.
Tables: what the warm start buys, grid size, part size (points solved at once), tolerance, threads. `cpu ms` is
processor time, which a busy machine disturbs less than wall time; the first solve has no start. Accuracy is measured
against the same path's last solve at tolerance 1e-11.

    python benchmarks/fine.py [--quick] [--json FILE] [--points N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroscale_couple.config import schema
from neuroscale_couple.fine.fft_cell import FftCell
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import F64, FineAnswer, Points

STEPS = 8
APPROACH = (0.1, 0.01, 0.001, 0.0)
HEAD = f"{'case':34s} points grid  part  ms/solve  cpu ms  ms first      CG   outputs   tangent"


class Path2D:
    """The inputs of all points on the load path."""

    def __init__(self, n: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        direction = self.rng.standard_normal((n, 3))
        size = 0.02 * self.rng.random((n, 1))
        self.last: F64 = size * direction / np.linalg.norm(direction, axis=1, keepdims=True)

    def inputs(self, step: int, off: float) -> F64:
        """Inputs of one iteration."""
        noise = 1.0 + off * self.rng.standard_normal(self.last.shape)
        return np.asarray(self.last * (step / STEPS) * noise)


def make(n: int, grid: int, part: int | None = None, **settings: Any) -> FftCell:
    """An attached solver for n points on a grid."""
    problem = make_problem(schema.Problem(name="composite", grid=grid))
    solver = FftCell(schema.Fine(**settings), problem)
    ids = np.arange(n)
    phase = generate(schema.Microstructure(), ids, grid, Path())
    solver.attach(Points(ids, np.zeros((n, 2)), np.ones(n), {"phase": phase}))
    if part is not None:
        solver.chunk = part
    return solver


def walk(solver: FftCell, n: int, steps: int) -> tuple[dict[str, Any], FineAnswer, F64]:
    """Solve the load path; times, the last answer and its inputs."""
    path, rows = Path2D(n), np.arange(n)
    seconds, processor, cold, iterations, solves = [0.0] * len(APPROACH), 0.0, 0.0, 0, 0
    for step in range(1, steps + 1):
        for k, off in enumerate(APPROACH):
            inputs = path.inputs(step, off)
            start, before = time.perf_counter(), time.process_time()
            answer = solver.solve(rows, inputs)
            spent, used = time.perf_counter() - start, time.process_time() - before
            if not answer.converged.all():
                raise RuntimeError(solver.diagnosis(int(np.argmin(answer.converged))))
            if step == 1 and k == 0:
                cold = spent
                continue
            seconds[k] += spent
            processor += used
            iterations += int(answer.iterations.sum())
            solves += n
        solver.commit()
    numbers = {
        "ms_per_solve": 1e3 * sum(seconds) / solves,
        "cpu_ms_per_solve": 1e3 * processor / solves,
        "ms_first_solve": 1e3 * cold / n,
        "ms_by_iteration": [1e3 * s / n / (steps - (k == 0)) for k, s in enumerate(seconds)],
        "cg_iterations_per_solve": iterations / solves,
    }
    return numbers, answer, inputs


def errors(answer: FineAnswer, inputs: F64, grid: int) -> dict[str, float]:
    """Largest relative errors of outputs and tangents against a tight solve."""
    exact = make(len(inputs), grid, tolerance=1e-11).solve(np.arange(len(inputs)), inputs)

    def worst(got: F64, reference: F64) -> float:
        flat = reference.reshape(len(reference), -1)
        difference = np.linalg.norm(got.reshape(flat.shape) - flat, axis=1)
        return float((difference / np.linalg.norm(flat, axis=1)).max())

    return {"output_error": worst(answer.outputs, exact.outputs), "tangent_error": worst(answer.tangent, exact.tangent)}


def measure(label: str, n: int, steps: int, grid: int = 32, threads: int = 1, **options: Any) -> dict[str, Any]:
    """One row of the table."""
    torch.set_num_threads(threads)
    solver = make(n, grid, **options)
    numbers, answer, inputs = walk(solver, n, steps)
    row = {"case": label, "points": n, "grid": grid, "threads": threads, "part": solver.chunk, **numbers}
    row |= errors(answer, inputs, grid)
    print(
        f"{label:34s} {n:6d} {grid:4d} {solver.chunk:5d} {row['ms_per_solve']:9.2f} {row['cpu_ms_per_solve']:7.2f}"
        f" {row['ms_first_solve']:9.2f} {row['cg_iterations_per_solve']:7.1f}"
        f" {row['output_error']:9.1e} {row['tangent_error']:9.1e}",
        flush=True,
    )
    return row


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="few points, two load steps")
    parser.add_argument("--points", type=int, default=256, help="points of each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the last row")
    options = parser.parse_args()
    n, steps = (48, 2) if options.quick else (options.points, STEPS)
    print(HEAD)
    field = 2 * 4 * 3 * 32 * 32 * n / 2**20
    rows = [
        measure("warm start (as configured)", n, steps),
        measure("warm start without slopes", n, steps, warm_start_mb=1.5 * field),
        measure("cold start", n, steps, warm_start_mb=0.0),
        measure("tolerance 1e-4", n, steps, tolerance=1e-4),
    ]
    rows += [
        measure(f"{part} points at once", n, steps, part=part)
        for part in ((16, 64) if options.quick else (4, 16, 64, 256))
    ]
    rows += [measure(f"{grid} x {grid} pixels", n, steps, grid=grid) for grid in ((16,) if options.quick else (16, 64))]
    rows += [measure(f"{options.threads} threads", n, steps, threads=options.threads)]
    if options.json:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
        report = {"benchmark": "fine", "machine": machine, "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
