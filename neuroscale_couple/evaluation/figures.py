"""The pictures of a run; each takes what is on the disk and returns a figure, or None for nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import meshio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from neuroscale_couple.evaluation.fields import read_points, windows_of
from neuroscale_couple.ledger import REFUSALS, SOURCES, read_table
from neuroscale_couple.reasons import Source

# Okabe & Ito's palette: told apart with any colour vision, and in grey.
COLOURS = {"surrogate_coarse": "#0072B2", "surrogate_fine": "#56B4E9", "fine": "#D55E00"}
NAMES = {"surrogate_coarse": "coarse head", "surrogate_fine": "fine head", "fine": "fine solver"}
STAGE_COLOURS = {
    "fine": "#D55E00", "surrogate": "#0072B2", "gate": "#E69F00", "correction": "#CC79A7",
    "transport": "#56B4E9", "learning": "#009E73", "macro solver and output": "#BBBBBB",
}  # fmt: skip
REASON_COLOURS = ("#999999", "#BBBBBB", "#E69F00", "#0072B2", "#D55E00", "#000000", "#CC79A7", "#009E73", "#F0E442")
PANELS = 8


@dataclass(frozen=True)
class Run:
    """The results of one run, as its folder holds them, and of the fine-only run beside it."""

    folder: Path
    reference: Path | None
    summary: Mapping[str, Any]
    units: Mapping[str, str]

    @property
    def ledger(self) -> dict[str, np.ndarray[Any, Any]]:
        """Columns of `ledger.csv`."""
        return {name: np.array(values) for name, values in read_table(self.folder / "ledger.csv").items()}

    @property
    def audits(self) -> dict[str, np.ndarray[Any, Any]]:
        """Columns of `audits.csv`."""
        return {name: np.array(values) for name, values in read_table(self.folder / "audits.csv").items()}


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_size(9)
        ax.yaxis.label.set_size(9)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain_numbers(*axes: Axis) -> None:
    """Ticks of a logarithmic axis as 0.1, 1, 10."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def macro_field(run: Run) -> Figure | None:
    """The deformed macro mesh, coloured by its stress or flux (first component) and by displacement or temperature."""
    found = windows_of(run.folder / "macro", _series_in(run.folder / "macro"))
    if not found:
        return None
    mesh = meshio.read(found[-1][2])
    cells = [block.data for block in mesh.cells if block.type in ("quad", "triangle")]
    if not cells:
        return None
    moved = np.asarray(mesh.point_data.get("displacement", np.zeros_like(mesh.points)))
    factor = _warp_factor(mesh.points, moved)
    shape = mesh.points[:, :2] + factor * moved[:, :2]
    flux = next((name for name in ("stress", "flux") if name in mesh.cell_data), None)
    figure, axes = _figure(10.2, 4.2, 2)
    left, right = axes.flat
    if flux is not None:
        values = np.concatenate([np.asarray(part).reshape(len(part), -1)[:, 0] for part in mesh.cell_data[flux]])
        polygons = [shape[cell] for block in cells for cell in block]
        drawn: Any = PolyCollection(polygons, array=values, cmap="viridis", edgecolor="face", linewidth=0.3)
        left.add_collection(drawn)
        label = f"{flux} {run.units.get(flux + '.first', '')} [{run.units.get(flux, '')}]"
        figure.colorbar(drawn, ax=left, shrink=0.85).set_label(label, fontsize=9)
    triangles = np.concatenate([block[:, [0, i, i + 1]] for block in cells for i in range(1, block.shape[1] - 1)])
    size, label = _nodal(mesh, moved)
    drawn = right.tripcolor(shape[:, 0], shape[:, 1], triangles, size, shading="gouraud", cmap="cividis")
    figure.colorbar(drawn, ax=right, shrink=0.85).set_label(label, fontsize=9)
    for ax in (left, right):
        ax.autoscale_view()
        ax.set(aspect="equal", xlabel="x [m]", ylabel="y [m]")
    drawn_how = f", displacement drawn {factor:g} times" if moved.any() else ""
    figure.suptitle(f"window {found[-1][0] + 1}, t = {found[-1][1]:g}{drawn_how}", fontsize=10)
    return figure


