"""CUDA kernels against the best that torch (and CuPy, where it is installed) offers on the GPU, and against a copy.

Every variant of a case does the same work on the same data of the device; the first round is left out. Times are the
least of several, between two events of the stream. `x copy` and `x best` are those of benchmarks/kernels.py. Then what
a call costs a host that does not wait for it, and whether a CUDA graph takes the kernel and gives the same bits.

    python benchmarks/kernels_cuda.py [--quick] [--json FILE] [--plot FILE] [--device cpu]

`--device cpu` only shows that the script works; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernels import Call, Case, compiled_by_torch, line, roofline, rows_of

from neuroscale_couple import kernels
from neuroscale_couple.kernels.coarsen_pyramid import shapes_of

GOAL_COPY, GOAL_BEST, GOAL_LAUNCH_US = 0.85, 2.0, 10.0
LARGE = 256e6
"""Bytes of a field beyond which the goal for the bandwidth holds."""


def seconds_of(call: Call, device: str) -> float:
    """Time between two events of the stream, or on the clock."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def cupy() -> Any | None:
    """CuPy, whose reductions are CUB's, None where it is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy as module

    return module


def pyramid(name: str, shape: tuple[int, ...], factors: list[int], dtype: torch.dtype, device: str) -> Case:
    """Field to all coarser levels, against the chain of average pools, compiled or not, and CuPy's means."""
    field = torch.randn(shape, dtype=dtype, device=device)
    outs = [torch.empty(s, dtype=dtype, device=device) for s in shapes_of(shape, factors)]
    moved = field.nbytes + sum(o.nbytes for o in outs)
    case = Case("coarsen_pyramid", f"{name}, {str(dtype).removeprefix('torch.')}", moved, field.numel())
    case.calls["compiled"] = lambda: kernels.coarsen_pyramid(field, factors, out=outs)
    case.calls["torch avg_pool"] = lambda: kernels.coarsen_pyramid(field, factors, "torch")
    if (fast := compiled_by_torch(lambda t: kernels.coarsen_pyramid(t, factors, "torch"))) is not None:
        case.calls["torch.compile"] = lambda: fast(field)
    if device != "cpu" and (cp := cupy()) is not None:
        case.calls["CuPy"] = lambda: block_means(cp.from_dlpack(field), factors)
    return case


