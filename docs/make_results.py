"""Write the measured numbers of docs/results/*.json into the README and the docs.

Between `<!-- results: NAME -->` and `<!-- end results -->` a page holds the table that `TABLES[NAME]` makes from
`docs/results/NAME.json`. Nobody types a number: run the benchmark or the case, copy its JSON, run this script.

    python docs/make_results.py            rewrite the pages
    python docs/make_results.py --check    exit 1 if a page is not current
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((ROOT / "cases").glob("*/README.md"))]
BLOCK = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end results -->)", re.DOTALL)


MACRO = {
    "displacement_l2": "displacement (relative L2)",
    "reaction_force": "reaction force",
    "temperature_l2": "temperature rise (relative L2)",
    "heat_flow": "heat flow through the hot edge",
}
"""Words for the macro errors of a summary."""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def percent(value: float | None) -> str:
    """A share as per cent, `-` if there is none."""
    return "-" if value is None else f"{100 * value:.3g} %"


def case(record: dict[str, Any]) -> str:
    """The summary of a compared run (`runs/<case>/summary.json`)."""
    wall, answered, audit = record["wall_s"], record["answered"], record["audit"]
    total = answered["surrogate_coarse"] + answered["surrogate_fine"] + answered["fine"]
    rows = [
        ["points, windows, iterations", f"{record['points']}, {record['windows']}, {record['iterations']}"],
        ["fine-only run, same machine and cores", f"{record['fine_only_wall_s']:.1f} s"],
        ["run with the surrogate, loading and encoding included (imports aside, in both)", f"{wall['total']:.1f} s"],
        ["**speed-up**", f"**{record['speedup']:.1f}**"],
        *[[f"{MACRO[k]} against fine-only", percent(e)] for k, e in record["macro_error"].items() if k in MACRO],
        ["answered by coarse head / fine head / fine solver", " / ".join(
            percent(answered[k] / total) for k in ("surrogate_coarse", "surrogate_fine", "fine"))],
        ["tolerance of the gate", percent(record["tolerance"])],
        ["audits: number, median, p95 error", f"{audit['n']}, {percent(audit['p50'])}, {percent(audit['p95'])}"],
        ["audits above the tolerance", percent(audit["share_above_tolerance"])],
    ]  # fmt: skip
    return table(["measured", "value"], rows) + f"\n{_where(record)}\n"


def loop(record: dict[str, Any]) -> str:
    """`benchmarks/loop.py --json`."""
    rows = [
        [f"{r['points']:,}", r["variant"], *(f"{r[k]:.3f}" for k in (
            "evaluate_us_per_point", "commit_us_per_point", "us_per_point_and_window"))]
        for r in record["rows"]
    ]  # fmt: skip
    head = ["points", "variant", "evaluate", "commit", "µs per point and window"]
    return table(head, rows) + f"\n{_where(record)}\n"


def kernels(record: dict[str, Any]) -> str:
    """`benchmarks/kernels.py --json`: a line per case, with its best alternative."""
    rows, missed = [], []
    for (kernel, name), variants in _cases(record).items():
        ours, best = variants["compiled"], _best(variants)
        memory = [f"{1e3 * r['seconds']:.3f} ms" for v, r in variants.items() if v in ("sum alone", "fill alone")]
        if kernel == "coarsen_pyramid" and not name.startswith("launch"):
            bound = f" ({best['seconds'] / variants['sum alone']['seconds']:.2f} by reading the input alone)"
            missed += _missed(name, ours, record["goals"], bound)
        rows.append(
            [kernel, name, f"{1e3 * ours['seconds']:.3f} ms", f"{ours['gb_per_s']:.1f}", f"{ours['times_copy']:.2f}",
             best["variant"], f"{1e3 * best['seconds']:.3f} ms", f"{ours['times_best']:.2f}", *(memory or ["-"])]
        )  # fmt: skip
    head = ["kernel", "case", "time", "GB/s", "× copy", "best alternative", "its time", "× best", "memory alone"]
    below = "; ".join(missed) or "none"
    return table(head, rows) + f"\nCases of the pyramid below a goal: {below}.\n\n{_where(record)}\n"


def kernels_cuda(record: dict[str, Any]) -> str:
    """`benchmarks/kernels_cuda.py --json`."""
    goals = record["goals"]
    rows, missed = [], []
    for (kernel, name), variants in _cases(record).items():
        ours, best = variants["compiled"], _best(variants)
        if ours["bytes"] > goals["bytes"]:
            missed += _missed(f"{kernel}, {name}", ours, {**goals, "times_best": 0.0})
        if kernel == "coarsen_pyramid":
            missed += _missed(name, ours, {**goals, "times_copy": 0.0})
        rows.append(
            [kernel, name, f"{1e6 * ours['seconds']:.1f} us", f"{ours['gb_per_s']:.0f}", f"{ours['times_copy']:.2f}",
             best["variant"], f"{1e6 * best['seconds']:.1f} us", f"{ours['times_best']:.2f}"]
        )  # fmt: skip
    head = ["kernel", "case", "time", "GB/s", "× copy", "best alternative", "its time", "× best"]
    machine = record["machine"]
    return (
        f"{table(head, rows)}\nBelow a goal: {'; '.join(missed) or 'none'}. A call on 1 000 points of 32² takes the "
        f"host {record['launch_us']:.1f} us (goal: {goals['launch_us']:g}); in a CUDA graph, with the same bits, "
        f"{record['graph_us'] or float('nan'):.1f} us.\n\nMachine: {machine['gpu']}, torch {machine['torch']}, "
        f"{machine['date']}.\n"
    )


def _cases(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Rows by kernel and case, and by variant."""
    cases: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for r in record["rows"]:
        cases.setdefault((r["kernel"], r["case"]), {})[r["variant"]] = r
    return cases


