"""Two-scale transient heat: a plate in dolfinx whose conductivity at every Gauss point is a micro problem.

    c (T - T_old) / dt - div(flux) = source,      flux = <k(T) g> of the cell at grad T and T

    python heat.py neuroscale.yaml                      one process
    mpirun -n 2 python heat.py neuroscale.yaml          the same answer on two ranks

The lines that couple the solver are marked; all others are what such a solver does anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from neuroscale_couple import Source, settings_of  # coupling
from neuroscale_fenicsx import start  # coupling

comm = start()  # coupling: before dolfinx is imported

import meshio
import numpy as np
import ufl
from dolfinx import fem, mesh

from neuroscale_couple.evaluation.fields import Series
from neuroscale_fenicsx import ExternalOperator, Gathered, Newton, compat  # coupling


class Plate:
    """The discrete plate: backward Euler in time, bilinear elements in space, 2x2 Gauss points."""

    def __init__(self, config: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.dt = settings["duration"] / settings["steps"]
        width, height = settings["size"]
        corners = [np.zeros(2), np.array([width, height])]
        quads = mesh.CellType.quadrilateral
        domain = mesh.create_rectangle(comm, corners, list(settings["cells"]), quads)
        space = compat.function_space(domain, "Lagrange", 1)
        self.T, self.T_old = fem.Function(space), fem.Function(space)
        self.T.x.array[:] = self.T_old.x.array[:] = settings["cold"]
        self.hot = fem.Constant(domain, settings["cold"])
        self.left = self._edge(space, lambda x: np.isclose(x[0], 0.0), self.hot)
        right = self._edge(space, lambda x: np.isclose(x[0], width), fem.Constant(domain, settings["cold"]))

        T, S = self.T, ufl.TestFunction(space)
        inputs = {"gradient": ufl.grad(T), "temperature": T}
        self.law = ExternalOperator(config, comm, domain, inputs, degree=2)  # coupling
        x = ufl.SpatialCoordinate(domain)
        distance2 = (x[0] - 0.6 * width) ** 2 + (x[1] - 0.5 * height) ** 2
        source = settings["source"] * ufl.exp(-distance2 / (0.15 * height) ** 2)
        stored = settings["heat_capacity"] / self.dt * (T - self.T_old)
        dx = self.law.dx
        residual = (stored - source) * S * dx + ufl.inner(self.law["flux"], ufl.grad(S)) * dx  # coupling
        control = {"tolerance": settings["newton_tolerance"], "max_iterations": settings["max_iterations"]}
        self.newton = Newton(self.law, residual, T, [self.left, right], **control)  # coupling
        self.fields = Gathered(domain, comm)

    def _edge(self, space: Any, where: Any, value: Any) -> Any:
        return fem.dirichletbc(value, fem.locate_dofs_geometrical(space, where), space)

    def heat_flow(self) -> float:
        """Heat that enters through the left edge, W per m thickness. Collective."""
        dofs, own = self.left.dof_indices()
        return float(comm.allreduce(self.newton.forces()[dofs[:own]].sum()))

    def state(self) -> dict[str, np.ndarray]:
        """What this rank needs to go on after --resume."""
        return {"T": self.T.x.array.copy()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a state."""
        self.T.x.array[:] = self.T_old.x.array[:] = state["T"]


class Records:
    """What is kept of each time step for `macro.npz`, written by rank 0."""

    def __init__(self) -> None:
        self.temperature_rise: list[np.ndarray] = []
        self.heat_flow: list[float] = []
        self.newton_iterations: list[int] = []

    def load(self, path: Path, steps: int) -> None:
        """Read back the first steps of a file."""
        with np.load(path) as stored:
            for name in vars(self):
                setattr(self, name, list(stored[name][:steps]))

    def save(self, path: Path) -> None:
        """Write arrays [step, ...] by name."""
        np.savez(path, **{name: np.array(values) for name, values in vars(self).items()})


def main(config: Path) -> None:
    """Heat the left edge and the spot, and follow the plate in time."""
    settings = settings_of(config)
    plate = Plate(config, settings)
    law = plate.law
    done, state = law.closure.resumed() or (0, {})  # coupling: after --resume, what was last given to commit
    records = Records()
    series = Series(law.folder / "macro", "plate")
    if done:
        plate.restore(dict(state))
    if comm.rank == 0:
        series.truncate(done)
    if done and comm.rank == 0:
        records.load(law.folder / "macro.npz", done)
    for number in range(done, settings["steps"]):
        time = (number + 1) * plate.dt
        share = min(1.0, time / settings["ramp"])
        plate.hot.value = settings["cold"] + share * (settings["hot"] - settings["cold"])
        solved = plate.newton.solve(time, plate.dt)
        records.heat_flow.append(plate.heat_flow())
        records.newton_iterations.append(solved.iterations)
        records.temperature_rise.append(plate.fields.dofs_of(plate.T)[:, 0] - settings["cold"])
        write(plate, series, number, time)
        if comm.rank == 0:
            records.save(law.folder / "macro.npz")
        plate.T_old.x.array[:] = plate.T.x.array
        law.commit(plate.state())  # coupling: the step has converged
    law.close()  # coupling


def write(plate: Plate, series: Series, number: int, time: float) -> None:
    """VTU of the step: temperature, and each element's mean flux, fallback share and estimated error."""
    law, fields = plate.law, plate.fields
    own = {
        "flux": law.values["flux"],
        "fallback": (law.reply.source == Source.FINE).astype(np.float64),
        "estimated_error": law.reply.error,
    }
    means = {name: fields.cells_of(law.cell_means(values)) for name, values in own.items()}
    temperature = fields.nodes_of(plate.T)
    if comm.rank == 0:
        cell_data = {name: [values.squeeze()] for name, values in means.items()}
        cells = [(fields.cell_type, fields.cells)]
        point_data = {"temperature": temperature[:, 0]}
        series.write(number, time, meshio.Mesh(fields.points, cells, point_data=point_data, cell_data=cell_data))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