def block_means(field: Any, factors: list[int]) -> list[Any]:
    """All levels by means over split axes; for NumPy and CuPy."""
    levels = []
    for k in factors:
        split = [n for side in field.shape[2:] for n in (side // k, k)]
        field = field.reshape(*field.shape[:2], *split).mean(axis=tuple(range(3, 2 + len(split), 2)))
        levels.append(field)
    return levels


def cells(name: str, n: int, length: int, components: int, device: str, shuffled: bool = False) -> list[Case]:
    """Means over segments and injection, against index_add_, segment_reduce and index_select."""
    rng = np.random.default_rng(0)
    order = rng.permutation(n) if shuffled else np.arange(n)
    cell_map = kernels.CellMap(np.append(np.arange(0, n, length), n), order, rng.uniform(1.0, 2.0, n))
    m = cell_map.shape[0]
    fine = torch.randn((n, components), dtype=torch.float64, device=device)
    offsets, index, weights, scale = cell_map.on(fine)
    owner = torch.empty(n, dtype=torch.int64, device=device)
    owner[index] = torch.repeat_interleave(torch.arange(m, device=device), offsets.diff())
    volumes = torch.as_tensor(cell_map.volumes, device=device)[:, None]
    coarse = kernels.coarsen_cells(fine, cell_map)
    out, back = torch.zeros_like(coarse), torch.zeros_like(fine)
    down = Case("coarsen_cells", name, 8 * (n * (components + 2) + m * (components + 2)), 2 * n * components)
    down.calls["compiled"] = lambda: kernels.coarsen_cells(fine, cell_map, out=out)
    down.calls["torch index_add_"] = lambda: out.zero_().index_add_(0, owner, fine * volumes).mul_(scale[:, None])
    down.calls["torch segment_reduce"] = lambda: (
        torch.segment_reduce(fine[index] * weights[:, None], "sum", offsets=offsets, axis=0) * scale[:, None]
    )
    up = Case("refine_cells", name, 8 * (n * (components + 1) + m * (components + 1)), n * components)
    up.calls["compiled"] = lambda: kernels.refine_cells(coarse, cell_map, out=back)
    up.calls["torch index_select"] = lambda: torch.index_select(coarse, 0, owner, out=back)
    return [down, up]


def gate(n: int, device: str) -> Case:
    """Scores to reasons and refused rows, against torch's searchsorted and nonzero."""
    score = torch.rand(n, dtype=torch.float64, device=device)
    knots = torch.linspace(0.0, 1.0, 20, dtype=torch.float64, device=device)
    levels = torch.rand(20, dtype=torch.float64, device=device)
    reason = torch.zeros(n, dtype=torch.uint8, device=device)
    error, rows = torch.zeros_like(score), torch.zeros(n, dtype=torch.int64, device=device)

    def ours() -> None:
        reason.zero_()
        kernels.gate_select(score, 0.9, (knots, levels), (6, 5), reason, error, out=rows)

    def theirs(score: torch.Tensor) -> torch.Tensor:
        at = torch.searchsorted(knots, score, right=True).clamp_(1, len(knots) - 1)
        slope = (levels[at] - levels[at - 1]) / (knots[at] - knots[at - 1])
        error.copy_(slope * (score - knots[at - 1]) + levels[at - 1])
        reason.copy_(torch.where(score <= 0.9, 0, 5))
        return torch.nonzero(reason)

    calls: dict[str, Call] = {"compiled": ours, "torch": lambda: theirs(score)}
    return Case("gate_select", f"{n:,} points, 10 % refused", 18 * n, 30 * n, calls)


def admissible(n: int, d: int, violated: float, device: str) -> Case:
    """Check and projection between bounds, against torch's batched Cholesky factors, a mere check."""
    root = torch.randn((n, d, d), dtype=torch.float64, device=device)
    t = root @ root.transpose(1, 2) + torch.eye(d, dtype=torch.float64, device=device)
    t = 0.5 * (t + t.transpose(1, 2))
    lower, upper = 0.5 * t, 2.0 * t
    t[torch.rand(n, device=device) < violated, 0, 0] *= 0.1
    work, changed = t.clone(), torch.zeros(n, dtype=torch.uint8, device=device)

    def ours() -> None:
        work.copy_(t)
        kernels.admissible(work, lower, upper, out=changed)

    def check() -> None:
        torch.linalg.cholesky_ex(t - lower + 1e-9)
        torch.linalg.cholesky_ex(upper - t + 1e-9)

    calls: dict[str, Call] = {"compiled": ours, "torch cholesky_ex, check only": check}
    return Case("admissible", f"{n:,} of {d}x{d}, {violated:.0%} violate", 8 * n * d * d * 5, n * d**3 * 2, calls)


def conserve(n: int, device: str) -> Case:
    """Exact sums of two of three columns, all steps and round trips of one call, against a plain step of torch."""
    values = torch.randn((n, 3), dtype=torch.float64, device=device)
    volumes, variance = (torch.rand(n, dtype=torch.float64, device=device) + 0.5 for _ in range(2))
    at = torch.tensor([0, 2], device=device)
    balance = kernels.Balance(kernels.Plan.of(n), values, at, volumes, variance)
    target, total = np.array([[3.0, 4.0]]), torch.tensor([3.0, 4.0], dtype=torch.float64, device=device)
    y = values.clone()

    def plain(y: torch.Tensor) -> None:
        weight = volumes * variance
        chosen = y[:, at]
        y[:, at] = chosen + weight[:, None] * ((total - volumes @ chosen) / (volumes @ weight))

    calls: dict[str, Call] = {"compiled": lambda: kernels.conserve(balance, target), "torch": lambda: plain(y)}
    return Case("conserve", f"{n:,} points, whole call", 8 * n * 10, 20 * n, calls)


def makers(quick: bool, device: str) -> list[Callable[[], list[Case]]]:
    """All cases, small to large; the largest fields have 8 GB, or what an eighth of the memory holds."""
    few = 100 if quick else 1
    memory = torch.cuda.mem_get_info()[1] if device != "cpu" else 1e8
    largest = max(1, int(min(8e9, memory / 8, 8e9 / few) / (8 * 3 * 512 * 512)))
    made: list[Callable[[], list[Case]]] = []
    for dtype in (torch.float32, torch.float64):
        for name, shape, factors in (
            ("1000 x 32²", (1000, 1, 32, 32), [2] * 5),
            ("plane, small cells", (40000 // few, 3, 32, 32), [2] * 5),
            ("plane, k = 4", (200 // few + 1, 3, 512, 512), [2] * 2),
            ("plane, k = 64", (200 // few + 1, 3, 512, 512), [2] * 6),
            ("plane, k = 64 at once", (200 // few + 1, 3, 512, 512), [64]),
            ("plane, factors 3", (200 // few + 1, 3, 486, 486), [3] * 3),
            ("volume", (600 // few, 6, 32, 32, 32), [2] * 5),
        ):
            made.append(lambda a=name, b=shape, c=factors, d=dtype: [pyramid(a, b, c, d, device)])  # type: ignore[misc]
    made.append(lambda: [pyramid("plane, largest", (largest, 3, 512, 512), [2] * 6, torch.float64, device)])
    n = 32_000_000 // few
    for name, length, components in (
        ("8 cells", 8, 1),
        ("8 cells", 8, 9),
        ("64 cells", 64, 3),
        ("1e5 cells", 10**5, 1),
    ):
        made.append(lambda a=f"{name} x {components}", b=length, c=components: cells(a, n // c, b, c, device))  # type: ignore[misc]
    made.append(lambda: cells("8 cells x 1, random order", n, 8, 1, device, shuffled=True))
    made += [lambda: [gate(1_000, device)], lambda: [gate(n, device)]]
    made += [lambda: [conserve(1_000, device)], lambda: [conserve(n // 4, device)]]
    for d in (2, 3, 6):
        made.append(lambda d=d: [admissible(1_000_000 // few, d, share, device) for share in (0.0, 0.1)])  # type: ignore[misc]
    return made


def measure(case: Case, repeats: int, device: str) -> list[dict[str, Any]]:
    """One row per variant, a copy of as many bytes among them."""
    source = torch.ones(max(case.bytes // 16, 1), dtype=torch.float64, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source), **case.calls}
    for call in calls.values():
        call()
    seconds = {name: min(seconds_of(call, device) for _ in range(repeats)) for name, call in calls.items()}
    return rows_of(case, seconds)


def launch(device: str, calls: int = 1000) -> float:
    """Microseconds of the host for one call on 1 000 points of 32² with five levels, without waiting for the device."""
    field = torch.zeros((1000, 1, 32, 32), device=device)
    outs = [torch.empty(s, device=device) for s in shapes_of(field.shape, [2] * 5)]
    kernels.coarsen_pyramid(field, 5, out=outs)
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        kernels.coarsen_pyramid(field, 5, out=outs)
    seconds = time.perf_counter() - start
    return 1e6 * seconds / calls


def graph_microseconds() -> float:
    """Time of the same call in a CUDA graph. Raises: AssertionError where a replay gives other bits."""
    field = torch.randn((1000, 1, 32, 32), device="cuda")
    outs = [torch.empty(s, device="cuda") for s in shapes_of(field.shape, [2] * 5)]
    expected = [level.clone() for level in kernels.coarsen_pyramid(field, 5, out=outs)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.coarsen_pyramid(field, 5, out=outs)
    for out in outs:
        out.zero_()
    graph.replay()
    for out, level in zip(outs, expected, strict=True):
        assert torch.equal(out, level), "the graph's replay differs from the call"
    return 1e6 * min(seconds_of(graph.replay, "cuda") for _ in range(50))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="write the roofline here")
    parser.add_argument("--quick", action="store_true", help="small arrays, few repeats")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not kernels.has_cuda():
        parser.error("no CUDA device was found, or the extension was built without nvcc (docs/kernels.md, Building)")
    rows: list[dict[str, Any]] = []
    for make in makers(options.quick or device == "cpu", device):
        for case in make():
            torch.compiler.reset()
            for r in measure(case, 3 if options.quick else 20, device):
                rows.append(r)
                print(line(r), flush=True)
    call = launch(device)
    print(f"a call on 1 000 points of 32²: {call:.1f} us of the host (goal: under {GOAL_LAUNCH_US:g})")
    replay = graph_microseconds() if device == "cuda" else None
    if replay is not None:
        print(f"the same in a CUDA graph, same bits: {replay:.1f} us")
    if options.json:
        name = torch.cuda.get_device_name() if device == "cuda" else "no GPU, the numbers say nothing"
        machine = {"gpu": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        goals = {"times_copy": GOAL_COPY, "times_best": GOAL_BEST, "bytes": LARGE, "launch_us": GOAL_LAUNCH_US}
        record = {"machine": machine, "goals": goals, "rows": rows, "launch_us": call, "graph_us": replay}
        options.json.write_text(json.dumps(record, indent=1))
    if options.plot:
        roofline(rows, options.plot)


if __name__ == "__main__":
    main()
