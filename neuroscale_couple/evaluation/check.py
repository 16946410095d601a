"""What can be found wrong with a case before it runs: configuration, macro script, micro structures, artifact, gate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroscale_couple.config.load import Loaded
from neuroscale_couple.errors import NeuroscaleError
from neuroscale_couple.evaluation import precice
from neuroscale_couple.ledger import ENDS, SOURCES, read_table
from neuroscale_couple.values import Points

if TYPE_CHECKING:
    from neuroscale_couple.physics.base import MicroProblem
    from neuroscale_couple.surrogate.base import Surrogate

RUNS = ("fine_only", "run", "cold")
"""Runs whose loads are looked at."""
MANY = 0.1
"""Share of answers outside the trained range from which on a run is held to be wrong."""
SAMPLE = 16
"""Micro structures that are made and looked at."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. what: a few words; said: what was found, and what to do if it is wrong."""

    good: bool
    what: str
    said: str


def check(loaded: Loaded, results: Path) -> Iterator[Finding]:
    """Look at everything that a run of this configuration needs; findings come as they are made."""
    yield Finding(True, "configuration", f"{loaded.path} is complete and consistent")
    yield _macro(loaded)
    yield _results(results)
    problem: MicroProblem | None = None
    try:
        problem = _problem(loaded)
    except NeuroscaleError as error:
        yield Finding(False, "micro problem", str(error))
    if problem is None:
        return
    grid = getattr(problem, "grid", None)
    yield Finding(True, "micro problem", f"{problem.name}" + (f" on {grid[1]} x {grid[0]} pixels" if grid else ""))
    yield from _stages(loaded, problem)
    if loaded.config.neuroscale.transport == "precice":
        yield from (Finding(*found) for found in precice.findings(loaded, problem))
    if loaded.config.neuroscale.fine.solver == "micro_manager":
        yield from _micro_simulations(loaded, problem)
        return
    yield _load_range(loaded, problem)
    yield from _loads(loaded, problem, results.parent)
    points, finding = _micro_structures(loaded, problem)
    yield finding
    if points is not None:
        yield _fine_solver(loaded, problem, points)
    surrogate, finding = _model(loaded, problem)
    yield finding
    if surrogate is not None and points is not None:
        yield _gate(loaded, problem, points, surrogate)


def _problem(loaded: Loaded) -> MicroProblem:
    from neuroscale_couple.physics import make_problem

    return make_problem(loaded.config.neuroscale.problem)


def _macro(loaded: Loaded) -> Finding:
    script = loaded.macro
    if loaded.config.neuroscale.transport == "precice" and script is None:
        return Finding(True, "macro solver", "is started by itself; it meets us through preCICE")
    if script is None:
        return Finding(True, "macro solver", "no script named: your solver calls connect() itself, `run` is not used")
    if not script.is_file():
        return Finding(False, "macro solver", f"no file {script}; correct neuroscale.macro in {loaded.path}")
    try:
        compile(script.read_text(encoding="utf-8"), str(script), "exec")
    except (SyntaxError, UnicodeDecodeError) as error:
        return Finding(False, "macro solver", f"{script} is not valid Python: {error}")
    return Finding(True, "macro solver", str(script))


def _results(folder: Path) -> Finding:
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Finding(
            False, "results", f"{existing} cannot be written; choose another folder with --out or output.folder"
        )
    return Finding(True, "results", f"go to {folder}")


def _load_range(loaded: Loaded, problem: MicroProblem) -> Finding:
    ranges, columns = loaded.config.neuroscale.training.load_range, problem.inputs.columns
    for name in ranges:
        if name not in columns:
            said = f"training.load_range.{name}: no such input; {problem.name} takes {', '.join(columns)}"
            return Finding(False, "training range", said)
    if missing := [name for name in columns if name not in ranges]:
        said = f"no range for {', '.join(missing)}; `train` needs training.load_range of every input"
        return Finding(loaded.model is None or loaded.model.exists(), "training range", said)
    return Finding(True, "training range", ", ".join(f"{k} {low:g}..{high:g}" for k, (low, high) in ranges.items()))


def _loads(loaded: Loaded, problem: MicroProblem, folder: Path) -> Iterator[Finding]:
    """What the macro solver asked in the last runs, and its initial values, against the training range."""
    ranges = loaded.config.neuroscale.training.load_range
    if not set(problem.inputs.columns) <= ranges.keys():
        return
    for name, value in loaded.config.neuroscale.precice.initial.items():
        if name in ranges and not ranges[name][0] <= value <= ranges[name][1]:
            yield Finding(False, "loads", f"precice.initial.{name} = {value:g} is outside training.load_range")
    known = {label: reached for label in RUNS if (reached := met(folder / label))}
    if not known:
        yield Finding(True, "loads", "not known before a run; `run --fine-only` measures them without a model")
        return
    outside = {label: text for label, reached in known.items() if (text := _beyond(reached, ranges))}
    if not outside:
        runs = ", ".join(known)
        yield Finding(True, "loads", f"those of the results that are there ({runs}) lie within training.load_range")
        return
    said = "; ".join(f"{label} reached {text}" for label, text in outside.items())
    share = max(_out_of_domain(folder / label) for label in RUNS)
    yield Finding(
        share <= MANY, "loads",
        f"{said}, beyond training.load_range: such points fall back to the fine solver ({100 * share:.2g} % of the "
        "answers of these runs); to spare them, widen the range and train again",
    )  # fmt: skip


