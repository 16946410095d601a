"""Cost and error of a surrogate's rungs beside the fine solver's, on micro structures that it was not trained on.

Structures and loads come from the case's configuration; their ids lie beyond those of its training data. The fine
solver answers the same loads (its tolerance is the case's), each load path from the start to the end, warm-started.

    python benchmarks/surrogate.py [--case FILE] [--quick] [--json FILE]
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

from neuroscale_couple.config.load import load as load_config
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.surrogate import load
from neuroscale_couple.training.dataset import FIRST_ID, load_paths, load_ranges
from neuroscale_couple.values import F64, FineAnswer, Points, relative_error

CASE = Path(__file__).parent.parent / "cases" / "01_fe2_plate" / "neuroscale.yaml"
BEYOND = FIRST_ID + 1_000_000
LOADS = 8


def measure(case: Path, structures: int) -> list[dict[str, Any]]:
    """One row per rung and one for the fine solver."""
    loaded = load_config(case)
    config = loaded.config.neuroscale
    problem = make_problem(config.problem)
    if not isinstance(problem, CellProblem) or config.model is None:
        raise ConfigError(f"{case}: the benchmark needs a periodic cell and neuroscale.model")
    ids = BEYOND + np.arange(structures, dtype=np.int64)
    phase = generate(config.microstructure, ids, problem.grid[0], loaded.folder)
    points = Points(ids, np.zeros((structures, 2)), np.ones(structures), {"phase": phase})
    ranges = load_ranges(problem, config.training)
    states = load_paths(ranges, problem, LOADS, np.random.default_rng(7), structures)
    rows = np.arange(structures, dtype=np.int64)
    solver = make_fine_solver(config.fine, problem)
    solver.attach(points)
    answers: list[FineAnswer] = []
    start = time.perf_counter()
    for inputs in states:
        answers.append(solver.solve(rows, inputs))
        solver.commit()
    cost = (time.perf_counter() - start) / (structures * LOADS)
    table = [{"name": "fine solver", "us_per_point": 1e6 * cost}]
    surrogate = load(loaded.folder / config.model, problem, "cpu")
    start = time.perf_counter()
    surrogate.attach(points)
    table.append({"name": "encode (once)", "us_per_point": 1e6 * (time.perf_counter() - start) / structures})
    for rung in surrogate.rungs:
        surrogate.predict(rung, rows, states[0])  # encodes field modes, warms the scripted code up
        surrogate.predict(rung, rows, states[0])
        start = time.perf_counter()
        predictions = [surrogate.predict(rung, rows, inputs) for inputs in states]
        cost = (time.perf_counter() - start) / (structures * LOADS)
        error = np.concatenate(
            [
                relative_error(p.outputs, a.outputs, problem.output_floor())
                for p, a in zip(predictions, answers, strict=True)
            ]
        )
        tangent = np.concatenate(
            [tangent_error(p.tangent, a.tangent) for p, a in zip(predictions, answers, strict=True)]
        )
        score = np.concatenate([p.score for p in predictions])
        table.append(
            {
                "name": rung.name.lower(),
                "us_per_point": 1e6 * cost,
                **{f"error_{k}": float(np.quantile(error, q)) for k, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))},
                "tangent_p50": float(np.median(tangent)),
                "tangent_p95": float(np.quantile(tangent, 0.95)),
                "rank_correlation": rank_correlation(score, error),
            }
        )
    return table


def tangent_error(got: F64, reference: F64) -> F64:
    """Relative Frobenius distance of tangents [n, d, k], float64 [n]."""
    size = np.linalg.norm(reference, axis=(1, 2))
    return np.asarray(np.linalg.norm(got - reference, axis=(1, 2)) / size, dtype=np.float64)


def rank_correlation(score: F64, error: F64) -> float:
    """Spearman's correlation of score [n] and true error [n]: 1 means that the score sorts the errors."""
    ranks = [np.argsort(np.argsort(values)) for values in (score, error)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    """Print the table; write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, default=CASE, help="configuration with a trained model")
    parser.add_argument("--quick", action="store_true", help="64 micro structures instead of 512")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    table = measure(options.case, 64 if options.quick else 512)
    print(f"{'':18}{'us/point':>10}{'p50 %':>9}{'p95 %':>9}{'max %':>9}{'tangent p50 %':>15}{'rank corr.':>12}")
    for row in table:
        line = f"{row['name']:18}{row['us_per_point']:10.1f}"
        if "error_p50" in row:
            shares = "".join(f"{100 * row[f'error_{k}']:9.2f}" for k in ("p50", "p95", "max"))
            line += shares + f"{100 * row['tangent_p50']:15.2f}{row['rank_correlation']:12.2f}"
        print(line)
    if options.json:
        record = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "rows": table,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