def _nodal(mesh: meshio.Mesh, moved: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """The nodal values to draw, and their label."""
    if "temperature" in mesh.point_data:
        return np.asarray(mesh.point_data["temperature"]).ravel(), "temperature [K]"
    return 1e3 * np.linalg.norm(moved, axis=1), "displacement [mm]"


def _series_in(folder: Path) -> str:
    return next((path.stem for path in sorted(folder.glob("*.pvd"))), "macro")


def _warp_factor(points: np.ndarray[Any, Any], moved: np.ndarray[Any, Any]) -> float:
    largest = float(np.linalg.norm(moved, axis=1).max(initial=0.0))
    if largest == 0.0:
        return 1.0
    wanted = 0.06 * float(np.ptp(points[:, :2], axis=0).max()) / largest
    return float(f"{max(1.0, wanted):.1g}")


def fallback_map(run: Run) -> Figure | None:
    """Where the points fell back: the points coloured by who answered them, for up to eight windows."""
    found = windows_of(run.folder / "fields", "points")
    if not found:
        return None
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(PANELS, len(found))).round().astype(int))]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = _figure(2.6 * columns + 0.4, 2.6 * rows + 0.5, columns, rows, sharex=True, sharey=True)
    used: set[str] = set()
    for ax, (window, _, path) in zip(axes.flat, chosen, strict=False):
        used |= _draw_map(ax, window, path)
    for ax in list(axes.flat)[len(chosen) :]:
        ax.set_visible(False)
    _source_legend(figure, [name for name in SOURCES if name in used])
    figure.supxlabel("x [m]", fontsize=9)
    figure.supylabel("y [m]", fontsize=9)
    return figure


def _draw_map(ax: Axes, window: int, path: Path) -> set[str]:
    """The points of a window, coloured by who answered; returns the names of those who did."""
    coordinates, values = read_points(path)
    source = np.asarray(values["source"]).ravel().astype(int)
    size = float(np.clip(4000 / len(source), 0.5, 12))
    for kind in Source:
        rows = source == kind
        x, y = coordinates[rows, 0], coordinates[rows, 1]
        big = 1.6 if kind is Source.FINE else 1.0
        ax.scatter(x, y, s=size * big, c=COLOURS[kind.name.lower()], linewidths=0, zorder=int(kind))
    ax.set_title(f"window {window + 1}: {100 * np.mean(source == Source.FINE):.1f} % fine", fontsize=8)
    ax.set_aspect("equal")
    return {SOURCES[kind] for kind in set(source.tolist())}


def _source_legend(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS[n], label=NAMES[n]) for n in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)


def shares(run: Run) -> Figure | None:
    """Who answered, and why points were refused, per window."""
    ledger = run.ledger
    if not len(ledger.get("window", [])):
        return None
    window = ledger["window"] + 1
    asked = np.maximum(sum(ledger[f"answered_{name}"] for name in SOURCES), 1)
    figure, axes = _figure(9.6, 3.4, 2)
    left, right = axes.flat
    bottom = np.zeros(len(window))
    for name in SOURCES:
        share = 100 * ledger[f"answered_{name}"] / asked
        left.bar(window, share, bottom=bottom, color=COLOURS[name], width=0.8, label=NAMES[name])
        bottom += share
    left.set(ylabel="share of point-iterations [%]", ylim=(0, 100))
    left.set_title("who answered", fontsize=9)
    _reasons(right, ledger, window, asked)
    for ax in (left, right):
        ax.set_xlabel("window", fontsize=9)
        ax.yaxis.label.set_size(9)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)
    return figure


