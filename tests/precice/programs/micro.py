"""A micro simulation with a state, which writes down every call: `calls-<id>.txt` holds them in order.

The relaxing conductivity k of a cell: s' = flux . flux - s, implicit in time; k = exp(-c) + s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from micro_manager import MicroSimulationInterface


class MicroSimulation(MicroSimulationInterface):
    def __init__(self, sim_id: int) -> None:
        self.sim_id, self.s = int(sim_id), 0.1 * sim_id
        self.told("init", self.sim_id)

    def told(self, *what: Any) -> None:
        with Path(f"calls-{self.sim_id}.txt").open("a") as file:
            file.write(json.dumps(what) + "\n")

    def initialize(self, initial_data: dict[str, Any]) -> None:
        self.told("initialize", sorted(initial_data))

    def solve(self, macro_data: dict[str, Any], dt: float) -> dict[str, Any]:
        c, flux = macro_data["concentration"], macro_data["flux"]
        assert isinstance(c, float) and isinstance(flux, np.ndarray) and flux.shape == (2,)
        self.s = (self.s + dt * float(flux @ flux)) / (1.0 + dt)
        k = float(np.exp(-c)) + self.s
        self.told("solve", dt, float(c), flux.tolist(), k)
        return {"k_00": k, "turned": np.array([-flux[1], flux[0]]) * k, "size": self.s, "more": "than asked"}

    def get_state(self) -> float:
        self.told("get_state")
        return self.s

    def set_state(self, state: float) -> None:
        self.told("set_state")
        self.s = state

    def get_global_id(self) -> int:
        return self.sim_id

    def set_global_id(self, global_id: int) -> None:
        self.sim_id = global_id

    def output(self) -> None:
        self.told("output")
