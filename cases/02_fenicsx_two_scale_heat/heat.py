"""Two-scale transient heat: a plate in dolfinx whose conductivity at every Gauss point is a micro problem.

    c (T - T_old) / dt - div(flux) = source,      flux = <k(T) g> of the cell at grad T and T

    python heat.py neuroscale.yaml                      one process
    mpirun -n 2 python heat.py neuroscale.yaml          the same answer on two ranks

The lines that couple the solver are marked; all others are what such a solver does anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroscale_couple import settings_of  # coupling
from neuroscale_fenicsx import start  # coupling

comm = start()  # coupling: before dolfinx is imported

import numpy as np
import ufl
from dolfinx import fem, mesh

from neuroscale_fenicsx import ExternalOperator, Gathered, Newton, Records, compat, quadrature_points  # coupling


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
        own = self._blocks(domain, settings) if "blocks" in settings else None
        self.law = ExternalOperator(config, comm, domain, inputs, degree=2, parameters=own)  # coupling
        x = ufl.SpatialCoordinate(domain)
        distance2 = (x[0] - 0.6 * width) ** 2 + (x[1] - 0.5 * height) ** 2
        source = settings["source"] * ufl.exp(-distance2 / (0.15 * height) ** 2)
        stored = settings["heat_capacity"] / self.dt * (T - self.T_old)
        dx = self.law.dx
        residual = (stored - source) * S * dx + ufl.inner(self.law["flux"], ufl.grad(S)) * dx  # coupling
        control = {"tolerance": settings["newton_tolerance"], "max_iterations": settings["max_iterations"]}
        self.newton = Newton(self.law, residual, T, [self.left, right], **control)  # coupling
        self.fields = Gathered(domain, comm)

    def _blocks(self, domain: Any, settings: dict[str, Any]) -> dict[str, np.ndarray]:
        """One micro structure for each of `blocks` rectangles instead of one for each Gauss point, as in case 04."""
        across, up = settings["blocks"]
        at = quadrature_points(domain, 2).coordinates / np.array(settings["size"])
        return {"structure": (at[:, 0] * across).astype(np.int64) + across * (at[:, 1] * up).astype(np.int64)}

    def _edge(self, space: Any, where: Any, value: Any) -> Any:
        return fem.dirichletbc(value, fem.locate_dofs_geometrical(space, where), space)

    def heat_flow(self) -> float:
        """Heat that enters through the left edge, W per m thickness. Collective."""
        dofs, own = self.left.dof_indices()
        return float(comm.allreduce(self.newton.forces()[dofs[:own]].sum()))

    def state(self) -> dict[str, np.ndarray]:
        """What this rank needs to go on after --resume."""
        return {"T": self.T.x.array.copy(), "largest": np.array(self.newton.largest)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state."""
        self.T.x.array[:] = self.T_old.x.array[:] = state["T"]
        self.newton.largest = float(state["largest"])


def main(config: Path) -> None:
    """Heat the left edge and the spot, and follow the plate in time."""
    settings = settings_of(config)
    plate = Plate(config, settings)
    law = plate.law
    done, state = law.closure.resumed() or (0, {})  # coupling: after --resume, what was last given to commit
    records = Records(law, plate.fields, "plate", done)
    if done:
        plate.restore(state)
    for number in range(done, settings["steps"]):
        time = (number + 1) * plate.dt
        share = min(1.0, time / settings["ramp"])
        plate.hot.value = settings["cold"] + share * (settings["hot"] - settings["cold"])
        solved = plate.newton.solve(time, plate.dt)
        rise = plate.fields.dofs_of(plate.T)[:, 0] - settings["cold"]
        records.keep(temperature_rise=rise, heat_flow=plate.heat_flow(), newton_iterations=solved.iterations)
        records.draw(number, time, {"temperature": plate.T}, {"flux": law.values["flux"]})
        plate.T_old.x.array[:] = plate.T.x.array
        law.commit(plate.state())  # coupling: the step has converged
    law.close()  # coupling


if __name__ == "__main__":
    main(Path(sys.argv[1]))
