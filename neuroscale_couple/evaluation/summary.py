"""The numbers of a run, all measured in it: `summary.json`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from neuroscale_couple.errors import ConfigError
from neuroscale_couple.kernels import has_compiled
from neuroscale_couple.ledger import SOURCES, STAGES, read_table

PACKAGES = ("neuroscale-couple", "numpy", "scipy", "torch", "scikit-fem", "mapie", "mpi4py")

MACRO = {
    "displacement_l2": ("displacement", "displacement"),
    "reaction_force": ("reaction_force", "reaction force"),
    "temperature_l2": ("temperature_rise", "temperature rise"),
    "heat_flow": ("heat_flow", "heat flow"),
}
"""Macro solutions that are compared with the fine-only run: key of the summary -> (array in macro.npz, its words)."""


@dataclass(frozen=True)
class RunRecord:
    """What the command line measured around a run, kept beside its results as `run.json`.

    digest: of the resolved configuration; script: SHA-256 of the macro script and the files beside it
    wall_s: from the start of the macro script to its end, s; resumed: the time is the ledger's, over all parts
    startup_s: imports before that, s, paid once by a process and not in wall_s
    """

    label: str
    digest: str
    script: str
    ranks: int
    threads: int
    wall_s: float = 0.0
    startup_s: float = 0.0
    resumed: bool = False
    finished: bool = False

    def save(self, folder: Path) -> None:
        """Write `run.json`."""
        (folder / "run.json").write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> RunRecord | None:
        """Read `run.json`; None if there is none of this version."""
        try:
            return cls(**json.loads((folder / "run.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def same_run(self, other: RunRecord) -> bool:
        """Whether both would measure the same: configuration, macro script, ranks and threads."""
        return (self.digest, self.script, self.ranks, self.threads) == (
            other.digest,
            other.script,
            other.ranks,
            other.threads,
        )


def script_digest(macro: Path | None) -> str:
    """SHA-256 of the macro script and the Python files beside it; empty for a replay without one."""
    if macro is None:
        return ""
    digest = hashlib.sha256()
    for path in sorted(macro.parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def incomparable(folder: Path, reference: Path, closed: Mapping[str, Any]) -> str | None:
    """Why a finished run is not to be compared with a fine-only run, as a sentence; None: it may be.

    closed: keys of the configuration that make a run fine-only
    """
    from neuroscale_couple.config.load import load

    ours, theirs = RunRecord.load(folder), RunRecord.load(reference)
    if theirs is None:
        return f"there is no finished fine-only run in {reference}"
    what = "macro script" if ours is not None and ours.script != theirs.script else ""
    try:
        if load(folder / "neuroscale.resolved.yaml", closed).digest != theirs.digest:
            what = "configuration"
    except ConfigError:  # files that it names lie elsewhere: what cannot be told is not held against it
        pass
    return f"the fine-only run in {reference} is of another {what}; make it again to compare" if what else None


def summarise(
    folder: Path, settings: Mapping[str, Any], reference: Path | None, reused: bool = False
) -> dict[str, Any]:
    """The summary of a run in `folder`.

    settings: the gate section of the resolved configuration; reference: folder of the fine-only run
    """
    record = RunRecord.load(folder)
    ledger = read_table(folder / "ledger.csv")
    audits = read_table(folder / "audits.csv")
    error = np.array(audits.get("error", []), dtype=np.float64)
    total = _totals(ledger)
    wall = record.wall_s if record is not None else total.get("seconds_total", 0.0)
    fine_only = RunRecord.load(reference) if reference is not None else None
    summary: dict[str, Any] = {
        "points": int(max(ledger.get("points", []), default=0)),
        "windows": len(ledger.get("window", [])),
        "iterations": int(total.get("iterations", 0)),
        "answered": {name: int(total.get(f"answered_{name}", 0)) for name in SOURCES} | {"audit": len(error)},
        "fine_solves": int(total.get("fine_solves", 0)),
        "price": _price(total, reference),
        "tolerance": settings["tolerance"],
        "confidence": settings["confidence"],
        "audit": _audit(error, settings["tolerance"]),
        "macro_error": macro_error(folder, reference) if reference is not None else None,
        "wall_s": {"total": wall} | {s: total.get(f"seconds_{s}", 0.0) for s in STAGES if s != "total"},
        "kernels": {
            "seconds": total.get("seconds_kernels", 0.0),
            "share": total.get("seconds_kernels", 0.0) / wall if wall > 0 else None,
            "compiled": has_compiled(),
        },
        "fine_only_wall_s": fine_only.wall_s if fine_only is not None else None,
        "speedup": fine_only.wall_s / wall if fine_only is not None and wall > 0 else None,
        "imports_s": max((r.startup_s for r in (record, fine_only) if r is not None), default=0.0),
        "fine_only_reused": reused,
        "resumed": record.resumed if record is not None else False,
        "newton_iterations": {
            "run": _newton(folder),
            "fine_only": _newton(reference) if reference is not None else None,
        },
        "config_sha256": record.digest if record is not None else None,
        "machine": machine(record),
        "versions": versions(),
    }
    return summary


def macro_error(folder: Path, reference: Path) -> dict[str, float] | None:
    """Largest relative difference over all windows of the macro solutions, |a - b|_2 / |b|_2; None without both."""
    try:
        with np.load(folder / "macro.npz") as ours, np.load(reference / "macro.npz") as truth:
            both = {key: name for key, (name, _) in MACRO.items() if name in truth and name in ours}
            pairs = {key: (ours[name], truth[name]) for key, name in both.items()}
    except OSError:
        return None
    return {key: _relative(*pair) for key, pair in pairs.items()}


def _relative(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    if a.shape != b.shape:
        return float("nan")
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    size = np.linalg.norm(flat_b, axis=1)
    return float(np.max(np.linalg.norm(flat_a - flat_b, axis=1) / np.where(size > 0, size, 1.0), initial=0.0))


def _price(total: Mapping[str, float], reference: Path | None) -> dict[str, Any]:
    """What one answer of each source cost, ms of one rank; a solve of the fine-only run; what the fine head saved, s.

    The fine head spares a solve wherever its answer is accepted, and costs wherever it is asked. What the spared solves
    would have cost lies between those of the fine-only run (all points at once, warm) and this run's (few, cold).
    """
    found: dict[str, Any] = {name: _price_of(total, name) for name in SOURCES}
    fine_only = _totals(read_table(reference / "ledger.csv")) if reference is not None else {}
    solve, head = _price_of(fine_only, SOURCES[-1])["ms"], found["surrogate_fine"]
    known = sorted(ms for ms in (solve, found["fine"]["ms"]) if ms is not None)
    saved = None
    if known and head["asked"]:
        saved = [1e-3 * (ms * total["answered_surrogate_fine"] - head["ms"] * head["asked"]) for ms in known]
    return found | {"fine_only_ms": solve, "fine_head_saved_s": saved}


def _price_of(total: Mapping[str, float], source: str) -> dict[str, Any]:
    asked, spent = total.get(f"asked_{source}", 0.0), total.get(f"rank_seconds_{source}", 0.0)
    return {"asked": int(asked), "ms": 1e3 * spent / asked if asked else None}


def _totals(ledger: Mapping[str, list[Any]]) -> dict[str, float]:
    """Sums of the columns that hold numbers alone; of the others 0."""
    return {name: sum(cells) if all(isinstance(v, float) for v in cells) else 0.0 for name, cells in ledger.items()}


def _audit(error: np.ndarray[Any, Any], tolerance: float) -> dict[str, Any]:
    if not len(error):
        return {"n": 0, "p50": None, "p95": None, "max": None, "share_above_tolerance": None}
    p50, p95 = (float(q) for q in np.quantile(error, [0.5, 0.95]))
    above = float(np.mean(~(error <= tolerance)))
    return {"n": len(error), "p50": p50, "p95": p95, "max": float(error.max()), "share_above_tolerance": above}


def _newton(folder: Path) -> list[int] | None:
    try:
        with np.load(folder / "macro.npz") as stored:
            return [int(n) for n in stored["newton_iterations"]] if "newton_iterations" in stored else None
    except OSError:
        return None


def machine(record: RunRecord | None = None) -> dict[str, Any]:
    """The machine of this process."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = {"ranks": record.ranks, "threads_per_rank": record.threads} if record is not None else {}
    return {"cpu": model, "cores": cores, "system": platform.system()} | ranks


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(summary: Mapping[str, Any], title: str) -> Table:
    """The summary for the terminal."""
    shown = Table(title=title, show_header=False, title_justify="left", min_width=60)
    for name, value in rows(summary):
        shown.add_row(name, value)
    return shown


def rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader wants to know of a summary, as (name, text)."""
    answered, audit, wall = summary["answered"], summary["audit"], summary["wall_s"]
    asked = max(1, sum(answered[name] for name in SOURCES))
    share = {name: 100 * answered[name] / asked for name in SOURCES}
    found = [
        ("points x windows, iterations", f"{summary['points']} x {summary['windows']}, {summary['iterations']}"),
        ("answered by the coarse head", f"{share['surrogate_coarse']:.2f} %"),
        ("answered by the fine head", f"{share['surrogate_fine']:.2f} %"),
        ("answered by the fine solver (fallback)", f"{share['fine']:.2f} %"),
        ("fine solves, audits among them", f"{summary['fine_solves']}, {answered['audit']}"),
        *_prices(summary["price"], answered["surrogate_fine"]),
    ]
    if audit["n"]:
        errors = " / ".join(f"{100 * audit[key]:.2f}" for key in ("p50", "p95", "max"))
        allowed = 100 * (1 - summary["confidence"])
        above = round(audit["share_above_tolerance"] * audit["n"])
        found += [
            (f"audited error, p50 / p95 / max (tolerance {100 * summary['tolerance']:g} %)", f"{errors} %"),
            (f"audits above the tolerance ({allowed:.3g} % may be)", f"{above} of {audit['n']}"),
        ]
    for key, (_, name) in MACRO.items():
        if summary["macro_error"] is not None and key in summary["macro_error"]:
            found.append((f"error of the {name} against fine-only", f"{100 * summary['macro_error'][key]:.3f} %"))
    if summary["newton_iterations"]["run"] is not None:
        found += [(f"Newton iterations per window, {k.replace('_', '-')}", _listed(v)) for k, v in _newtons(summary)]
    stages = ", ".join(f"{name} {wall[name]:.2f}" for name in wall if name != "total")
    found += [("wall time", f"{wall['total']:.2f} s"), ("of it, s", stages)]
    kernels = summary["kernels"]
    if kernels["share"] is not None:
        how = "compiled" if kernels["compiled"] else "NumPy"
        found.append((f"of it in {how} kernels", f"{kernels['seconds']:.4f} s, {100 * kernels['share']:.3g} %"))
    if summary["speedup"] is not None:
        again = " (of an earlier run)" if summary["fine_only_reused"] else ""
        found += [
            ("wall time fine-only", f"{summary['fine_only_wall_s']:.2f} s{again}"),
            ("speed-up", f"{summary['speedup']:.1f}"),
        ]
    return found


def _prices(price: Mapping[str, Any], accepted: int) -> list[tuple[str, str]]:
    shown = " / ".join("-" if price[name]["ms"] is None else f"{price[name]['ms']:.3g}" for name in SOURCES)
    solve, saved = price["fine_only_ms"], price["fine_head_saved_s"]
    found = [("one answer, coarse head / fine head / fine solver", f"{shown} ms")]
    if solve is not None:
        found += [("one solve of the fine-only run", f"{solve:.3g} ms")]
    if saved is None:
        return found
    share = f"{100 * accepted / price['surrogate_fine']['asked']:.0f} % of its answers were accepted"
    low, high = saved[0], saved[-1]
    if high < 0.0:
        said = f"solves would have cost {-high:.2f} s less at least: gate.fine_head: false leaves it out"
    elif low >= 0.0:
        said = f"it saved {low:.2f} s of solves at least"
    else:
        said = f"no clear gain: solves would have cost between {-low:.2f} s less and {high:.2f} s more"
    return [*found, ("the fine head", f"{share}; {said}")]


def _newtons(summary: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    return [(key, value) for key, value in summary["newton_iterations"].items() if value is not None]


def _listed(values: list[int]) -> str:
    return " ".join(str(v) for v in values)
