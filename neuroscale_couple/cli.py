"""The command line: `neuroscale-couple run | serve | check | train | report`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from neuroscale_couple import assemble, parallel
from neuroscale_couple.config.load import Loaded, dump, load, parse_value
from neuroscale_couple.errors import ConfigError, NeuroscaleError

if TYPE_CHECKING:
    from neuroscale_couple.evaluation.summary import RunRecord

FINE_ONLY = {"model": None, "gate.open": False, "gate.audit": 0.0, "learning.mode": "off"}
COLD = {"model": None, "learning.mode": "online"}

console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. An error ends all ranks, non-zero, with a plain message."""
    args = parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded: a waiting thread frees its core
    with parallel.abort_on_error():
        try:
            return int(args.command(args))
        except KeyboardInterrupt:
            go_on = "; with --resume it goes on after the last committed window" if hasattr(args, "resume") else ""
            sys.stderr.write(f"neuroscale-couple: interrupted{go_on}\n")
            raise SystemExit(130) from None
        except Exception as error:
            if args.debug:
                raise
            told = plain(error)
            parallel.end_job(told)  # several ranks: says it once and ends all of them
            sys.stdout.flush()
            sys.stderr.write(f"neuroscale-couple: error: {told}\n")
            return 1


def plain(error: Exception) -> NeuroscaleError:
    """An error that reads as one plain message; one that is not ours names where it came from."""
    if isinstance(error, NeuroscaleError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename}, line {last.lineno}; --debug shows the whole traceback"
    return NeuroscaleError(f"{type(error).__name__}: {error} ({where})")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="neuroscale-couple", description=(__doc__ or "").splitlines()[0])
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, target: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("target", metavar=target, type=Path)
        sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config")
        sub.add_argument("--out", metavar="DIR", type=Path, help="folder of the results (output.folder)")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    run = add("run", run_command, "run the macro script of a case with the service in its process", "CASE.yaml")
    run.add_argument("--compare", action="store_true", help="make the fine-only run too, and write summary and report")
    run.add_argument("--reuse", action="store_true", help="take an earlier fine-only run of the same configuration")
    run.add_argument("--cold", action="store_true", help="start without a model and learn during the run")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--macro", action="store_true", help="with `transport: precice`: be the macro solver's side")
    serve = add("serve", serve_command, "be the service of `transport: mpi` or `socket`", "CASE.yaml")
    serve.add_argument("--socket", metavar="PATH", type=Path, help="wait for the solver at a socket of this node")
    serve.add_argument("--client", action="store_true", help="serve the client (csrc/client) that spawned this by MPI")
    serve.add_argument("--precice-names", action="store_true", help="tell the client how its fields are called there")
    serve.add_argument("--ranks", metavar="N", type=int, default=0, help="ranks of the solver that come to the socket")
    serve.add_argument("--wait", metavar="SECONDS", type=float, help="for the solver to come; without it, for ever")
    serve.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    serve.add_argument("--label", metavar="NAME", help="name of the results folder inside the case's")
    for sub in (run, serve):
        sub.add_argument("--fine-only", action="store_true", help="make the run that others are compared with, alone")
    add("check", check_command, "find what is wrong with a case before it runs", "CASE.yaml")
    add("train", train_command, "make the data and train the model of a case", "CASE.yaml")
    add("report", report_command, "write the report of a finished run again", "CASE.yaml")
    return top


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keys given by --set and --out. Raises: ConfigError."""
    found: dict[str, Any] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text}: expected KEY=VALUE, e.g. --set gate.tolerance=0.01")
        found[key.strip()] = parse_value(value)
    if args.out is not None:
        found["output.folder"] = str(args.out)
    return found


# -- run ---------------------------------------------------------------------------------------------------------


def run_command(args: argparse.Namespace) -> int:
    """`run`: one run, or a fine-only run and the run to compare."""
    given = overrides_of(args)
    overrides = given | (COLD if args.cold else FINE_ONLY if args.fine_only else {})
    loaded = load(args.target, overrides)
    if args.fine_only and (args.compare or args.cold):
        raise ConfigError("--fine-only is a run of its own: leave out --compare and --cold")
    if loaded.macro is None and loaded.config.neuroscale.transport not in ("replay", "precice"):
        raise ConfigError(f"{loaded.path}: neuroscale.macro names no script; `run` needs one, e.g. macro: plate.py")
    if args.compare and loaded.config.neuroscale.transport != "embedded":
        raise ConfigError(
            f"{loaded.path}: --compare needs transport: embedded; make the two runs one by one, the first with "
            "--fine-only on both sides, and then `neuroscale-couple report`"
        )
    if args.resume and not loaded.config.neuroscale.output.checkpoint:
        raise ConfigError(
            f"{loaded.path}: --resume needs the checkpoints of the earlier run, but neuroscale.output.checkpoint is "
            "false: set it to true, in both runs"
        )
    label = "cold" if args.cold else "fine_only" if args.fine_only else "run"
    quiet_other_ranks()
    say(f"[bold]{escape(loaded.case)}[/]: the resolved configuration", escape(dump(loaded.config).rstrip()))
    if args.macro:
        run_macro(loaded, overrides, label, args.resume)
        return 0
    reused = False
    if args.compare:
        reused = run_fine_only(args, given | FINE_ONLY)
    run_once(args, overrides, label)
    if is_root() and not args.fine_only:
        finish(loaded, label, reused if args.compare else None)
    return 0


def run_macro(loaded: Loaded, overrides: dict[str, Any], label: str, resume: bool) -> None:
    """Execute the macro script alone: the service is another program, which measures and reports."""
    if loaded.macro is None or loaded.config.neuroscale.transport != "precice":
        raise ConfigError(f"{loaded.path}: --macro needs a script (neuroscale.macro) and transport: precice")
    former = assemble.run_options
    resume = resume and (results(loaded, label) / "checkpoint").exists()  # as the service decides, see run_once
    assemble.run_options = assemble.RunOptions(overrides, resume, label)
    try:
        execute(loaded.macro, loaded.path)
    finally:
        assemble.run_options = former


def run_fine_only(args: argparse.Namespace, overrides: dict[str, Any]) -> bool:
    """The run that the other is measured against; returns whether an earlier one was taken."""
    from neuroscale_couple.evaluation.summary import RunRecord

    loaded = load(args.target, overrides)
    folder = results(loaded, "fine_only")
    old = RunRecord.load(folder)
    if (args.reuse or args.resume) and old is not None and old.finished and old.same_run(record(loaded, "fine_only")):
        say(f"fine-only: taking the finished run in {folder} (same configuration, script, ranks and threads)")
        return True
    run_once(args, overrides, "fine_only")
    return False


def run_once(args: argparse.Namespace, overrides: dict[str, Any], label: str) -> None:
    """Execute the macro script in this process, on every rank, and write down how long it took."""
    loaded = load(args.target, overrides)
    folder = results(loaded, label)
    resume = args.resume and (folder / "checkpoint").exists()
    if is_root():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").unlink(missing_ok=True)
    say(
        f"[bold]{label}[/]: {escape(str(loaded.macro or loaded.config.neuroscale.replay or 'through preCICE'))}"
        + (" (resumed)" if resume else "")
    )
    startup = preload()
    former = assemble.run_options
    assemble.run_options = assemble.RunOptions(overrides, resume, label)
    start = time.perf_counter()
    try:
        if loaded.config.neuroscale.transport == "precice":
            assemble.participate(loaded.path)
        elif loaded.config.neuroscale.transport == "replay" or loaded.macro is None:
            assemble.replay(loaded.path)
        else:
            execute(loaded.macro, loaded.path)
    finally:
        assemble.run_options = former
    wall = time.perf_counter() - start
    if is_root():
        if resume:
            from neuroscale_couple.ledger import read_table

            wall = sum(read_table(folder / "ledger.csv").get("seconds_total", []))
        measured = {"wall_s": wall, "startup_s": startup, "resumed": resume, "finished": True}
        record(loaded, label, **measured).save(folder)
    say(f"[bold]{label}[/]: done in {wall:.2f} s, results in {escape(str(folder))}")


def execute(script: Path, config: Path) -> None:
    """Run a macro script as `python script config` would."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), str(config)]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise NeuroscaleError(f"the macro script {script} ended with {leaving.code!r}") from None
    finally:
        sys.argv, sys.path[:] = argv, path


