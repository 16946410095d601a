"""FE2: the plate of `mechanics.py` with a micro problem at every Gauss point in place of a stress-strain law.

    python plate.py neuroscale.yaml                      one process
    mpirun -n 2 python plate.py neuroscale.yaml          the same answer on two ranks

The lines that couple the solver are marked; all others are what such a solver does anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from mechanics import Plate, Step, extrapolate, solve_step

from neuroscale_couple import Points, Source, connect, settings_of, split_world  # coupling
from neuroscale_couple.evaluation.fields import Series


class MicroLaw:
    """The stress-strain law of the plate: stress and tangent of each own Gauss point from its micro problem."""

    def __init__(self, closure: Any, time: float, dt: float) -> None:
        self.closure, self.time, self.dt = closure, time, dt

    def __call__(self, strain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.strain = strain
        self.outputs = self.closure.evaluate({"strain": strain}, self.time, self.dt)  # coupling
        return self.outputs["stress"], self.outputs.tangent


class Records:
    """What is kept of each load step; `arrays` goes to `macro.npz` and comes back after --resume."""

    def __init__(self, size: int, state: dict[str, np.ndarray]) -> None:
        self.displacement = list(state.get("displacement", np.zeros((0, size))))
        self.reaction_force = list(state.get("reaction_force", np.zeros((0, 2))))
        self.newton_iterations = list(state.get("newton_iterations", np.zeros(0, dtype=np.int64)))

    def add(self, step: Step) -> None:
        """Keep a converged step."""
        self.displacement.append(step.u)
        self.reaction_force.append(step.reaction)
        self.newton_iterations.append(np.int64(step.iterations))

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays [step, ...] by name."""
        return {name: np.array(values) for name, values in vars(self).items()}


def main(config: Path) -> None:
    """Pull the plate in equal load steps."""
    settings = settings_of(config)
    comm = split_world("macro").local
    plate = Plate(settings["cells"], settings["radius"], settings["side"], comm)
    closure = connect(config, comm, Points(*plate.points()))  # coupling: the config says which micro structures

    done, state = closure.resumed() or (0, {})  # coupling: after --resume, what was last given to commit
    records = Records(plate.size, dict(state))
    series = Series(closure.folder / "macro", "plate")
    if plate.rank == 0:
        series.truncate(done)
    steps = settings["steps"]
    for number in range(done, steps):
        time = (number + 1) / steps
        law = MicroLaw(closure, time, 1 / steps)
        guess = first_guess(plate, records.displacement, settings["mean_strain"] * time)
        step = solve_step(plate, guess, law, settings["newton_tolerance"], settings["max_iterations"])
        records.add(step)
        write(plate, series, (number, time), step, law)
        if plate.rank == 0:
            np.savez(closure.folder / "macro.npz", **records.arrays(), reaction_force_unit="MN/m")
        closure.commit(records.arrays())  # coupling: the step has converged
    closure.close()  # coupling


def first_guess(plate: Plate, solutions: list[np.ndarray], mean_strain: float) -> np.ndarray:
    """Where Newton starts: a uniform strain in the first step, then the extrapolated past."""
    if not solutions:
        return plate.stretched(mean_strain)
    return extrapolate([np.zeros(plate.size), *solutions])


def write(plate: Plate, series: Series, at: tuple[int, float], step: Step, law: MicroLaw) -> None:
    """VTU of the step: displacement, and each element's mean strain, stress, fallback share, estimated error."""
    own = {
        "strain": law.strain,
        "stress": law.outputs["stress"],
        "fallback": (law.outputs.source == Source.FINE).astype(np.float64)[:, None],
        "estimated_error": law.outputs.error[:, None],
    }
    everywhere = {name: plate.on_root(values) for name, values in own.items()}
    if plate.rank == 0:
        series.write(*at, plate.output_mesh(step.u, everywhere))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
