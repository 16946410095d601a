"""Compiled kernels against the best that torch and NumPy offer, and against a plain copy, in one run.

Every variant of a case does the same work on the same data. `x copy` compares bandwidths: the bytes that a kernel must
move (each input read once, each output written once), divided by its time, over the same for torch's copy of a field of
that size. `x best` is the fastest alternative's time over the kernel's. Times are the least of several rounds over all
variants in turn, so that what else the machine does meets all of them. The copy, the kernels and every alternative that
can write into arrays that are there already; the others (named "new arrays") cannot, or are shown for comparison.

    python benchmarks/kernels.py [--quick] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroscale_couple import kernels
from neuroscale_couple.kernels.coarsen_pyramid import shapes_of
from neuroscale_couple.kernels.conserve import conserve_apply, conserve_sums

Call = Callable[[], object]
SUM = "sum alone"
"""What reading a field costs: torch adds it up. No pyramid can be faster on a field beyond the caches."""
FILL = "fill alone"
"""What writing a field costs: torch sets it. Every line is read before it is written to; of a copy, which is compared
by the bytes that it reads and writes, only half of the lines are."""
OURS = ("copy", "compiled", "compiled, new arrays", "reference", SUM, FILL)
"""Variants that are no alternatives to a kernel."""
GOAL_COPY, GOAL_BEST = 0.8, 2.0


@dataclass
class Case:
    """One kernel on one set of arrays: `calls` has `compiled` and its alternatives; bytes as said above."""

    kernel: str
    name: str
    bytes: int
    operations: int
    calls: dict[str, Call] = field(default_factory=dict)


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def least_seconds(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Least wall time of each call, in turn, the first round left out; fewer rounds of slow ones."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn >= 2 and time.perf_counter() - began > 15.0:
            break
        for name, call in calls.items():
            seconds[name] += [_seconds(call), _seconds(call)]  # the second finds its data where the first left it
    return {name: min(values) for name, values in seconds.items()}


def compiled_by_torch(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """torch.compile's version, None where this machine has no C++ compiler."""
    return torch.compile(function) if shutil.which("g++") or shutil.which("clang++") else None


def pyramid(name: str, shape: tuple[int, ...], levels: int | list[int], dtype: Any) -> list[Case]:
    """Field to all coarser levels, against torch's chain of average pools."""
    data = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    tensor = torch.from_numpy(data)
    factors = [2] * levels if isinstance(levels, int) else levels
    outs = [torch.zeros(s, dtype=tensor.dtype) for s in shapes_of(shape, factors)]
    pool = torch.ops.aten.avg_pool2d.out if data.ndim == 4 else torch.ops.aten.avg_pool3d.out

    def chain() -> None:
        finer = tensor
        for k, out in zip(factors, outs, strict=True):
            finer = pool(finer, [k] * (data.ndim - 2), out=out)

    def into(field: torch.Tensor, targets: list[torch.Tensor]) -> None:
        for target, level in zip(targets, kernels.coarsen_pyramid(field, levels, "torch"), strict=True):
            target.copy_(level)

    moved = data.nbytes + sum(o.nbytes for o in outs)
    case = Case("coarsen_pyramid", f"{name}, {np.dtype(dtype).name}", moved, data.size)
    case.calls["compiled"] = lambda: kernels.coarsen_pyramid(tensor, levels, out=outs)
    case.calls["compiled, new arrays"] = lambda: kernels.coarsen_pyramid(tensor, levels)
    case.calls[SUM] = lambda: tensor.sum()
    case.calls["torch avg_pool"] = chain
    if (fast := compiled_by_torch(lambda t: kernels.coarsen_pyramid(t, levels, "torch"))) is not None:
        case.calls["torch.compile, new arrays"] = lambda: fast(tensor)
    if (fast_into := compiled_by_torch(into)) is not None:
        case.calls["torch.compile"] = lambda: fast_into(tensor, outs)
    case.calls["reference"] = lambda: kernels.coarsen_pyramid(data, levels, "reference")
    return [case]


