"""A scripted macro solver of a Micro Manager case: concentration and flux of each point follow the time and k.

Reads its instructions from a JSON file and writes what it sent and heard in every converged window to an .npz file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import precice


def main(told: dict[str, Any]) -> None:
    participant = precice.Participant("Macro", told["xml"], 0, 1)
    mesh, points = "macro-mesh", np.array(told["points"])
    ids = list(participant.set_mesh_vertices(mesh, points))
    participant.initialize()
    rng = np.random.default_rng(1)
    amplitude = rng.uniform(0.5, 1.5, len(ids)) if told["spread"] else np.ones(len(ids))
    heard: list[dict[str, Any]] = []
    t = start = told["start"]
    while participant.is_coupling_ongoing():
        if participant.requires_writing_checkpoint():
            start = t
        dt = participant.get_max_time_step_size()
        k = np.array(participant.read_data(mesh, "k_00", ids, dt))
        c = amplitude * np.sin(t + dt) + told["feedback"] * k
        flux = np.stack([amplitude * np.cos(t + dt), amplitude * (t + dt)], axis=1)
        participant.write_data(mesh, "concentration", ids, c)
        participant.write_data(mesh, "flux", ids, flux)
        time.sleep(told["pause"])
        participant.advance(dt)
        t += dt
        if participant.requires_reading_checkpoint():
            t = start
        elif participant.is_time_window_complete():
            after = participant.read_data(mesh, "k_00", ids, 0.0), participant.read_data(mesh, "turned", ids, 0.0)
            heard.append({"c": c, "flux": flux, "k": np.array(after[0]), "turned": np.array(after[1])})
    participant.finalize()
    np.savez(told["out"], **{name: np.array([h[name] for h in heard]) for name in ("c", "flux", "k", "turned")})


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