def _out_of_domain(folder: Path) -> float:
    """Share of a run's answers that came from the fine solver because the question was no known ground."""
    table = read_table(folder / "ledger.csv")
    asked = sum(sum(table.get(f"answered_{name}", [])) for name in SOURCES)
    return float(sum(table.get("refused_out_of_domain", [])) / asked) if asked else 0.0


def met(folder: Path) -> dict[str, tuple[float, float]]:
    """Range of each input column over the windows of a run; empty if it is not known."""
    table = read_table(folder / "ledger.csv")
    lowest, highest = (
        {name.removeprefix(f"{end}_"): [v for v in cells if isinstance(v, float)]
         for name, cells in table.items() if name.startswith(f"{end}_")}
        for end in ENDS
    )  # fmt: skip
    return {name: (min(cells), max(highest[name])) for name, cells in lowest.items() if cells and highest.get(name)}


def _beyond(reached: Mapping[str, tuple[float, float]], ranges: Mapping[str, tuple[float, float]]) -> str:
    """The columns that leave their range, with where they go."""
    outside = []
    for name, (low, high) in reached.items():
        least, most = ranges.get(name, (-np.inf, np.inf))
        slack = 1e-6 * (most - least)
        if np.isfinite(slack) and not (least - slack <= low and high <= most + slack):
            outside.append(f"{name} {low:.4g}..{high:.4g}")
    return ", ".join(outside)


def _micro_structures(loaded: Loaded, problem: MicroProblem) -> tuple[Points | None, Finding]:
    from neuroscale_couple.physics.base import CellProblem
    from neuroscale_couple.physics.microstructure import generate

    ids = np.arange(SAMPLE, dtype=np.int64)
    if not isinstance(problem, CellProblem):
        return None, Finding(True, "micro structures", f"{problem.name} brings its own parameters; not checked here")
    settings = loaded.config.neuroscale.microstructure
    try:
        phase = generate(settings, ids, problem.grid[0], loaded.folder)
        problem.check_parameters({"phase": phase})
    except NeuroscaleError as error:
        return None, Finding(False, "micro structures", str(error))
    share = phase.mean(axis=(1, 2))
    said = f"{settings.kind}, {SAMPLE} looked at: inclusion share {share.min():.2f} to {share.max():.2f}"
    points = Points(ids, np.zeros((SAMPLE, 2)), np.ones(SAMPLE), {"phase": phase})
    return points, Finding(True, "micro structures", said)


def _micro_simulations(loaded: Loaded, problem: MicroProblem) -> Iterator[Finding]:
    """A case of the Micro Manager: its simulation, and what is done otherwise here."""
    from neuroscale_couple.config.micro_manager import replaced
    from neuroscale_couple.fine.micro_manager import look

    settings = loaded.config.neuroscale
    try:
        facts = look(settings.fine, problem)
        offers = [name for name, there in {"state": facts.restorable, "output": facts.outputs}.items() if there]
        said = f"{facts.name} of {settings.fine.micro.file} can be loaded"
        yield Finding(True, "micro simulation", said + (f"; it has {' and '.join(offers)}" if offers else ""))
        if settings.output.checkpoint:
            yield Finding(True, "checkpoint", _resumed(facts.restorable, problem.remembers))
    except NeuroscaleError as error:
        yield Finding(False, "micro simulation", str(error))
    file = loaded.path if settings.micro_manager is None else loaded.resolve(settings.micro_manager)
    if file.suffix == ".json":
        for said in replaced(file):
            yield Finding(True, "Micro Manager", said)
    gate = settings.gate
    promise = f"{100 * gate.confidence:g} % of the accepted answers within {100 * gate.tolerance:g} %"
    closed = "closed: every point is answered by its micro simulation"
    yield Finding(True, "gate", f"{promise}; --fine-only closes it" if gate.open else closed)


def _resumed(restorable: bool, remembers: bool) -> str:
    """What a resumed run does with micro simulations."""
    if not remembers:
        return "--resume builds the simulations anew: their answers depend on the inputs alone"
    if restorable:
        return "--resume goes on from the states that get_state gives, where they can be pickled"
    return "there is no get_state and set_state: --resume lets each simulation take all its earlier steps again"


