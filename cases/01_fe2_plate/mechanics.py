"""The macro solver: a plate with a hole in plane strain, Newton's method, scikit-fem. It knows nothing of coupling.

    find u:  int_plate strain(v) : sigma(strain(u)) dV = 0  for all v that vanish where u is prescribed

A quarter of the plate [0, side]^2 with a hole around the origin; u_x = 0 on x = 0, u_y = 0 on y = 0, and
u_x = mean strain * side on x = side. Serendipity quadrilaterals on a curved mesh, 2x2 Gauss points in each.
Strains and stresses are [point, 3]: xx, yy, gamma_xy and xx, yy, xy; a Gauss point's id is 4 * element + its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import meshio
import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import splu
from skfem import Basis, ElementQuadS2, ElementVector, MeshQuad, MeshQuad2

Law = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Strain of the own Gauss points [n, 3] -> stress [n, 3], tangent [n, 3, 3]."""


def quarter_plate(cells: tuple[int, int], radius: float, side: float) -> MeshQuad2:
    """Structured mesh of cells (around, outwards) elements, finer at the hole."""
    around, outwards = cells
    if around % 2:
        raise ValueError(f"cells: got {around} around the hole, expected an even number (the corner must be a node)")
    mesh = MeshQuad2.from_mesh(MeshQuad.init_tensor(np.linspace(0, 1, around + 1), np.linspace(0, 1, outwards + 1)))
    angle, out = 0.5 * np.pi * mesh.doflocs[0], mesh.doflocs[1] ** 1.4
    direction = np.array([np.cos(angle), np.sin(angle)])
    to_edge = side / np.abs(direction).max(axis=0)
    nodes = direction * (radius * (1 - out) + to_edge * out)
    # the middle node follows from the other eight: serendipity geometry, so that linear displacements are exact
    local = mesh.dofs.element_dofs
    nodes[:, local[8]] = 0.5 * nodes[:, local[4:8]].sum(axis=1) - 0.25 * nodes[:, local[:4]].sum(axis=1)
    return MeshQuad2(nodes, mesh.t)