def launch(name: str, place: Callable[[Any], Any]) -> list[Case]:
    """A call with next to no work: one point of 32², so that its time is what a call costs; per call of 1 000."""
    field = place(np.zeros((1, 1, 32, 32)))
    outs = [place(np.zeros(s)) for s in shapes_of((1, 1, 32, 32), [2] * 5)]
    tensor = torch.from_numpy(np.zeros((1, 1, 32, 32)))
    into = [torch.zeros(s, dtype=torch.float64) for s in shapes_of((1, 1, 32, 32), [2] * 5)]

    def chain() -> None:
        finer = tensor
        for out in into:
            finer = torch.ops.aten.avg_pool2d.out(finer, [2, 2], out=out)

    case = Case("coarsen_pyramid", f"launch of one point, {name}", 8 * 1365, 1024)
    case.calls["compiled"] = lambda: kernels.coarsen_pyramid(field, 5, out=outs)
    case.calls["torch avg_pool"] = chain
    return [case]


def cells(name: str, n: int, length: int, components: int, shuffled: bool = False) -> list[Case]:
    """Means over segments and injection, against index_add_, segment_reduce and indexing."""
    rng = np.random.default_rng(0)
    order = rng.permutation(n) if shuffled else np.arange(n)
    cell_map = kernels.CellMap(np.append(np.arange(0, n, length), n), order, rng.uniform(1.0, 2.0, n))
    m = cell_map.shape[0]
    fine = torch.from_numpy(rng.standard_normal((n, components)))
    offsets, index, weights, scale = cell_map.on(fine)
    owner = torch.empty(n, dtype=torch.int64)
    owner[index] = torch.repeat_interleave(torch.arange(m), offsets.diff())
    volumes = torch.from_numpy(cell_map.volumes.copy())[:, None]
    coarse = kernels.coarsen_cells(fine, cell_map)
    moved = 8 * (n * (components + 2) + m * (components + 2))
    down = Case("coarsen_cells", name, moved, 2 * n * components)

    out, back = torch.zeros_like(coarse), torch.zeros_like(fine)

    def scatter(values: torch.Tensor) -> None:
        out.zero_().index_add_(0, owner, values * volumes).mul_(scale[:, None])

    down.calls["compiled"] = lambda: kernels.coarsen_cells(fine, cell_map, out=out)
    down.calls["compiled, new arrays"] = lambda: kernels.coarsen_cells(fine, cell_map)
    down.calls["torch index_add_"] = lambda: scatter(fine)
    down.calls["torch segment_reduce, new arrays"] = lambda: (
        torch.segment_reduce(fine[index] * weights[:, None], "sum", offsets=offsets, axis=0) * scale[:, None]
    )
    if (fast := compiled_by_torch(scatter)) is not None:
        down.calls["torch.compile"] = lambda: fast(fine)
    up = Case("refine_cells", name, 8 * (n * (components + 1) + m * (components + 1)), n * components)
    up.calls["compiled"] = lambda: kernels.refine_cells(coarse, cell_map, out=back)
    up.calls["compiled, new arrays"] = lambda: kernels.refine_cells(coarse, cell_map)
    up.calls[FILL] = lambda: back.fill_(1.0)
    up.calls["torch index_select"] = lambda: torch.index_select(coarse, 0, owner, out=back)
    return [down, up]


def conserve(n: int) -> list[Case]:
    """One step to exact sums of two of three columns (sums, then change), against plain torch."""
    rng = np.random.default_rng(0)
    values, volumes, variance = rng.standard_normal((n, 3)), rng.random(n) + 0.5, rng.random(n)
    balance = kernels.Balance(kernels.Plan.of(n), values, np.array([0, 2]), volumes, variance)
    zero, target = np.zeros((1, 2)), np.array([[3.0, 4.0]])
    y, at = torch.from_numpy(values.copy()), torch.tensor([0, 2])
    v, w, total = torch.from_numpy(volumes), torch.from_numpy(variance), torch.tensor([3.0, 4.0], dtype=torch.float64)

    def step() -> None:
        sums = conserve_sums(balance, zero)
        conserve_apply(balance, (target - sums[..., 0]) / sums[..., 3])

    def plain(y: torch.Tensor) -> torch.Tensor:
        weight = v * w
        chosen = y[:, at]
        y[:, at] = chosen + weight[:, None] * ((total - v @ chosen) / (v @ weight))
        return y

    case = Case("conserve", f"{n:,} points", 8 * n * 10, 20 * n, {"compiled": step, "torch": lambda: plain(y)})
    if (fast := compiled_by_torch(plain)) is not None:
        case.calls["torch.compile"] = lambda: fast(y)
    case.calls["numpy"] = lambda: kernels.conserve(balance, target, backend="numpy")
    return [case]


