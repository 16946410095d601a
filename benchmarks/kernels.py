"""Compiled kernels against torch and against a plain copy of the same data.

A copy reads and writes every byte once and is as fast as memory allows. The pyramid reads the field once and writes a
third of it (a seventh in 3-D), so a perfect kernel takes a little less time than the copy.

    python benchmarks/kernels.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroscale_couple import kernels

CASES = {
    "plane, small cells": ((2000, 3, 32, 32), 5),
    "plane, large cells": ((8, 3, 512, 512), 6),
    "volume": ((60, 6, 32, 32, 32), 5),
}


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of one call, the first two left out."""
    seconds = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        call()
        if repeat >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def variants(field: np.ndarray, levels: int) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    tensor = torch.from_numpy(field)
    target = np.empty_like(field)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: np.copyto(target, field),
        "torch avg_pool chain": lambda: kernels.coarsen_pyramid(tensor, levels, "torch"),
        "numpy": lambda: kernels.coarsen_pyramid(field, levels, "numpy"),
    }
    if kernels.has_compiled():
        calls["reference"] = lambda: kernels.coarsen_pyramid(field, levels, "reference")
        calls["compiled"] = lambda: kernels.coarsen_pyramid(field, levels, "compiled")
    return calls


def measure(name: str, dtype: type[np.floating[Any]], quick: bool) -> list[dict[str, Any]]:
    """One row per variant of one case."""
    shape, levels = CASES[name]
    if quick:
        shape = (max(1, shape[0] // 10), *shape[1:])
    field = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    seconds = {k: median_seconds(call, 5 if quick else 15) for k, call in variants(field, levels).items()}
    return [
        {
            "kernel": "coarsen_pyramid", "case": name, "shape": list(shape), "levels": levels, "dtype": dtype.__name__,
            "variant": variant, "seconds": value, "gb_per_s": field.nbytes / value / 1e9,
            "times_copy": value / seconds["copy"], "times_torch": value / seconds["torch avg_pool chain"],
        }
        for variant, value in seconds.items()
    ]  # fmt: skip


def cpu_name() -> str:
    """Name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="a tenth of the points, few repeats")
    options = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    rows = [r for name in CASES for dtype in (np.float32, np.float64) for r in measure(name, dtype, options.quick)]
    print(f"threads: {threads}; GB/s of the field read; times: relative to a copy of the field, and to the torch chain")
    for r in rows:
        print(
            f"{r['case']:<20} {r['dtype']:<8} {r['variant']:<22} {1e3 * r['seconds']:8.2f} ms {r['gb_per_s']:6.2f} GB/s"
            f" {r['times_copy']:6.2f} x copy {r['times_torch']:6.2f} x torch"
        )
    if options.json:
        machine = {"cpu": cpu_name(), "threads": threads, "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