class Plate:
    """Discrete plate; each rank owns the Gauss points of a share of the elements, rank 0 assembles and solves."""

    def __init__(self, cells: Sequence[int], radius: float, side: float, comm: Any) -> None:
        self.side, self.comm, self.rank = side, comm, comm.Get_rank()
        self.mesh = quarter_plate((cells[0], cells[1]), radius, side)
        basis = Basis(self.mesh, ElementVector(ElementQuadS2()), intorder=3)
        gradients = np.array([function[0].grad for function in basis.basis])  # [shape, i, j, element, quadrature point]
        self.b = np.stack([gradients[:, 0, 0], gradients[:, 1, 1], gradients[:, 0, 1] + gradients[:, 1, 0]])
        self.b = np.ascontiguousarray(self.b.transpose(2, 3, 0, 1))  # [element, quadrature point, 3, shape]
        self.weights = basis.dx  # [element, quadrature point]
        self.dofs = basis.element_dofs.T  # [element, shape]
        self.size = basis.N
        self.locations = basis.doflocs.T
        self.nodal = basis.nodal_dofs.T
        self.own = np.array_split(np.arange(len(self.dofs)), comm.Get_size())[self.rank]
        self.coordinates = basis.mapping.F(basis.X).reshape(2, -1).T.reshape(*self.weights.shape, 2)
        self._boundary(basis)

    def _boundary(self, basis: Basis) -> None:
        def on(name: str, axis: int, value: float) -> np.ndarray:
            return basis.get_dofs(lambda x: np.isclose(x[axis], value)).all([f"u^{name}"])

        self.pulled = on("1", 0, self.side)
        self.symmetry = [on("1", 0, 0.0), on("2", 1, 0.0)]
        self.fixed = np.unique(np.concatenate([self.pulled, *self.symmetry]))
        self.free = np.setdiff1d(np.arange(self.size), self.fixed)
        self.is_x = np.zeros(self.size, dtype=bool)
        self.is_x[basis.get_dofs(elements=np.arange(len(self.dofs))).all(["u^1"])] = True

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Own Gauss points: ids int64 [n], coordinates [n, 2] m, volumes [n] m^2 (per unit thickness)."""
        ids = (4 * self.own[:, None] + np.arange(4)).ravel()
        return ids, self.coordinates[self.own].reshape(-1, 2), self.weights[self.own].ravel()

    def strain(self, u: np.ndarray) -> np.ndarray:
        """Strain of the own Gauss points, [n, 3]."""
        return np.einsum("eqik,ek->eqi", self.b[self.own], u[self.dofs[self.own]]).reshape(-1, 3)

    def stretched(self, mean_strain: float) -> np.ndarray:
        """A uniform strain that fits the boundary: where the first step starts."""
        return np.where(self.is_x, mean_strain * self.locations[:, 0], -0.3 * mean_strain * self.locations[:, 1])

    def on_root(self, values: np.ndarray) -> np.ndarray:
        """Values of all Gauss points on rank 0 (elsewhere empty), in the order of their ids. Collective."""
        parts = self.comm.allgather(values)
        return np.concatenate(parts) if self.rank == 0 else np.empty(0)

    def internal_force(self, stress: np.ndarray) -> np.ndarray:
        """Internal forces [dof] from the stress of all points."""
        local = np.einsum(
            "eqik,eqi,eq->ek", self.b, stress.reshape(*self.weights.shape, 3), self.weights, optimize=True
        )
        return np.bincount(self.dofs.ravel(), local.ravel(), self.size)

    def stiffness(self, tangent: np.ndarray) -> sparse.csc_matrix:
        """Tangent stiffness from the tangents of all points."""
        weighted = tangent.reshape(*self.weights.shape, 3, 3) * self.weights[..., None, None]
        local = np.einsum("eqik,eqil->ekl", self.b, weighted @ self.b, optimize=True)
        rows = np.repeat(self.dofs, self.dofs.shape[1], axis=1)
        columns = np.tile(self.dofs, (1, self.dofs.shape[1]))
        shape = (self.size, self.size)
        return sparse.coo_matrix((local.ravel(), (rows.ravel(), columns.ravel())), shape=shape).tocsc()

    def correction(self, force: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """The Newton step [dof], zero where u is prescribed."""
        step = np.zeros(self.size)
        step[self.free] = splu(self.stiffness(tangent)[self.free][:, self.free]).solve(-force[self.free])
        return step

    def output_mesh(self, u: np.ndarray, at_points: dict[str, np.ndarray]) -> meshio.Mesh:
        """Straight-edged mesh with nodal displacement and the elements' means of values at all Gauss points."""
        corners = self.mesh.t[:4]
        nodes, numbered = np.unique(corners, return_inverse=True)
        flat = np.zeros((len(nodes), 3))
        flat[:, :2] = self.mesh.doflocs[:, nodes].T
        moved = np.zeros_like(flat)
        moved[:, :2] = u[self.nodal[nodes]]
        cells = [("quad", numbered.reshape(corners.shape).T)]
        means = {k: [v.reshape(len(self.dofs), 4, -1).mean(axis=1).squeeze()] for k, v in at_points.items()}
        return meshio.Mesh(flat, cells, point_data={"displacement": moved}, cell_data=means)


@dataclass
class Step:
    """A converged load step. reaction: (x on the pulled edge, y on the symmetry edge) MN per m thickness."""

    u: np.ndarray
    reaction: np.ndarray
    iterations: int


def extrapolate(history: Sequence[np.ndarray]) -> np.ndarray:
    """Guess for the next of equal load steps: the line through the last two solutions."""
    return 2 * history[-1] - history[-2]


def solve_step(plate: Plate, guess: np.ndarray, law: Law, tolerance: float, max_iterations: int) -> Step:
    """Newton iterations from a guess that fits the boundary values. Collective.

    tolerance: of the residual force against the reaction
    Raises: RuntimeError with the residual history if the step does not converge.
    """
    u, history = guess.copy(), []
    for iteration in range(max_iterations + 1):
        stress, tangent = (plate.on_root(values) for values in law(plate.strain(u)))
        force = plate.internal_force(stress) if plate.rank == 0 else np.zeros(plate.size)
        residual = np.linalg.norm(force[plate.free]) / max(np.linalg.norm(force[plate.fixed]), 1e-300)
        history.append(float(plate.comm.bcast(residual, root=0)))
        if history[-1] <= tolerance:
            force = plate.comm.bcast(force, root=0)
            reaction = np.array([force[plate.pulled].sum(), force[plate.symmetry[1]].sum()])
            return Step(u, reaction, iteration)
        if iteration < max_iterations and np.isfinite(history[-1]):
            u += plate.comm.bcast(plate.correction(force, tangent) if plate.rank == 0 else None, root=0)
    shown = ", ".join(f"{r:.1e}" for r in history)
    raise RuntimeError(f"Newton did not reach {tolerance:g} in {max_iterations} iterations; residuals: {shown}")
