"""FE2 of Cook's membrane in dolfinx: plane strain, a composite cell at every Gauss point, load in equal steps.

    find u:  int strain(v) : stress(strain(u)) dV = int_right traction . v ds  for all v that vanish on the left edge

    python cook.py neuroscale.yaml                      one process
    mpirun -n 2 python cook.py neuroscale.yaml          the same answer on two ranks

The lines that couple the solver are marked; all others are what such a solver does anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from neuroscale_couple import settings_of  # coupling
from neuroscale_fenicsx import start  # coupling

comm = start()  # coupling: before dolfinx is imported

import numpy as np
import ufl
from dolfinx import fem, mesh

from neuroscale_fenicsx import ExternalOperator, Gathered, Newton, Records, compat  # coupling

WIDTH, LEFT, LOW, HIGH = 0.048, 0.044, 0.044, 0.060  # m: width, height on the left, right edge from LOW to HIGH


def membrane(cells: list[int]) -> Any:
    """Structured mesh of quadrilaterals between (0, 0), (WIDTH, LOW), (WIDTH, HIGH), (0, LEFT)."""
    corners = [np.zeros(2), np.ones(2)]
    domain = mesh.create_rectangle(comm, corners, cells, mesh.CellType.quadrilateral)
    s, r = domain.geometry.x[:, 0].copy(), domain.geometry.x[:, 1].copy()
    domain.geometry.x[:, 0] = WIDTH * s
    domain.geometry.x[:, 1] = LOW * s * (1 - r) + (LEFT + (HIGH - LEFT) * s) * r
    return domain


def strain(u: Any) -> Any:
    """Components xx, yy and gamma_xy."""
    return ufl.as_vector([u[0].dx(0), u[1].dx(1), u[0].dx(1) + u[1].dx(0)])


class Membrane:
    """The discrete membrane: quadratic displacements, 2x2 Gauss points, stresses in MPa, forces in MN per m."""

    def __init__(self, config: Path, settings: dict[str, Any]) -> None:
        domain = membrane(list(settings["cells"]))
        space = compat.function_space(domain, "Lagrange", 2, (2,))
        self.u = u = fem.Function(space)
        v = ufl.TestFunction(space)
        self.clamped = self._clamp(space)
        self.law = ExternalOperator(config, comm, domain, {"strain": strain(u)}, degree=3)  # coupling
        self.traction = fem.Constant(domain, np.zeros(2))
        edge = mesh.locate_entities_boundary(domain, 1, lambda x: np.isclose(x[0], WIDTH))
        tags = mesh.meshtags(domain, 1, np.sort(edge), np.full(len(edge), 1, dtype=np.int32))
        ds = ufl.Measure("ds", domain=domain, subdomain_data=tags)
        inner = ufl.inner(self.law["stress"], strain(v)) * self.law.dx  # coupling
        residual = inner - ufl.inner(self.traction, v) * ds(1)
        control = {"tolerance": settings["newton_tolerance"], "max_iterations": settings["max_iterations"]}
        self.newton = Newton(self.law, residual, u, [self.clamped], **control)  # coupling
        self.fields = Gathered(domain, comm)

    def _clamp(self, space: Any) -> Any:
        dofs = fem.locate_dofs_geometrical(space, lambda x: np.isclose(x[0], 0.0))
        return fem.dirichletbc(np.zeros(2), dofs, space)

    def reaction(self) -> np.ndarray:
        """Force on the clamped edge, [x, y] MN per m thickness. Collective."""
        dofs, own = self.clamped.dof_indices()
        forces = self.newton.forces()
        mine = [forces[dofs[:own][dofs[:own] % 2 == axis]].sum() for axis in (0, 1)]
        return comm.allreduce(np.array(mine))


def extrapolate(past: list[np.ndarray]) -> np.ndarray:
    """Guess for the next of equal load steps: the parabola (line) through the last three (two) solutions."""
    if len(past) == 2:
        return 2 * past[-1] - past[-2]
    return 3 * past[-1] - 3 * past[-2] + past[-3]


def main(config: Path) -> None:
    """Shear the right edge upwards in equal load steps."""
    settings = settings_of(config)
    cook = Membrane(config, settings)
    law, u = cook.law, cook.u
    done, state = law.closure.resumed() or (0, {})  # coupling: after --resume, what was last given to commit
    past = list(state.get("past", [np.zeros_like(u.x.array)]))
    cook.newton.largest = float(state.get("largest", 0.0))
    records = Records(law, cook.fields, "membrane", done, reaction_force_unit="MN/m")
    for number in range(done, settings["steps"]):
        time = (number + 1) / settings["steps"]
        cook.traction.value = np.array([0.0, settings["load"] * time / (HIGH - LOW)])
        u.x.array[:] = past[-1] if len(past) == 1 else extrapolate(past)
        solved = cook.newton.solve(time, 1 / settings["steps"])
        past = [*past[-2:], u.x.array.copy()]
        moved = cook.fields.dofs_of(u)
        records.keep(displacement=moved, reaction_force=cook.reaction(), newton_iterations=solved.iterations)
        own = {"stress": law.values["stress"], "strain": law.inputs["strain"]}
        records.draw(number, time, {"displacement": u}, own)
        law.commit({"past": np.array(past), "largest": np.array(cook.newton.largest)})  # coupling: it has converged
    law.close()  # coupling


if __name__ == "__main__":
    main(Path(sys.argv[1]))