def _reasons(ax: Axes, ledger: Mapping[str, Any], window: Any, asked: Any) -> None:
    bottom = np.zeros(len(window))
    for name, colour in zip(REFUSALS, cycle(REASON_COLOURS), strict=False):
        share = 100 * ledger[f"refused_{name}"] / asked
        if share.any():
            ax.bar(window, share, bottom=bottom, color=colour, width=0.8, label=name.replace("_", " "))
            bottom += share
    if not bottom.any():
        ax.text(0.5, 0.5, "no point was refused", transform=ax.transAxes, ha="center", fontsize=9)
    ax.set(ylabel="refused point-iterations [%]", xlim=(window.min() - 0.6, window.max() + 0.6))
    ax.set_title("why points were refused", fontsize=9)


def audit_errors(run: Run) -> Figure | None:
    """Every audit as a dot: its true error by window, against the tolerance."""
    audits = run.audits
    if not len(audits.get("error", [])):
        return None
    figure, axes = _figure(9.6, 3.4, 2, width_ratios=(2, 1))
    left, right = axes.flat
    ends = _draw_audits(left, run, audits)
    for name in SOURCES:
        rows = audits["source"] == name
        estimate, error = 100 * audits["estimate"][rows], 100 * audits["error"][rows]
        right.scatter(estimate, error, s=9, color=COLOURS[name], alpha=0.7, linewidths=0)
    right.plot(ends, ends, color="black", linewidth=0.8)
    right.axhline(100 * run.summary["tolerance"], color="black", linewidth=1, linestyle="--")
    right.set(xscale="log", yscale="log", ylim=ends, xlabel="estimated error [%]", ylabel="true relative error [%]")
    _plain_numbers(right.xaxis, right.yaxis)
    right.set_title("below the line: the estimate held", fontsize=9)
    left.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=4)
    return figure


def _draw_audits(ax: Axes, run: Run, audits: Mapping[str, Any]) -> tuple[float, float]:
    """Errors of the audits by window; returns the ends of the error axis, %."""
    tolerance = 100 * run.summary["tolerance"]
    spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(audits["error"]))
    for name in SOURCES:
        rows = audits["source"] == name
        if rows.any():
            x, y = audits["window"][rows] + 1 + spread[rows], 100 * audits["error"][rows]
            ax.scatter(x, y, s=9, color=COLOURS[name], alpha=0.7, linewidths=0, label=NAMES[name])
    ax.axhline(tolerance, color="black", linewidth=1, linestyle="--", label=f"tolerance {tolerance:g} %")
    low = max(1e-3, 0.5 * float(100 * audits["error"].min()))
    high = 2 * max(tolerance, float(100 * audits["error"].max()))
    ax.set(yscale="log", ylim=(low, high), xlabel="window", ylabel="true relative error [%]")
    _plain_numbers(ax.yaxis)
    ax.set_title(f"{len(spread)} audits", fontsize=9)
    return low, high


def parity(run: Run) -> Figure | None:
    """Predicted against fine for every audited output."""
    audits = run.audits
    names = [key.removeprefix("fine.") for key in audits if key.startswith("fine.")]
    if not names or not len(audits["error"]):
        return None
    figure, axes = _figure(3.2 * len(names), 3.3, len(names))
    for ax, name in zip(axes.flat, names, strict=True):
        truth, predicted = audits[f"fine.{name}"], audits[f"predicted.{name}"]
        ends = np.array([min(truth.min(), predicted.min()), max(truth.max(), predicted.max())])
        ax.plot(ends, ends, color="black", linewidth=0.8)
        for source in SOURCES:
            rows = audits["source"] == source
            if rows.any():
                ax.scatter(truth[rows], predicted[rows], s=9, color=COLOURS[source], alpha=0.7, linewidths=0)
        unit = run.units.get(name.partition(".")[0], "")
        ax.set_xlabel(f"fine solver, {name} [{unit}]", fontsize=9)
        ax.set_ylabel(f"surrogate [{unit}]", fontsize=9)
    return figure


