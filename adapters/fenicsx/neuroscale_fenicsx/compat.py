"""All that differs between dolfinx 0.5 (Debian 12) and dolfinx from 0.8 on; nothing else here knows versions.

`NEW` says which of the two is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import basix
import dolfinx
import dolfinx.fem.petsc
import numpy as np
import ufl
from dolfinx import fem
from petsc4py import PETSc

VERSION = tuple(int(part) for part in dolfinx.__version__.split(".")[:2])
NEW = VERSION >= (0, 8)
if VERSION < (0, 5) or (0, 6) <= VERSION < (0, 8):
    raise ImportError(
        f"dolfinx {dolfinx.__version__} is not supported: neuroscale_fenicsx works with 0.5 (Debian 12) and from 0.8 on"
    )


def function_space(mesh: Any, family: str, degree: int, shape: tuple[int, ...] = ()) -> Any:
    """A Lagrange-like space of scalars, vectors or tensors."""
    if NEW:
        return fem.functionspace(mesh, (family, degree, shape))
    if not shape:
        return fem.FunctionSpace(mesh, (family, degree))
    cell = mesh.ufl_cell()
    if len(shape) == 1:
        return fem.FunctionSpace(mesh, ufl.VectorElement(family, cell, degree, dim=shape[0]))
    return fem.FunctionSpace(mesh, ufl.TensorElement(family, cell, degree, shape=shape))


def quadrature_space(mesh: Any, degree: int, shape: tuple[int, ...]) -> Any:
    """Values at the quadrature points of the default rule of a degree."""
    if NEW:
        import basix.ufl

        name = mesh.topology.cell_type.name
        return fem.functionspace(mesh, basix.ufl.quadrature_element(name, value_shape=shape, degree=degree))
    cell, scheme = mesh.ufl_cell(), {"quad_scheme": "default"}
    if not shape:
        return fem.FunctionSpace(mesh, ufl.FiniteElement("Quadrature", cell, degree, **scheme))
    if len(shape) == 1:
        return fem.FunctionSpace(mesh, ufl.VectorElement("Quadrature", cell, degree, dim=shape[0], **scheme))
    return fem.FunctionSpace(mesh, ufl.TensorElement("Quadrature", cell, degree, shape=shape, **scheme))


def quadrature_rule(mesh: Any, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [q, dimension] and weights [q] on the reference cell; the rule that forms use."""
    cell = getattr(basix.CellType, mesh.topology.cell_type.name)
    points, weights = basix.make_quadrature(cell, degree)
    return points, weights


def quadrature_dofs(space: Any, cells: int, points: int) -> np.ndarray:
    """Numbers int32 [cell, point] of the blocks of a quadrature space, for the first `cells` cells."""
    dofs = space.dofmap.list if NEW else space.dofmap.list.array
    return np.asarray(dofs).reshape(-1, points)[:cells]


class Evaluator:
    """Values of a UFL expression at reference points of the first `cells` cells (those that this rank owns)."""

    def __init__(self, expression: Any, mesh: Any, reference_points: np.ndarray, cells: int) -> None:
        self.components = int(np.prod(expression.ufl_shape, dtype=int))
        self._mesh, self._cells = mesh, np.arange(cells, dtype=np.int32)
        self._compiled = fem.Expression(expression, reference_points)
        self._rows = cells * len(reference_points)

    def __call__(self) -> np.ndarray:
        """float64 [cell * points, component]."""
        where = (self._mesh, self._cells) if NEW else (self._cells,)
        return np.asarray(self._compiled.eval(*where)).reshape(self._rows, self.components)


def vector(function: Any) -> Any:
    """The PETSc vector that shares the values of a function."""
    return function.x.petsc_vec if hasattr(function.x, "petsc_vec") else function.vector


def assemble_forces(b: Any, residual: Any) -> None:
    """b = residual as it stands, reactions in prescribed rows included."""
    with b.localForm() as local:
        local.set(0.0)
    dolfinx.fem.petsc.assemble_vector(b, residual)
    b.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)


def prescribe(b: Any, work: Any, jacobian: Any, bcs: Sequence[Any], x: Any) -> None:
    """Add the lifting of prescribed values to b, and put x - prescribed value into their rows. work: like b"""
    with work.localForm() as local:
        local.set(0.0)
    dolfinx.fem.petsc.apply_lifting(work, [jacobian], [bcs], [x], -1.0)
    work.ghostUpdate(addv=PETSc.InsertMode.ADD, mode=PETSc.ScatterMode.REVERSE)
    b.axpy(1.0, work)
    dolfinx.fem.petsc.set_bc(b, bcs, x, -1.0)


def assemble_jacobian(A: Any, jacobian: Any, bcs: Sequence[Any]) -> None:
    """A = jacobian, with ones on the diagonal of prescribed rows."""
    A.zeroEntries()
    dolfinx.fem.petsc.assemble_matrix(A, jacobian, bcs)
    A.assemble()


def create_matrix(jacobian: Any) -> Any:
    """An empty matrix for a compiled bilinear form."""
    return dolfinx.fem.petsc.create_matrix(jacobian)


def cell_dofs(space: Any, cells: int) -> np.ndarray:
    """Local numbers int32 [cell, dof] of the first `cells` cells."""
    dofs = space.dofmap.list
    if NEW:
        return np.asarray(dofs)[:cells]
    return np.asarray(dofs.array).reshape(dofs.num_nodes, -1)[:cells]


def owned_cells(mesh: Any) -> int:
    """Number of cells that this rank owns; they come first."""
    return int(mesh.topology.index_map(mesh.topology.dim).size_local)


def original_cells(mesh: Any) -> np.ndarray:
    """Numbers int64 [cell] of the owned cells in the mesh as it was given: the same on any number of ranks."""
    return np.asarray(mesh.topology.original_cell_index, dtype=np.int64)[: owned_cells(mesh)]


def local_to_global(space: Any) -> np.ndarray:
    """Global numbers int64 of the local dof blocks of a space."""
    index_map = space.dofmap.index_map
    return np.asarray(index_map.local_to_global(np.arange(index_map.size_local + index_map.num_ghosts, dtype=np.int32)))
