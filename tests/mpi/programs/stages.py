"""Gate, corrections, checkpoint and learner on all ranks of the world: stages.py '{"out": folder}'."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import neuroscale_couple.surrogate
from neuroscale_couple import parallel
from neuroscale_couple.checkpoint import Checkpoint
from neuroscale_couple.config import schema
from neuroscale_couple.correction import make_corrections
from neuroscale_couple.gate import make_gate
from neuroscale_couple.learning import make_learner
from neuroscale_couple.physics import make_problem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import Audit, Batch, FineAnswer, Points
from tests.unit.test_learner import Toy, artifact, truth

N = 61
PROBLEM = make_problem(schema.Problem(name="composite", grid=4))


def whole() -> dict[str, Any]:
    """All points and their answers; each rank takes every size-th."""
    rng = np.random.default_rng(3)
    source = rng.choice(np.array([0, 2], dtype=np.uint8), N)
    return {
        "ids": np.arange(N) * 5,
        "volumes": rng.uniform(0.5, 1.5, N),
        "phase": rng.integers(0, 2, (N, 4, 4)).astype(np.uint8),
        "inputs": rng.normal(0.0, 0.02, (N, 3)),
        "outputs": rng.normal(0.0, 50.0, (N, 3)),
        "source": source,
        "error": np.where(source == Source.FINE, 0.0, rng.uniform(0.001, 0.05, N)),
        "true_error": rng.uniform(0.0, 0.1, N),
    }


def corrected(mine: dict[str, Any], points: Points, comm: Any) -> Any:
    settings = schema.Correction(
        admissible=False,
        conserve=(schema.Conserve(output="stress.xx", lower=-120.0, upper=120.0),),
        groups=(schema.Group(name="low", box=((0.0, 100.0), (0.0, 1.0))),),
    )
    (conserve,) = make_corrections(settings, PROBLEM, comm)
    conserve.attach(points)
    outputs = mine["outputs"].copy()
    batch = Batch(0, 0, 0.0, 1.0, mine["inputs"], {"stress.xx": 100.0, "stress.xx@low": 40.0})
    conserve.apply(batch, outputs, np.zeros((len(outputs), 3, 3)), mine["error"], mine["source"])
    return outputs


def audited(mine: dict[str, Any], points: Points, comm: Any) -> dict[str, Any]:
    gate = make_gate(schema.Gate(audit=0.3, stages=("physical", "audit")), PROBLEM, comm)
    gate.attach(points, Toy(artifact(Path(mine["folder"]) / "toy.pt", 0.01)).card)
    rows = gate.select_audits(4, points.ids, mine["source"])
    score = mine["error"][rows]
    gate.learn(Audit(rows, mine["source"][rows], score, score, mine["true_error"][rows]))
    return {"audited": points.ids[rows], "closed": gate.closed, "record": gate.get_state()["audit/recent"]}


def trained(mine: dict[str, Any], points: Points, comm: Any, folder: Path) -> int:
    neuroscale_couple.surrogate.load = lambda path, problem, device="auto": Toy(path)
    training = importlib.import_module("neuroscale_couple.training.fitting")
    training.fit = lambda problem, data, settings, out, **_: artifact(out, 0.004)  # type: ignore[attr-defined]
    settings = schema.Learning(mode="online", min_samples=50, first_samples=50, hold_out=0.3)
    learner = make_learner(settings, schema.Training(), PROBLEM, folder, comm)
    assert learner is not None
    learner.attach(points)
    rows = np.arange(len(points))
    outputs = truth(mine["phase"], mine["inputs"])
    answer = FineAnswer(rows, outputs, np.zeros((len(rows), 3, 3)), np.ones(len(rows), bool), rows, np.zeros(len(rows)))
    learner.observe(0, mine["inputs"], answer)
    better = learner.propose(0, None)
    return -1 if better is None else better.version


def kept(points: Points, comm: Any, folder: Path) -> list[int]:
    """Windows found after two saves; and after rank 0's or the last rank's newest file is damaged."""
    found = []
    for damaged in (-1, 0, comm.size - 1):
        checkpoint = Checkpoint(folder / f"checkpoint_{damaged}", comm)
        for window in (1, 2):
            checkpoint.save(window, {"loop": {"ids": points.ids + window}}, {"window": window})
        if comm.rank == damaged:
            (folder / f"checkpoint_{damaged}" / "window_000002" / f"rank_{damaged}.safetensors").write_bytes(b"torn")
        parallel.barrier(comm)
        loaded = Checkpoint(folder / f"checkpoint_{damaged}", comm).load()
        assert loaded is not None and np.array_equal(loaded[0]["loop"]["ids"], points.ids + loaded[1]["window"])
        found.append(loaded[1]["window"])
    return found


def main() -> None:
    comm = MPI.COMM_WORLD
    folder = Path(json.loads(sys.argv[1])["out"])
    with parallel.abort_on_error():
        mine = {name: array[comm.rank :: comm.size] for name, array in whole().items()}
        mine["folder"] = str(folder)
        points = Points(
            mine["ids"], np.column_stack([mine["ids"], 0.0 * mine["ids"]]), mine["volumes"], {"phase": mine["phase"]}
        )
        np.savez(
            folder / f"rank_{comm.rank}.npz", ids=points.ids, outputs=corrected(mine, points, comm),
            version=trained(mine, points, comm, folder), kept=kept(points, comm, folder), **audited(mine, points, comm),
        )  # fmt: skip


if __name__ == "__main__":
    main()
