"""What a case promises in its `expected.toml`, held line by line against a run and its fine-only run.

[size]        points, windows: of the run that the numbers are for; a run of another size is not compared
[fine_only]   quantity: an array of `macro.npz`; values: its largest component after each window, to relative_tolerance;
              newton_iterations: of each window
[gated]       keys of the summary's `macro_error`: the most that each may be; share_above_tolerance of the audits: the
              most; speedup: the least; more_newton_iterations_per_step than the fine-only run: the most
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.errors import ConfigError

FILE = "expected.toml"
KEYS = {
    "size": {"points", "windows"},
    "fine_only": {"quantity", "values", "relative_tolerance", "newton_iterations"},
}
MORE_NEWTON = "more_newton_iterations_per_step"


@dataclass(frozen=True)
class Line:
    """One promise. timing: depends on the machine and what else runs on it"""

    what: str
    wanted: str
    found: str
    met: bool
    timing: bool = False

    def __str__(self) -> str:
        mark = "met    " if self.met else "not met"
        return f"{mark}  {self.what}: {self.found} (expected {self.wanted})"


def read(path: Path) -> dict[str, Any]:
    """The sections of a file. Raises: ConfigError for what is no TOML, and for keys that nobody compares."""
    try:
        sections = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    for name, section in sections.items():
        if name not in (*KEYS, "gated"):
            raise ConfigError(f"{path}: unknown section [{name}]; known: {', '.join([*KEYS, 'gated'])}")
        if unknown := sorted(set(section) - KEYS.get(name, set(section))):
            raise ConfigError(f"{path}: unknown key {unknown[0]!r} in [{name}]; known: {', '.join(sorted(KEYS[name]))}")
    return sections


def hold(path: Path, summary: Mapping[str, Any], reference: Path | None) -> tuple[list[Line], str]:
    """The promises of a file against a summary; where there are none to compare, or the file is wrong, what to say.

    reference: folder of the fine-only run
    """
    if not path.exists():
        return [], ""
    try:
        return _hold(read(path), path.name, summary, reference)
    except ConfigError as error:  # the run and its summary stay what they are
        return [], str(error)
    except (KeyError, OSError) as error:
        return [], f"{path}: cannot be compared, {error} is missing"


def _hold(
    wanted: Mapping[str, Any], name: str, summary: Mapping[str, Any], reference: Path | None
) -> tuple[list[Line], str]:
    if reference is None or summary["macro_error"] is None:
        return [], f"{name}: not compared, there is no fine-only run"
    size = wanted.get("size", {})
    if other := next((key for key, value in size.items() if summary[key] != value), None):
        return [], f"{name}: not compared, it is for {size[other]} {other}, this run has {summary[other]}"
    alone = list(fine_only(wanted["fine_only"], reference)) if "fine_only" in wanted else []
    return alone + list(gated(wanted.get("gated", {}), summary)), ""


def fine_only(wanted: Mapping[str, Any], reference: Path) -> Iterator[Line]:
    """The promises of [fine_only]. reference: folder of that run"""
    with np.load(reference / "macro.npz") as stored:
        found = stored[wanted["quantity"]]
        newton = [int(n) for n in stored["newton_iterations"]]
    values, limit = np.asarray(wanted["values"], dtype=np.float64), float(wanted["relative_tolerance"])
    ours = found.reshape(len(found), -1).max(axis=1)
    off = float(np.max(np.abs(ours / values - 1))) if ours.shape == values.shape else float("nan")
    name = wanted["quantity"].replace("_", " ")
    yield Line(f"fine-only {name}, relative difference", f"at most {limit:g}", f"{off:.2g}", off <= limit)
    if "newton_iterations" in wanted:
        asked = list(wanted["newton_iterations"])
        same = newton == asked
        wish, got = (f"{sum(n)} in all" if same else " ".join(str(i) for i in n) for n in (asked, newton))
        yield Line("fine-only Newton iterations", wish, got, same)


def gated(wanted: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[Line]:
    """The promises of [gated]."""
    for key, limit in wanted.items():
        if key == "speedup":
            found = summary["speedup"]
            met = found is not None and found >= limit
            yield Line("speed-up", f"at least {limit:g}", _number(found), met, timing=True)
        elif key == MORE_NEWTON:
            yield _newton(summary["newton_iterations"], int(limit))
        elif key == "share_above_tolerance":
            share = summary["audit"][key]
            yield Line("audits above the tolerance", f"at most {limit:g}", _number(share), _below(share, limit))
        elif key in summary["macro_error"]:
            error = summary["macro_error"][key]
            yield Line(f"error of {key.replace('_', ' ')}", f"at most {limit:g}", _number(error), _below(error, limit))
        else:
            known = ", ".join([*summary["macro_error"], "share_above_tolerance", "speedup", MORE_NEWTON])
            raise ConfigError(f"{FILE}: nothing measures {key!r} of [gated]; there are {known}")


def as_dict(lines: list[Line]) -> dict[str, Any]:
    """For the summary: whether all is met, timings aside, and each line."""
    return {"met": all(line.met or line.timing for line in lines), "lines": [asdict(line) for line in lines]}


def _newton(counts: Mapping[str, Any], limit: int) -> Line:
    ours, alone = counts["run"] or [], counts["fine_only"] or []
    more = max((a - b for a, b in zip(ours, alone, strict=False)), default=0)
    met = len(ours) == len(alone) and more <= limit
    return Line("more Newton iterations in a step than fine-only", f"at most {limit}", str(more), met)


def _below(found: float | None, limit: float) -> bool:
    return found is not None and found <= limit


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
