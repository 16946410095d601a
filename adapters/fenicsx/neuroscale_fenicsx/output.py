"""Fields of all ranks on rank 0, in an order that does not depend on the number of ranks, and files of them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import meshio
import numpy as np
from dolfinx import fem

from neuroscale_couple import Source
from neuroscale_couple.checkpoint import write_atomically
from neuroscale_couple.evaluation.fields import Series
from neuroscale_fenicsx import compat
from neuroscale_fenicsx.operator import ExternalOperator

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


class Records:
    """What a macro script keeps of its steps: `macro.npz`, and a VTU series in `macro/`; rank 0 writes.

    Write a step before it is committed: a run that is killed in between writes it again after `--resume`.
    """

    def __init__(self, operator: ExternalOperator, fields: Gathered, name: str, done: int = 0, **units: str) -> None:
        """name: of the series; done: steps to read back after `--resume`; units: <array>_unit -> its unit.

        Collective: no
        """
        self._operator, self._fields, self._units = operator, fields, units
        self._path = operator.folder / "macro.npz"
        self._series = Series(operator.folder / "macro", name)
        self._kept: dict[str, list[Any]] = {}
        if not fields.root:
            return
        self._series.truncate(done)
        if done:
            with np.load(self._path) as stored:
                self._kept = {array: list(stored[array][:done]) for array in stored.files if stored[array].ndim}

    def keep(self, **values: Any) -> None:
        """Add the values of one step; the file then holds arrays [step, ...] by name, or after a crash those before."""
        if not self._fields.root:
            return
        for name, value in values.items():
            self._kept.setdefault(name, []).append(value)
        data = BytesIO()
        np.savez(data, **{name: np.array(steps) for name, steps in self._kept.items()}, **self._units)
        write_atomically(self._path, data.getvalue())

    def draw(self, number: int, time: float, functions: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
        """Write the VTU of a step: functions at nodes, and each cell's mean of values at points; who answered, too.

        values: name -> float64 [n, ...], of this rank's points. Collective: yes
        """
        reply, fields = self._operator.reply, self._fields
        own = {
            **values,
            "fallback": (reply.source == Source.FINE).astype(np.float64),
            "estimated_error": reply.error,
        }
        means = {name: fields.cells_of(self._operator.cell_means(v)).squeeze() for name, v in own.items()}
        nodes = {name: _spatial(fields.nodes_of(function)) for name, function in functions.items()}
        if not fields.root:
            return
        cells = [(fields.cell_type, fields.cells)]
        cell_data = {name: [v] for name, v in means.items()}
        self._series.write(number, time, meshio.Mesh(fields.points, cells, point_data=nodes, cell_data=cell_data))


def _spatial(values: np.ndarray) -> np.ndarray:
    """Scalars [n, 1] as [n], vectors with three components, as VTK wants them."""
    return values[:, 0] if values.shape[1] == 1 else np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