def _fine_solver(loaded: Loaded, problem: MicroProblem, points: Points) -> Finding:
    from neuroscale_couple.fine import make_fine_solver

    config = loaded.config.neuroscale
    try:
        solver = make_fine_solver(config.fine, problem)
        solver.attach(points)
        if not config.training.load_range:
            return Finding(True, "fine solver", f"{config.fine.solver}; not tried, as training.load_range is empty")
        upper = [config.training.load_range.get(name, (0.0, 0.0))[1] for name in problem.inputs.columns]
        answer = solver.solve(np.arange(len(points), dtype=np.int64), np.tile(upper, (len(points), 1)))
    except NeuroscaleError as error:
        return Finding(False, "fine solver", str(error))
    if not answer.converged.all():
        row = int(np.flatnonzero(~answer.converged)[0])
        said = f"does not converge at the upper end of training.load_range: {solver.diagnosis(row)}"
        return Finding(False, "fine solver", said)
    mean = answer.iterations.mean()
    said = f"{config.fine.solver} converges at the upper end of the range, {mean:.0f} iterations a point"
    return Finding(True, "fine solver", said)


def _model(loaded: Loaded, problem: MicroProblem) -> tuple[Surrogate | None, Finding]:
    path = loaded.model
    if path is None:
        mode = loaded.config.neuroscale.learning.mode
        learns = "the run learns" if mode == "online" else f"and never learns (learning.mode is {mode})"
        return None, Finding(True, "model", f"none named: every point starts on the fine solver, {learns}")
    if not path.exists():
        said = f"no file {path}; make it with `neuroscale-couple train {loaded.path}`, or start without one: --cold"
        return None, Finding(False, "model", said)
    from neuroscale_couple import surrogate

    try:
        model = surrogate.load(path, problem, device=loaded.config.neuroscale.fine.device)
    except NeuroscaleError as error:
        return None, Finding(False, "model", str(error))
    if (narrow := _narrower(model.card.input_range, loaded, problem)) is not None:
        said = f"{path.name} was trained on {narrow}; train it again with `neuroscale-couple train {loaded.path}`"
        return model, Finding(False, "model", said)
    p95 = {k: v for k, v in model.card.metrics.items() if "p95" in k}
    errors = ", ".join(f"{name} {100 * value:.2f} %" for name, value in p95.items())
    return model, Finding(
        True, "model", f"{path.name} fits the micro problem; held-out error: {errors or 'not stated'}"
    )


def _narrower(trained: Sequence[tuple[float, float]], loaded: Loaded, problem: MicroProblem) -> str | None:
    """Where a model was trained on less than the configuration says, or None."""
    ranges = loaded.config.neuroscale.training.load_range
    for name, (low, high) in zip(problem.inputs.columns, trained, strict=True):
        least, most = ranges.get(name, (low, high))
        slack = 1e-6 * (most - least)
        if least < low - slack or most > high + slack:
            return f"{name} {low:g}..{high:g}, training.load_range says {least:g}..{most:g}"
    return None


def _stages(loaded: Loaded, problem: MicroProblem) -> Iterator[Finding]:
    """Gate stages and corrections that cannot be made."""
    from neuroscale_couple.correction import make_corrections
    from neuroscale_couple.gate import make_gate

    settings = loaded.config.neuroscale
    parts: dict[str, Callable[[], Any]] = {
        "gate stages": lambda: make_gate(settings.gate, problem),
        "correction": lambda: make_corrections(settings.correction, problem),
    }
    for what, make in parts.items():
        try:
            make()
        except NeuroscaleError as error:
            yield Finding(False, what, str(error))


def _gate(loaded: Loaded, problem: MicroProblem, points: Points, model: Surrogate) -> Finding:
    from neuroscale_couple.gate import make_gate

    settings = loaded.config.neuroscale.gate
    logging.disable(logging.WARNING)  # what the gate would log is said in the finding
    try:
        gate: Any = make_gate(settings.model_copy(update={"open": True}), problem, None)
        gate.attach(points, model.card)
    except NeuroscaleError as error:
        return Finding(False, "gate", str(error))
    finally:
        logging.disable(logging.NOTSET)
    stage = gate.stages.get("uncertainty")
    promise = f"{100 * settings.confidence:g} % of the accepted answers within {100 * settings.tolerance:g} %"
    if stage is None:
        return Finding(True, "gate", f"has no 'uncertainty' stage: nothing is promised about the error ({promise})")
    if not stage.thresholds:
        return Finding(False, "gate", f"cannot promise {promise}: {gate.message}")
    shares = []
    for rung, threshold in stage.thresholds.items():
        score = np.array(model.card.calibration[rung.name.lower()].score)
        shares.append(f"{rung.name.lower()} {100 * np.mean(score <= threshold):.0f} %")
    return Finding(True, "gate", f"promises {promise}; of the held-out answers it accepts: {', '.join(shares)}")
