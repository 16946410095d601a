"""The report of a run: one HTML file that needs nothing beside it, and its pictures as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from neuroscale_couple.config.load import Loaded, dump
from neuroscale_couple.errors import NeuroscaleError
from neuroscale_couple.evaluation import figures
from neuroscale_couple.evaluation.figures import Run
from neuroscale_couple.evaluation.summary import rows

# file name, drawing, title, caption
PICTURES: tuple[tuple[str, Callable[[Run], Figure | None], str, str], ...] = (
    ("macro_field", figures.macro_field, "Macro field", "The macro solver's result in the last window."),
    (
        "fallback_map",
        figures.fallback_map,
        "Where the points fell back",
        "Every coupling point, coloured by who gave the answer that the macro solver converged with.",
    ),
    (
        "shares",
        figures.shares,
        "Fallback share over time",
        "All answers of all iterations; 'held': the fine solver had already answered the point in this window.",
    ),
    (
        "audit_errors",
        figures.audit_errors,
        "Audited error against the tolerance",
        "Accepted answers that the fine solver solved as well, chosen at random; they measure the true error.",
    ),
    ("parity", figures.parity, "Predicted against fine", "The audited answers, component by component."),
    ("response", figures.response, "Macro response", "What the macro solver makes of the answers."),
    (
        "timing",
        figures.timing,
        "Wall time",
        "Exclusive times of the slowest rank; the macro solver's own work is grey.",
    ),
)


def write_report(
    target: Path, folder: Path, reference: Path | None, summary: Mapping[str, Any], loaded: Loaded
) -> Path:
    """Write `report.html` and `pictures/*.png` to `target`; returns the report's path.

    folder, reference: results of the run and of the fine-only run
    """
    run = Run(folder, reference, summary, units_of(loaded))
    drawn = []
    (target / "pictures").mkdir(parents=True, exist_ok=True)
    for name, draw, title, caption in PICTURES:
        figure = draw(run)
        if figure is None:
            (target / "pictures" / f"{name}.png").unlink(missing_ok=True)
            continue
        png = _png(figure)
        (target / "pictures" / f"{name}.png").write_bytes(png)
        drawn.append({"title": title, "caption": caption, "png": base64.b64encode(png).decode()})
    (target / "pictures" / "overview.png").unlink(missing_ok=True)
    if (whole := figures.overview(run)) is not None:
        (target / "pictures" / "overview.png").write_bytes(_png(whole))
    model, metrics = model_metrics(loaded)
    here = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=here, autoescape=True).get_template("report.html.jinja")
    html = template.render(
        title=f"{loaded.case}: {folder.name}",
        lead=lead(summary),
        rows=rows(summary),
        figures=drawn,
        model=model,
        metrics=metrics,
        machine=[*summary["machine"].items(), *summary["versions"].items()],
        config=dump(loaded.config),
    )
    path = target / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def lead(summary: Mapping[str, Any]) -> str:
    """The result in one or two sentences."""
    answered = summary["answered"]
    asked = answered["surrogate_coarse"] + answered["surrogate_fine"] + answered["fine"]
    said = [f"The surrogate answered {asked - answered['fine']:,} of {asked:,} questions"]
    if summary["speedup"] is not None:
        said[0] += f", {summary['speedup']:.1f} times as fast as the fine solver alone"
    audit = summary["audit"]
    if audit["n"]:
        above = 100 * audit["share_above_tolerance"]
        said.append(
            f"Of {audit['n']} audited answers {above:.1f} % exceeded the tolerance of {100 * summary['tolerance']:g} %"
            f" ({100 * (1 - summary['confidence']):.3g} % are allowed)"
        )
    if summary["macro_error"]:
        errors = ", ".join(f"{100 * v:.3f} % ({k.replace('_', ' ')})" for k, v in summary["macro_error"].items())
        said.append(f"Against the fine-only run the macro solution differs by {errors}")
    return ". ".join(said) + "."


def units_of(loaded: Loaded) -> dict[str, str]:
    """Unit of each output field, and its first component as `<field>.first`; empty if the problem cannot be made."""
    from neuroscale_couple.physics import make_problem

    try:
        fields = make_problem(loaded.config.neuroscale.problem).outputs.fields
    except NeuroscaleError:
        return {}
    return {f.name: f.unit for f in fields} | {f"{f.name}.first": f.components[0] for f in fields}


def model_metrics(loaded: Loaded) -> tuple[str, list[tuple[str, str]]]:
    """Name of the artifact and the held-out errors on its card; nothing if there is none or it does not fit."""
    from neuroscale_couple import surrogate
    from neuroscale_couple.physics import make_problem

    if loaded.model is None or not loaded.model.exists():
        return "", []
    try:
        card = surrogate.load(loaded.model, make_problem(loaded.config.neuroscale.problem), device="cpu").card
    except NeuroscaleError:
        return "", []
    return loaded.model.name, [(name, f"{value:.5g}") for name, value in sorted(card.metrics.items())]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
