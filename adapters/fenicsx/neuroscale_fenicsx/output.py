"""Fields of all ranks on rank 0, in an order that does not depend on the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from dolfinx import fem

from neuroscale_fenicsx import compat

# corners of a cell in the order of VTK
_CORNERS = {"triangle": (0, 1, 2), "quadrilateral": (0, 1, 3, 2), "tetrahedron": (0, 1, 2, 3),
            "hexahedron": (0, 1, 3, 2, 4, 5, 7, 6), "interval": (0, 1)}  # fmt: skip
_VTK = {"triangle": "triangle", "quadrilateral": "quad", "tetrahedron": "tetra", "hexahedron": "hexahedron",
        "interval": "line"}  # fmt: skip
DIGITS = 9
"""Digits by which nodes are told apart and sorted."""


class Gathered:
    """The mesh's corners and cells on rank 0, and fields on them.

    points: float64 [node, 3]; cells: int64 [cell, corner], both empty on other ranks; cells in the order of the mesh
    as it was given, nodes sorted by their coordinates
    """

    def __init__(self, mesh: Any, comm: Any) -> None:
        """Collective: yes, over comm."""
        self.mesh, self.comm, self.root = mesh, comm, comm.Get_rank() == 0
        self._cell_order = self._order_of(compat.original_cells(mesh))
        space = compat.function_space(mesh, "Lagrange", 1)
        owned = space.dofmap.index_map.size_local
        self._node_order, self.points = self._sorted_nodes(space.tabulate_dof_coordinates()[:owned])
        numbers = compat.local_to_global(space)[compat.cell_dofs(space, compat.owned_cells(mesh))]
        name = mesh.topology.cell_type.name
        self.cell_type = _VTK[name]
        corners = self.cells_of(numbers[:, list(_CORNERS[name])])
        place = np.argsort(self._node_order)
        self.cells = place[corners] if self.root else corners
        self._scalar = space
        self._spaces: dict[int, Any] = {}

    def _everywhere(self, own: np.ndarray) -> np.ndarray:
        """Rows of all ranks on rank 0, one rank after the other; none elsewhere."""
        parts = self.comm.gather(np.asarray(own), root=0)
        return np.concatenate(parts) if self.root else np.asarray(own)[:0]

    def _order_of(self, numbers: np.ndarray) -> np.ndarray:
        return np.argsort(self._everywhere(numbers))

    def _sorted_nodes(self, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nodes = self._everywhere(coordinates)
        order = np.lexsort(np.round(nodes, DIGITS).T)
        return order, nodes[order]

    def cells_of(self, own: np.ndarray) -> np.ndarray:
        """Values [owned cell, ...] of all ranks, in the order of `cells`. Collective: yes"""
        return self._everywhere(own)[self._cell_order]

    def nodes_of(self, function: Any) -> np.ndarray:
        """A function at `points`, [node, components]. Collective: yes"""
        size = function.function_space.dofmap.bs
        if size not in self._spaces:
            space = compat.function_space(self.mesh, "Lagrange", 1, (size,) if size > 1 else ())
            self._spaces[size] = fem.Function(space)
        corner = self._spaces[size]
        corner.interpolate(function)
        owned = corner.function_space.dofmap.index_map.size_local
        return self._everywhere(corner.x.array.reshape(-1, size)[:owned])[self._node_order]

    def dofs_of(self, function: Any) -> np.ndarray:
        """All values of a Lagrange function, [dof, components], sorted by the dofs' coordinates. Collective: yes"""
        space = function.function_space
        owned, size = space.dofmap.index_map.size_local, space.dofmap.bs
        order, _ = self._sorted_nodes(space.tabulate_dof_coordinates()[:owned])
        return self._everywhere(function.x.array.reshape(-1, size)[:owned])[order]
