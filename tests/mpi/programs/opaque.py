"""Opaque micro problems on all ranks: opaque.py '{"out": folder}'."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from benchmarks.opaque import DT, Replayed, all_fine, make_problem, plate
from neuroscale_couple import parallel
from neuroscale_couple.config import schema
from neuroscale_couple.fine import share_answers
from neuroscale_couple.gate import make_gate
from neuroscale_couple.learning import make_learner
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.values import Points

WINDOWS = 6


def main() -> None:
    """Learn from a cold start; write solves, versions and errors of this rank."""
    folder, comm = Path(json.loads(sys.argv[1])["out"]), MPI.COMM_WORLD
    where, given = plate(12, 10, 8 * WINDOWS)
    given = given[:WINDOWS]
    truth = all_fine(given)
    problem, gate = make_problem(truth), schema.Gate(tolerance=0.05)
    grains = Replayed(problem)

    def factory(points: Points, ranks: Any) -> Loop:
        learner = make_learner(schema.Learning(mode="online"), schema.Training(), problem, folder, ranks, gate)
        fine = share_answers(grains, schema.Fine(), problem, gate)
        return Loop(
            Parts(problem=problem, fine=fine, gate=make_gate(gate, problem, ranks), learner=learner), points, ranks
        )

    with parallel.abort_on_error():
        mine = np.arange(comm.rank, len(where), comm.size)
        versions, errors = [], []
        with EmbeddedClosure(factory, comm, where.take(mine)) as closure:
            for w, inputs in enumerate(given):
                fields = {"temperature": inputs[mine, 0], "concentration": inputs[mine, 1]}
                answer = closure.evaluate(fields, w * DT, DT)
                assert answer.tangent.shape == (len(mine), 2, 0)
                outputs = np.column_stack([answer["uptake"], answer["conductivity"]])
                errors.append(problem.relative_error(outputs, truth[w][mine]))
                closure.commit()
                versions.append(closure.model_version)
        np.savez(folder / f"rank_{comm.rank}.npz", solves=grains.solves, versions=versions, errors=np.array(errors))


if __name__ == "__main__":
    main()