def admissible(n: int, d: int, violated: float) -> list[Case]:
    """Check and projection between bounds, against NumPy and a mere check by torch.

    Before each call the tensors that the last one projected are put back, within the time of the call.
    """
    rng = np.random.default_rng(0)
    root = rng.standard_normal((n, d, d))
    t = root @ root.transpose(0, 2, 1) + np.eye(d)
    t = 0.5 * (t + t.transpose(0, 2, 1))
    lower, upper = 0.5 * t, 2.0 * t
    m = int(violated * n)
    t[:m, 0, 0] *= 0.1
    work, changed = t.copy(), np.zeros(n, np.uint8)
    tl, tu, tt = (torch.from_numpy(a) for a in (lower, upper, t))

    def compiled() -> None:
        work[:m] = t[:m]
        kernels.admissible(work, lower, upper, out=changed)

    def numpy() -> None:
        work[:m] = t[:m]
        kernels.admissible(work, lower, upper, backend="numpy")

    name = f"{n:,} of {d}x{d}, {violated:.0%} violate"
    moved = 8 * d * d * (3 * n + 3 * m)  # three arrays read; what is projected written, read and written back
    case = Case("admissible", name, moved, n * d**3 * 2, {"compiled": compiled, "numpy": numpy})
    # what a check alone costs in torch
    case.calls["torch cholesky_ex, check only"] = lambda: (
        torch.linalg.cholesky_ex(tt - tl + 1e-9), torch.linalg.cholesky_ex(tu - tt + 1e-9)
    )  # fmt: skip
    return [case]


def gate(n: int) -> list[Case]:
    """Score to reason, estimate and refused rows, against NumPy."""
    rng = np.random.default_rng(0)
    score, curve = rng.random(n), (np.linspace(0.0, 1.0, 20), rng.random(20))
    reason, error, rows = np.zeros(n, np.uint8), np.zeros(n), np.zeros(n, np.int64)

    def run(backend: Any) -> None:
        reason[:] = 0
        kernels.gate_select(score, 0.9, curve, (6, 5), reason, error, backend, out=rows)

    calls: dict[str, Call] = {"compiled": lambda: run("compiled"), "numpy": lambda: run("numpy")}
    return [Case("gate_select", f"{n:,} points", 18 * n, 30 * n, calls)]


