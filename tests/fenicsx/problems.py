"""Small macro problems with known answers, for the tests of this folder and the programs they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

K_MATRIX, K_INCLUSION, SLOPE_M, SLOPE_I, SHARE = 1.0, 4.0, 0.002, -0.001, 0.4
CONFIG = """
neuroscale:
  transport: {transport}
  problem:
    name: conduction
    grid: 5
    matrix: {{k: 1.0, slope: 0.002}}
    inclusion: {{k: 4.0, slope: -0.001}}
    reference_temperature: 300.0
    reference_gradient: 100.0
  microstructure: {{kind: {kind}, path: laminate.npy}}
  fine: {{tolerance: 1.0e-12}}
  gate: {{open: false, audit: 0.0}}
  learning: {{mode: "off"}}
  output: {{folder: runs, checkpoint: false}}
"""


def write_config(folder: Path, kind: str = "image", transport: str = "embedded") -> Path:
    """A conduction case; kind image: a laminate with layers along x, two of five rows inclusions."""
    folder.mkdir(parents=True, exist_ok=True)
    phase = np.zeros((5, 5), dtype=np.uint8)
    phase[:2] = 1
    np.save(folder / "laminate.npy", phase)
    path = folder / f"{transport}.yaml"
    path.write_text(CONFIG.format(kind=kind, transport=transport))
    return path


def phases(T: Any) -> tuple[Any, Any]:
    """Conductivities of matrix and inclusions at a temperature (a number or a UFL expression)."""
    return K_MATRIX * (1 + SLOPE_M * (T - 300)), K_INCLUSION * (1 + SLOPE_I * (T - 300))


def laminate(T: Any) -> tuple[Any, Any]:
    """Exact conductivity of the laminate along its layers (x) and across (y)."""
    k_m, k_i = phases(T)
    return SHARE * k_i + (1 - SHARE) * k_m, 1 / (SHARE / k_i + (1 - SHARE) / k_m)


class Heat:
    """Stationary two-scale heat on the unit square, T = 300 K on x = 0, 380 K on x = 1, a uniform source."""

    def __init__(self, config: Path, comm: Any, cells: int = 4, source: float = 300.0) -> None:
        import ufl
        from dolfinx import fem, mesh

        from neuroscale_fenicsx import ExternalOperator, Gathered, Newton, compat

        self.domain = mesh.create_unit_square(comm, cells, cells, mesh.CellType.quadrilateral)
        space = compat.function_space(self.domain, "Lagrange", 1)
        self.T, S = fem.Function(space), ufl.TestFunction(space)
        self.T.x.array[:] = 300.0
        inputs = {"gradient": ufl.grad(self.T), "temperature": self.T}
        self.law = ExternalOperator(config, comm, self.domain, inputs, degree=2)
        self.residual = ufl.inner(self.law["flux"], ufl.grad(S)) * self.law.dx - source * S * self.law.dx
        self.bcs = [self._edge(space, 0.0, 300.0), self._edge(space, 1.0, 380.0)]
        self.newton = Newton(self.law, self.residual, self.T, self.bcs, tolerance=1e-11)
        self.fields = Gathered(self.domain, comm)

    @staticmethod
    def _edge(space: Any, at: float, value: float) -> Any:
        from dolfinx import fem

        return fem.dirichletbc(value, fem.locate_dofs_geometrical(space, lambda x: np.isclose(x[0], at)), space)