def preload() -> float:
    """Import what runs need, so that the first of two compared runs does not pay for both; seconds it took."""
    start = time.perf_counter()
    for name in ("torch", "scipy.sparse.linalg", "meshio", "skfem", "mapie.risk_control", "neuroscale_couple.loop"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return time.perf_counter() - start


def finish(loaded: Loaded, label: str, reused: bool | None) -> None:
    """Write summary and report; reused: None if there was no fine-only run to compare with."""
    from neuroscale_couple.evaluation import expected
    from neuroscale_couple.evaluation.report import write_report
    from neuroscale_couple.evaluation.summary import summarise, table

    folder = results(loaded, label)
    reference = results(loaded, "fine_only") if reused is not None else None
    gate = loaded.config.neuroscale.gate.model_dump()
    summary = summarise(folder, gate, reference, bool(reused))
    target = folder.parent if label == "run" else folder
    promised, said = expected.hold(loaded.folder / expected.FILE, summary, reference) if label == "run" else ([], "")
    if promised:
        summary["expected"] = expected.as_dict(promised)
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(table(summary, f"{loaded.case}, {label}"))
    report = write_report(target, folder, reference, summary, loaded)
    say(*(escape(str(line)) for line in promised), *([said] if said else []))
    say(f"summary: {target / 'summary.json'}", f"report:  {report}")


def results(loaded: Loaded, label: str) -> Path:
    """Folder of a run."""
    return Path(loaded.config.neuroscale.output.folder) / loaded.case / label


def record(loaded: Loaded, label: str, **measured: Any) -> RunRecord:
    """What identifies a run, and what was measured around it."""
    from neuroscale_couple.evaluation.summary import RunRecord, script_digest

    threads = int(os.environ.get("OMP_NUM_THREADS", "0").split(",")[0] or 0) or len(os.sched_getaffinity(0))
    ranks = max(1, parallel.launched_size())
    return RunRecord(label, loaded.digest, script_digest(loaded.macro), ranks, threads, **measured)


# -- the other commands ------------------------------------------------------------------------------------------


def serve_command(args: argparse.Namespace) -> int:
    """`serve`: answer a macro solver of the same MPI job, or at a socket of this node."""
    overrides, label = overrides_of(args), "run"
    if args.fine_only:
        overrides, label = overrides | FINE_ONLY, "fine_only"
    assemble.run_options = assemble.RunOptions(overrides, args.resume, args.label or label)
    if args.precice_names:
        return assemble.tell_precice_names(args.target)
    if args.client:
        assemble.serve_client(args.target)
    elif (socket := args.socket or socket_of(load(args.target, overrides))) is not None:
        assemble.serve_socket(args.target, socket, args.ranks, args.wait)
    else:
        assemble.serve(args.target)
    return 0


def socket_of(loaded: Loaded) -> Path | None:
    """Where a service that is started by hand waits with `transport: socket`, else None. Raises: ConfigError."""
    settings = loaded.config.neuroscale
    if settings.transport != "socket":
        return None
    if settings.socket is None:
        raise ConfigError(
            f"{loaded.path}: with transport: socket the solver starts the service; to start it by hand give both the "
            "same path: neuroscale.socket, or --socket PATH here"
        )
    return Path(settings.socket)


def check_command(args: argparse.Namespace) -> int:
    """`check`: a list of findings; status 1 if one is wrong."""
    from neuroscale_couple.evaluation.check import check

    loaded = load(args.target, overrides_of(args))
    wrong = 0
    for finding in check(loaded, results(loaded, "run")):
        mark = "[green]✓[/]" if finding.good else "[red]✗[/]"
        console.print(f"{mark} {finding.what + ':':<18} {escape(finding.said)}")
        wrong += not finding.good
    console.print("all good" if not wrong else f"[red]{wrong} to put right[/]")
    return int(wrong > 0)


def train_command(args: argparse.Namespace) -> int:
    """`train`: data and model of the case, to the path that the config names."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from neuroscale_couple import training

    loaded = load(args.target, overrides_of(args))
    if loaded.model is None:
        raise ConfigError(f"{loaded.path}: neuroscale.model names no file for the trained model, e.g. model: model.pt")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        path = training.train_case(loaded.config.neuroscale, loaded.folder, progress)
    say(f"model: {path}")
    return 0


def report_command(args: argparse.Namespace) -> int:
    """`report`: summary and report of the results that are there."""
    from neuroscale_couple.evaluation.summary import incomparable

    loaded = load(args.target, overrides_of(args))
    found = False
    for label in ("run", "cold"):
        folder = results(loaded, label)
        if (folder / "ledger.csv").exists():
            if (why := incomparable(folder, results(loaded, "fine_only"), FINE_ONLY)) is not None:
                say(f"{label}: not compared, {escape(why)}")
            finish(as_it_ran(loaded, folder), label, False if why is None else None)
            found = True
    if not found:
        raise ConfigError(f"no results in {results(loaded, 'run').parent}; run the case first, or give --out")
    return 0


def as_it_ran(loaded: Loaded, folder: Path) -> Loaded:
    """The configuration that a run was made with, options of the command line included; results stay where they are."""
    try:
        ran = load(folder / "neuroscale.resolved.yaml", {"output": loaded.config.neuroscale.output.model_dump()})
    except ConfigError:
        return loaded
    return replace(loaded, config=ran.config, digest=ran.digest)


def is_root() -> bool:
    """Whether this rank writes and talks."""
    if parallel.launched_size() <= 1:
        return True
    return int(assemble.split_world("macro").local.Get_rank()) == 0


def quiet_other_ranks() -> None:
    """Let rank 0 alone show warnings: all ranks decide alike and would say the same."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda _: is_root())
    logger = logging.getLogger("neuroscale_couple")
    logger.handlers[:] = [handler]
    logger.propagate = False


def say(*lines: str) -> None:
    """Print on rank 0."""
    if is_root():
        for line in lines:
            console.print(line)


if __name__ == "__main__":
    sys.exit(main())
