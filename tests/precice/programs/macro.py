"""A scripted macro solver: strain = load(t) - compliance * stress, point by point.

Reads its instructions from a JSON file and writes what it sent and heard in every converged window to an .npz file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import precice


def read(participant: Any, mesh: str, ids: list[int], names: list[str], t: float) -> Any:
    """Columns [n, len(names)] of scalar data."""
    return np.stack([participant.read_data(mesh, name, ids, t) for name in names], axis=1)


def main(told: dict[str, Any]) -> None:
    place = rank_of(told)
    participant = precice.Participant(told.get("name", "Macro"), told["xml"], place, told["ranks"])
    meshes = {mesh: np.array(points)[place :: told["ranks"]] for mesh, points in told["meshes"].items()}
    ids = {m: list(participant.set_mesh_vertices(m, points)) for m, points in meshes.items()}
    numbers = {m: 1000.0 - np.arange(len(points))[place :: told["ranks"]] for m, points in told["meshes"].items()}
    if participant.requires_initial_data():
        write_ids(participant, told, ids, numbers)
    participant.initialize()
    heard: list[dict[str, Any]] = []
    t = start = 0.0
    step = iterations = 0
    while participant.is_coupling_ongoing():
        if participant.requires_writing_checkpoint():
            start = t
        dt = told["steps"][len(heard) % len(told["steps"])] if told["steps"] else participant.get_max_time_step_size()
        dt = min(dt, participant.get_max_time_step_size()) / (told["substeps"] if step == 0 else 1)
        if step == told["substeps"] - 1:
            dt = participant.get_max_time_step_size() if told["substeps"] > 1 else dt
        sent, got = {}, {}
        write_ids(participant, told, ids, numbers)
        for mesh, points in meshes.items():
            got[mesh] = read(participant, mesh, ids[mesh], told["read"], dt)
            load = (t + dt) * np.outer(1.0 + points[:, 0], told["load"])
            sent[mesh] = load - told["compliance"] * got[mesh][:, : len(told["load"])]
            for k, name in enumerate(told["write"]):
                participant.write_data(mesh, name, ids[mesh], sent[mesh][:, k])
        if told.get("die_in") == len(heard):
            time.sleep(told.get("before", 0.0))
            os.kill(os.getpid(), signal.SIGKILL)
        if told.get("sleep_in") == len(heard):
            time.sleep(600)
        participant.advance(dt)
        t, step, iterations = t + dt, step + 1, iterations + 1
        if participant.requires_reading_checkpoint():
            t, step = start, 0
        elif participant.is_time_window_complete():
            for mesh in meshes:
                got[mesh + "/after"] = read(participant, mesh, ids[mesh], told["read"], 0.0)
            heard.append({"t": t, "sent": sent, "got": got, "iterations": iterations})
            start, step, iterations = t, 0, 0
    participant.finalize()
    arrays = {"t": np.array([h["t"] for h in heard]), "iterations": np.array([h["iterations"] for h in heard])}
    for mesh in meshes:
        arrays[f"{mesh}/sent"] = np.array([h["sent"][mesh] for h in heard])
        arrays[f"{mesh}/got"] = np.array([h["got"][mesh] for h in heard])
        arrays[f"{mesh}/after"] = np.array([h["got"][mesh + "/after"] for h in heard])
    np.savez(f"{told['out']}-{place}.npz", **arrays)


def rank_of(told: dict[str, Any]) -> int:
    """Our rank; MPI is touched only where there are several."""
    if told["ranks"] == 1:
        return 0
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank()


def write_ids(participant: Any, told: dict[str, Any], ids: dict[str, list[int]], numbers: dict[str, Any]) -> None:
    """1000, 999 ... in the order of the points, in each field for ids."""
    for name in told["ids"]:
        for mesh, vertices in ids.items():
            participant.write_data(mesh, name, vertices, numbers[mesh])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