def _best(variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return min((r for r in variants.values() if r["alternative"]), key=lambda r: float(r["seconds"]))


def _missed(name: str, ours: dict[str, Any], goals: dict[str, Any], bound: str = "") -> list[str]:
    """Goals that are not met; bound: how far the second could be reached at all."""
    signs = {"times_copy": "× copy", "times_best": "× best" + bound}
    return [f"{name}: {ours[key]:.2f} {sign}" for key, sign in signs.items() if ours[key] < goals[key]]


def fenicsx_refinement(record: dict[str, Any]) -> str:
    """`benchmarks/fenicsx_refinement.py --json`."""

    def shown(r: dict[str, Any], name: str) -> list[str]:
        order = r["order_" + name]
        return [f"{r[name]:.2e}", "-" if order is None else f"{order:.2f}"]

    rows = [
        [str(r["degree"]), f"{r['cells']}²", f"{r['points']:,}", *shown(r, "l2"), *shown(r, "h1")]
        for r in record["rows"]
    ]
    head = ["degree", "elements", "points", "L2 error", "order", "H1 error", "order"]
    return table(head, rows) + f"\n{_where(record)}\n"


def _where(record: dict[str, Any]) -> str:
    machine = record.get("machine", "")
    text = ", ".join(f"{k}: {v}" for k, v in machine.items()) if isinstance(machine, dict) else str(machine)
    return f"Machine: {text}."


def precice(record: dict[str, Any]) -> str:
    """`benchmarks/precice_transport.py --json`."""
    head = ["points", "as", "read, ms", "own work, ms", "write, ms", "advance and waiting, ms", "total, ms"]
    parts = ("read", "own", "write", "advance", "total")
    rows = [[f"{r['points']:,}", r["form"], *(f"{r[f'{part}_ms']:.2f}" for part in parts)] for r in record["rows"]]
    return table(head, rows) + "\nMedians of one run, both participants on one machine.\n"


def micro_manager(record: dict[str, Any]) -> str:
    """`benchmarks/micro_manager.py --json`."""
    bare, runs = record["overhead"], record["grains"]
    columns = ("beside_precice_us", "bare_us", "overhead_us")
    rows = [[r["variant"], f"{r['window_ms']:.2f}", *(f"{r[k]:.3f}" for k in columns)] for r in bare["rows"]]
    peers = {r["variant"]: r["peer_ms"] for r in bare["rows"] if "peer_ms" in r}
    alone = f"preCICE alone {bare['echo_ms']:.2f} ms a window"
    same = ""
    if peers:
        alone = "preCICE alone, called as each of them does, " + " and ".join(f"{ms:.2f} ms" for ms in peers.values())
        alone += " a window"
        ours = bare["rows"][0]
        slow = 1e3 * (ours["window_ms"] - bare["echo_ms"]) / bare["points"] - ours["bare_us"]
        same = f" Against a peer that uses preCICE's Python package as theirs does, ours is {slow:.3f} µs."
    head = ["no-op micro simulation", "window, ms", "beside preCICE, µs per point and window", "bare calls, µs",
            "overhead, µs"]  # fmt: skip
    first = table(head, rows)
    rows = [
        [r["variant"], f"{r['wall_s']:.1f} s", f"{r['solves']:,} ({percent(r['share'])})",
         percent(r["error_mean"]), percent(r["error_p95"])]
        for r in runs["rows"]
    ]  # fmt: skip
    second = table(["dissolving grains", "wall time", "micro solves", "mean error", "p95 error"], rows)
    times = ", ".join(f"{name.removeprefix('ours, ')}: {t:.1f}" for name, t in runs["fewer_solves"].items())
    return (
        f"{bare['points']:,} points, {bare['windows']} windows, medians; {alone}:\n\n{first}\n"
        f"Their overhead is {bare['ratio']:.1f} times ours.{same}\n\n"
        f"{runs['points']:,} points, {runs['windows']} windows, from a cold start:\n\n{second}\n"
        "Times fewer micro solves than their adaptivity at the same mean error (interpolated between its settings; "
        f"where none errs as little, than the one that errs least): {times or 'none errs as much'}. {_where(record)}\n"
    )


def opaque(record: dict[str, Any]) -> str:
    """`benchmarks/opaque.py --json`."""
    head = ["method", "setting", "micro solves per point and window", "mean error", "p95", "largest"]
    names = ("tolerance", "coarsening", "refining", "history")
    rows = [
        [r["method"], ", ".join(f"{k} {r[k]:g}" for k in names if k in r), f"{r['solves']:.3f}",
         *(percent(r[k]) for k in ("mean", "p95", "max"))]
        for r in record["rows"]
    ]  # fmt: skip
    least = min(r["fewer"] for r in record["verdicts"])
    text = f"{record['points']} points, {record['windows']} windows; errors against all fine, relative."
    goal = (
        f"At least {least:.1f} times fewer micro solves than the cheapest similarity setting of no larger mean error."
    )
    return table(head, rows) + f"\n{text} {goal} Where there is none, all points count.\n"


def client(record: dict[str, Any]) -> str:
    """`benchmarks/client.py --json`."""
    rows = [
        [f"{r['rows']:,}", r["channel"], f"{r['ms']:.3f}", f"{r['raw_ms']:.3f}", f"{r['ratio']:.2f}"]
        for r in record["client"]
    ]
    head = ["rows", "channel", "exchange, ms", "raw round trip and copy, ms", "ratio"]
    return table(head, rows) + f"\nMedians, {record['cores']} cores, {record['mpi']}.\n"


def openfoam(record: dict[str, Any]) -> str:
    """`benchmarks/openfoam.py --json`."""
    head = ["cells", "time step alone, ms", "with the closure, ms", "added"]
    rows = [
        [
            f"{r['cells']:,}",
            f"{1e3 * r['step_alone_s']:.1f}",
            f"{1e3 * r['step_with_closure_s']:.1f}",
            percent(r["added"]),
        ]
        for r in record["rows"]
    ]
    return table(head, rows) + f"\nMedian steps. {_where(record)}\n"


def case_04(record: dict[str, Any]) -> str:
    """`cases/04_openfoam_two_scale_heat/compare.py`."""
    steps = range(1, len(record["ours"]) + 1)
    rows = [
        [name, *(f"{flow:.2f}" for flow in record[key])]
        for name, key in (("finite elements, W/m", "finite_elements"), ("this run, W/m", "ours"))
    ]
    head = ["time step", *(str(step) for step in steps)]
    return table(head, rows) + f"\nLargest difference: {percent(record['largest_difference'])}.\n"


def case_05(record: dict[str, Any]) -> str:
    """`cases/05_openfoam_cavity_closure/compare.py`."""
    rows = record["rows"]
    name = f"velocity at time {rows[0]['time']:g}, relative L2 difference to the exact answer"
    return table(["cells", *(f"{r['cells']}²" for r in rows)], [[name, *(percent(r["difference"]) for r in rows)]])


def profile_case(record: dict[str, Any]) -> str:
    """`benchmarks/profile_case.py --json`: the places that took more than half a per cent."""
    rows = [
        [f"`{r['place']}`", f"{r['seconds']:.1f}", percent(r["seconds"] / record["total_s"])]
        for r in record["rows"]
        if r["seconds"] > 0.005 * record["total_s"]
    ]
    kernels = sum(r["seconds"] for r in record["rows"] if "kernels/" in r["place"])
    text = (
        f"{record['points']:,} points, `{' '.join(record['set'])}`, {record['total_s']:.0f} s in all; "
        f"everything inside `kernels/`: {percent(kernels / record['total_s'])}."
    )
    return table(["where", "seconds", "share"], rows) + f"\n{text} {_where(record)}\n"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "client": client,
    "profile_case": profile_case,
    "precice": precice,
    "micro_manager": micro_manager,
    "case_01": case,
    "case_01_cold": case,
    "case_02": case,
    "case_03": case,
    "case_04": case_04,
    "case_05": case_05,
    "fenicsx_refinement": fenicsx_refinement,
    "loop": loop,
    "kernels": kernels,
    "kernels_cuda": kernels_cuda,
    "opaque": opaque,
    "openfoam": openfoam,
}


LATER = ("kernels_cuda",)
"""Records that may be missing: they want a machine that was not at hand."""


def render(page: str) -> str:
    """The page with every block filled from its record."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name in LATER and not (DOCS / "results" / f"{name}.json").exists():
            return f"{match[1]}Not measured yet.\n{match[3]}"
        record = json.loads((DOCS / "results" / f"{name}.json").read_text())
        return f"{match[1]}{TABLES[name](record)}{match[3]}"

    return BLOCK.sub(fill, page)


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in PAGES:
        if not path.exists():
            continue
        old = path.read_text()
        new = render(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new)
    if stale:
        print(("not current: " if check else "rewritten: ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