def cases(quick: bool, memory: float) -> list[Callable[[], list[Case]]]:
    """Makers of all cases, small to large; fields up to `memory` bytes."""
    few = 10 if quick else 1
    makers: list[Callable[[], list[Case]]] = [
        partial(launch, "NumPy", np.asarray),
        partial(launch, "torch", torch.from_numpy),
    ]
    for dtype in (np.float32, np.float64):
        for name, shape, levels in (
            ("1000 x 32²", (1000, 1, 32, 32), 5),
            ("plane, small cells", (20000 // few, 3, 32, 32), 5),
            ("plane, large cells", (80 // few, 3, 512, 512), 6),
            ("plane, factors 3", (80 // few, 3, 486, 486), [3, 3, 3]),
            ("plane, factors 4", (80 // few, 3, 512, 512), [4, 4]),
            ("plane, factor 16", (80 // few, 3, 512, 512), [16]),
            ("plane, factor 64", (80 // few, 3, 512, 512), [64]),
            ("volume", (300 // few, 6, 32, 32, 32), 5),
        ):
            makers.append(partial(pyramid, name, shape, levels, dtype))
    if not quick:
        points = int(min(8e9, memory) / (8 * 3 * 512 * 512))
        makers.append(
            partial(pyramid, f"plane, {points * 8 * 3 * 512 * 512 / 1e9:.1f} GB", (points, 3, 512, 512), 6, np.float64)
        )
    n = 4_000_000 // few
    for name, length, components in (
        ("8 cells", 8, 1),
        ("8 cells", 8, 9),
        ("64 cells", 64, 3),
        ("1e5 cells", 10**5, 1),
    ):
        makers.append(partial(cells, f"{name} x {components} components", n, length, components))
    makers.append(partial(cells, "8 cells x 1, random order", n, 8, 1, shuffled=True))
    makers += [partial(conserve, 100_000), partial(conserve, n), partial(gate, 100_000), partial(gate, n)]
    for d in (2, 3, 6):
        makers += [partial(admissible, 100_000 // few, d, violated) for violated in (0.0, 0.1)]
    return makers


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """One row per variant; a copy of a field with half the case's bytes (read + write = the same) beside them."""
    source = torch.zeros(max(case.bytes // 16, 1), dtype=torch.float64).fill_(1.0)
    target = torch.empty_like(source)
    return rows_of(case, least_seconds({"copy": lambda: target.copy_(source), **case.calls}, repeats))


def rows_of(case: Case, seconds: dict[str, float]) -> list[dict[str, Any]]:
    """One row per variant, compared with the copy and the best alternative among them."""
    best = min(s for name, s in seconds.items() if name not in OURS)
    return [
        {
            "kernel": case.kernel, "case": case.name, "bytes": case.bytes, "operations": case.operations,
            "variant": name, "alternative": name not in OURS, "seconds": value,
            "gb_per_s": case.bytes / value / 1e9, "times_copy": seconds["copy"] / value, "times_best": best / value,
        }
        for name, value in seconds.items()
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row to be printed."""
    return (
        f"{row['kernel']:<16} {row['case']:<34} {row['variant']:<30} {1e3 * row['seconds']:9.4f} ms"
        f" {row['gb_per_s']:7.1f} GB/s {row['times_copy']:6.2f} x copy {row['times_best']:7.2f} x best"
    )


def roofline(rows: list[dict[str, Any]], path: Path) -> None:
    """Operations per second against operations per byte, under the bandwidth of the copy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kernel in dict.fromkeys(r["kernel"] for r in rows):
        mine = [r for r in rows if r["kernel"] == kernel and r["variant"] == "compiled" and "launch" not in r["case"]]
        intensity = [r["operations"] / r["bytes"] for r in mine]
        axes.loglog(intensity, [r["operations"] / r["seconds"] / 1e9 for r in mine], "o", label=kernel)
    copy = next(r["gb_per_s"] for r in sorted(rows, key=lambda r: -r["bytes"]) if r["variant"] == "copy")
    ends = np.array([0.02, 2.0])
    axes.loglog(ends, ends * copy, "k-", lw=1, label=f"copy: {copy:.0f} GB/s")
    axes.set(xlabel="operations per byte", ylabel="10⁹ operations per second")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def cpu_name() -> str:
    """Name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def free_bytes() -> float:
    """A quarter of the memory that is free, for the largest field: its coarse levels and the copy come on top."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    free = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return 0.25 * free[0] if free else 1e9


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="write the roofline here")
    parser.add_argument("--quick", action="store_true", help="a tenth of the points, few repeats")
    options = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    print(
        f"{threads} thread(s); x copy: bandwidth over that of a copy; x best: the best alternative's time over this one"
    )
    rows: list[dict[str, Any]] = []
    for make in cases(options.quick, free_bytes()):
        for case in make():
            torch.compiler.reset()
            for r in measure(case, 3 if options.quick else 15):
                rows.append(r)
                print(line(r), flush=True)
    if options.json:
        machine = {"cpu": cpu_name(), "threads": threads, "torch": torch.__version__}
        if options.quick:
            machine["form"] = "quick, small arrays, few repeats: not the record of a quiet machine"
        goals = {"times_copy": GOAL_COPY, "times_best": GOAL_BEST}
        options.json.write_text(json.dumps({"machine": machine, "goals": goals, "rows": rows}, indent=1))
    if options.plot:
        roofline(rows, options.plot)


if __name__ == "__main__":
    main()
