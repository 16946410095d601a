"""A macro solver on any number of ranks: macro.py '{"transport": "embedded" | "mpi", "split": ..., "out": ...}'."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scripted

from neuroscale_couple import parallel
from neuroscale_couple.errors import InputError, TransportError
from neuroscale_couple.transport import embedded
from neuroscale_couple.transport.base import Closure
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.transport.mpi import MpiClosure
from neuroscale_couple.transport.replay import Recorder
from neuroscale_couple.transport.roles import split_world
from neuroscale_couple.values import FieldSpec, Layout, Points


def world(asked: dict[str, Any]) -> Any:
    """The communicator of the macro ranks; None in a serial run."""
    if asked["transport"] == "mpi":
        return split_world("macro").local
    if not asked.get("mpi", False):
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


def open_closure(asked: dict[str, Any], comm: Any, points: Points) -> Closure:
    out = Path(asked["out"]) if "out" in asked else None
    fault = asked.get("service_fault", {})
    if asked["transport"] == "mpi":
        layout = Layout((FieldSpec("heat", ("x",), "W"),)) if asked.get("layout") == "wrong" else scripted.INPUTS
        return MpiClosure(comm, points, asked.get("digest", "abc"), layout, scripted.OUTPUTS)
    return EmbeddedClosure(lambda owned, among: scripted.Scripted(owned, among, fault, out), comm, points)


def misbehave(fault: dict[str, Any], closure: Closure, points: Points, comm: Any) -> None:
    """What a macro solver does wrong; every kind but the first two ends the job."""
    kind, here = fault["kind"], parallel.rank(comm) == fault["rank"]
    inputs = scripted.inputs_of(points.ids, 0, 0)
    if kind == "nan":
        if here:
            inputs["strain"][1, 2] = np.nan
        try:
            closure.evaluate(inputs, 0.0, 0.1)
        except (InputError, parallel.RankError) as error:
            print(f"caught on {parallel.rank(comm)}: {type(error).__name__}: {error}", flush=True)
    elif kind == "different":
        try:
            closure.evaluate(inputs, 0.0, 0.2 if here else 0.1)
        except TransportError as error:
            print(f"caught on {parallel.rank(comm)}: {error}", flush=True)
    elif kind == "leave" and here:
        sys.exit(0)
    elif kind == "idle":
        wait_idle(here, closure, points, comm)
    elif here:
        scripted.break_down(kind, "the macro solver diverged")


def wait_idle(here: bool, closure: Closure, points: Points, comm: Any) -> None:
    """One rank comes a second late to evaluate; what do the others burn?"""
    parallel.barrier(comm)
    before = scripted.cpu_seconds()
    if here:
        time.sleep(1.0)
    closure.evaluate(scripted.inputs_of(points.ids, 0, 0), 0.0, 0.1)
    print(f"used {scripted.cpu_seconds() - before:.3f} s", flush=True)


def main() -> None:
    asked = json.loads(sys.argv[1])
    embedded.PATIENCE = 2.0
    comm = world(asked)
    rank, ranks = parallel.rank(comm), parallel.size(comm)
    points = scripted.points_of(rank, ranks, asked.get("split", "even"))
    if asked.get("duplicate") and rank == ranks - 1:
        points.ids[0] = scripted.all_ids()[0]
    closure = open_closure(asked, comm, points)
    if "record" in asked:
        closure = Recorder(closure, points, Path(asked["record"]), comm)
    with closure:
        if "macro_fault" in asked:
            misbehave(asked["macro_fault"], closure, points, comm)
        resumed = closure.resumed()
        if resumed is not None:
            assert resumed[0] == 2, resumed
            assert np.array_equal(resumed[1]["ids"], points.ids), (resumed[1], points.ids)
            print(f"resumed on {rank}", flush=True)
        answers = scripted.play(closure, points)
        if "out" in asked:
            np.savez(Path(asked["out"]) / f"macro{rank}.npz", ids=points.ids, **answers)


if __name__ == "__main__":
    main()
