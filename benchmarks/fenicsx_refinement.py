"""Convergence of a two-scale solution under macro refinement, against an exact solution, through the FEniCSx adapter.

    -div flux(grad T, T) = f on the unit square,    flux = (k_along(T) dT/dx, k_across(T) dT/dy)

The micro structure is a laminate, whose conductivities k_along (arithmetic mean) and k_across (harmonic mean) are
known at every temperature, so f can be chosen such that T = 300 + 40 x + 60 sin(pi x) sin(pi y). The micro problems
are solved by fft_cell at every quadrature point. Expected orders: p + 1 in L2 and p in H1 for elements of degree p.

    .venv-fenicsx/bin/python benchmarks/fenicsx_refinement.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = """
neuroscale:
  problem:
    name: conduction
    grid: 5
    matrix: {k: 1.0, slope: 0.002}
    inclusion: {k: 4.0, slope: -0.001}
    reference_temperature: 300.0
    reference_gradient: 100.0
  microstructure: {kind: image, path: laminate.npy}
  fine: {tolerance: 1.0e-11}
  gate: {open: false, audit: 0.0}
  learning: {mode: "off"}
  output: {folder: runs, checkpoint: false}
"""
SHARE = 0.4


def conductivities(T: Any) -> tuple[Any, Any]:
    """Exact conductivity of the laminate along its layers (x) and across (y)."""
    k_m, k_i = 1.0 + 0.002 * (T - 300), 4.0 * (1.0 - 0.001 * (T - 300))
    return SHARE * k_i + (1 - SHARE) * k_m, 1 / (SHARE / k_i + (1 - SHARE) / k_m)


def solve(config: Path, comm: Any, cells: int, degree: int) -> dict[str, Any]:
    """Errors of one mesh: relative L2 and H1 norms of T - exact, and Newton's residuals."""
    import ufl
    from dolfinx import fem, mesh

    from neuroscale_fenicsx import ExternalOperator, Newton, compat

    domain = mesh.create_unit_square(comm, cells, cells, mesh.CellType.quadrilateral)
    space = compat.function_space(domain, "Lagrange", degree)
    T, S, x = fem.Function(space), ufl.TestFunction(space), ufl.SpatialCoordinate(domain)
    exact = 300 + 40 * x[0] + 60 * ufl.sin(ufl.pi * x[0]) * ufl.sin(ufl.pi * x[1])
    boundary = fem.Function(space)
    boundary.interpolate(lambda x: 300 + 40 * x[0] + 60 * np.sin(np.pi * x[0]) * np.sin(np.pi * x[1]))
    edges = fem.locate_dofs_geometrical(space, lambda x: np.isclose(np.abs(x[:2] - 0.5).max(axis=0), 0.5))
    T.x.array[:] = 320.0
    inputs = {"gradient": ufl.grad(T), "temperature": T}
    law = ExternalOperator(config, comm, domain, inputs, degree=2 * degree)
    along, across = conductivities(exact)
    source = -(along * exact.dx(0)).dx(0) - (across * exact.dx(1)).dx(1)
    residual = ufl.inner(law["flux"], ufl.grad(S)) * law.dx - source * S * ufl.dx(metadata={"quadrature_degree": 8})
    newton = Newton(law, residual, T, [fem.dirichletbc(boundary, edges)], tolerance=1e-10)
    solved = newton.solve(1.0, 1.0)
    law.commit()
    law.close()

    def norm(square: Any) -> float:
        form = fem.form(square * ufl.dx(domain=domain, metadata={"quadrature_degree": 8}))
        return math.sqrt(comm.allreduce(fem.assemble_scalar(form)))

    e = T - exact
    return {
        "cells": cells,
        "degree": degree,
        "points": int(comm.allreduce(len(law.points))),
        "l2": norm(e**2) / norm((exact - 300) ** 2),
        "h1": norm(ufl.inner(ufl.grad(e), ufl.grad(e))) / norm(ufl.inner(ufl.grad(exact), ufl.grad(exact))),
        "newton_residuals": list(solved.residuals),
    }


def study(folder: Path, meshes: tuple[int, ...], degrees: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    """Rows of all meshes, with the order against the mesh before."""
    from neuroscale_fenicsx import start

    comm = start()
    phase = np.zeros((5, 5), dtype=np.uint8)
    phase[:2] = 1
    np.save(folder / "laminate.npy", phase)
    (folder / "neuroscale.yaml").write_text(CONFIG)
    rows: list[dict[str, Any]] = []
    for degree in degrees:
        for cells in meshes:
            row = solve(folder / "neuroscale.yaml", comm, cells, degree)
            before = rows[-1] if rows and rows[-1]["degree"] == degree else None
            for name in ("l2", "h1"):
                order = math.log(before[name] / row[name]) / math.log(cells / before["cells"]) if before else None
                row[f"order_{name}"] = order
            rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="two meshes")
    options = parser.parse_args()
    if importlib.util.find_spec("dolfinx") is None:
        print("skipped: this Python has no dolfinx; see docs/fenicsx.md, then .venv-fenicsx/bin/python " + __file__)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = study(Path(folder), (4, 8) if options.quick else (4, 8, 16, 32))
    for r in rows:
        orders = "".join(f"{r[k]:7.2f}" if r[k] is not None else "      -" for k in ("order_l2", "order_h1"))
        print(
            f"degree {r['degree']}  {r['cells']:>3}² cells {r['points']:>6} points  {r['l2']:.2e} {r['h1']:.2e}{orders}"
        )
    if options.json:
        import dolfinx

        machine = {"dolfinx": dolfinx.__version__, "python": platform.python_version()}
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