def timing(run: Run) -> Figure | None:
    """Where the wall time went, against the fine-only run."""
    figure, axes = _figure(9.6, 2.2 if run.summary["speedup"] is not None else 1.7)
    _draw_timing(axes.flat[0], run)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _draw_timing(ax: Axes, run: Run) -> None:
    bars = [("this run", run.folder, run.summary["wall_s"]["total"])]
    if run.reference is not None and run.summary["fine_only_wall_s"] is not None:
        bars.append(("fine-only", run.reference, run.summary["fine_only_wall_s"]))
    for row, (_, folder, wall) in enumerate(bars):
        ledger = read_table(folder / "ledger.csv")
        seconds = {s: float(np.sum(ledger.get(f"seconds_{s}", [0.0]))) for s in STAGE_COLOURS if " " not in s}
        seconds["macro solver and output"] = max(0.0, wall - sum(seconds.values()))
        left = 0.0
        for stage, colour in STAGE_COLOURS.items():
            ax.barh(row, seconds[stage], left=left, color=colour, height=0.62, label=stage if row == 0 else None)
            left += seconds[stage]
        ax.text(left, row, f"  {wall:.2f} s", va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.16)
    ax.set_xlabel("wall time [s]", fontsize=9)
    if run.summary["speedup"] is not None:
        ax.set_title(f"{run.summary['speedup']:.1f} times as fast as fine-only", fontsize=10)


def overview(run: Run) -> Figure | None:
    """One picture for a page: where the points fell back, the audited error, the wall time."""
    found, audits = windows_of(run.folder / "fields", "points"), run.audits
    if not found or not len(audits.get("error", [])):
        return None
    figure, axes = _figure(11.0, 3.5, 3, width_ratios=(1, 1.1, 1.25))
    where, errors, seconds = axes.flat
    used = _draw_map(where, found[-1][0], found[-1][2])
    where.set(xlabel="x [m]", ylabel="y [m]")
    _draw_audits(errors, run, audits)
    _draw_timing(seconds, run)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dots: list[Any] = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[n], label=NAMES[n]) for n in SOURCES if n in used
    ]
    tolerance = f"tolerance {100 * run.summary['tolerance']:g} %"
    line = [Line2D([], [], color="black", linestyle="--", linewidth=1, label=tolerance)]
    stages = [Patch(color=colour, label=stage) for stage, colour in STAGE_COLOURS.items()]
    figure.legend(handles=[*dots, *line, *stages], loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def response(run: Run) -> Figure | None:
    """The macro solver's reaction force over the windows, and its difference from the fine-only run."""
    ours = _reaction(run.folder)
    truth = _reaction(run.reference) if run.reference is not None else None
    if ours is None:
        return None
    force, unit = ours
    window = np.arange(1, len(force) + 1)
    compared = truth is not None and len(truth[0]) == len(force)
    figure, axes = _figure(9.6 if compared else 4.8, 3.1, 2 if compared else 1)
    left = axes.flat[0]
    if truth is not None and compared:
        left.plot(window, truth[0], "s", color="black", fillstyle="none", markersize=9, label="fine-only")
        right = axes.flat[1]
        right.bar(window, 100 * (force / truth[0] - 1), color="#0072B2", width=0.7)
        right.axhline(0, color="black", linewidth=0.8)
        right.set(xlabel="window", ylabel="difference from fine-only [%]")
    left.plot(window, force, "o-", color="#0072B2", label="this run", markersize=5)
    left.set(xlabel="window", ylabel=f"reaction force [{unit}]" if unit else "reaction force")
    left.legend(fontsize=8, frameon=False)
    return figure


def _reaction(folder: Path) -> tuple[np.ndarray[Any, Any], str] | None:
    """Size of the reaction force of each window, and its unit."""
    try:
        with np.load(folder / "macro.npz") as stored:
            force = stored["reaction_force"].reshape(len(stored["reaction_force"]), -1)
            unit = str(stored["reaction_force_unit"]) if "reaction_force_unit" in stored else ""
    except (OSError, KeyError):
        return None
    return np.linalg.norm(force, axis=1), unit
