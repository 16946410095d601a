"""Micro problems at the quadrature points of a form: outputs and tangents as quadrature functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms import expand_derivatives

from neuroscale_couple import Points
from neuroscale_couple.errors import InputError
from neuroscale_fenicsx import compat
from neuroscale_fenicsx.connect import connect


class ExternalOperator:
    """A closure that a form can use: `operator["stress"]` is a coefficient, `jacobian` knows its derivative.

    dx: the measure whose quadrature points are the coupling points; use it for every integral of an output
    points: the coupling points of this rank; a point's id is cell of the given mesh * points per cell + its number,
        so that ids (and micro structures) do not depend on the number of ranks
    values: field name -> float64 [n, components], the last answer's outputs; reply: the last answer
    """

    def __init__(
        self,
        config: str | Path,
        comm: Any,
        mesh: Any,
        inputs: Mapping[str, Any],
        degree: int,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect the owned quadrature points of a mesh.

        inputs: field name -> UFL expression, a vector of the field's components in their order
        degree: of the quadrature rule; parameters: name -> array [n, ...] in the order of `quadrature_points(...)`
        Raises: InputError if the inputs are not those of the micro problem. Collective: yes, over comm
        """
        self.mesh, self.degree = mesh, degree
        self.dx = ufl.Measure("dx", domain=mesh, metadata={"quadrature_degree": degree})
        points = quadrature_points(mesh, degree)
        self.points = Points(points.ids, points.coordinates, points.volumes, dict(parameters or {}))
        self.points_per_cell = len(compat.quadrature_rule(mesh, degree)[1])
        self.closure = connect(config, comm, self.points)
        self._inputs = {name: ufl.as_ufl(expression) for name, expression in inputs.items()}
        self._check_inputs()
        rule = compat.quadrature_rule(mesh, degree)[0]
        cells = compat.owned_cells(mesh)
        self._evaluators = {name: compat.Evaluator(e, mesh, rule, cells) for name, e in self._inputs.items()}
        self._outputs = {f.name: self._quadrature_function((len(f.components),)) for f in self.closure.outputs.fields}
        self._tangents: dict[tuple[str, str], _QuadratureFunction] = {}
        self.values: dict[str, np.ndarray] = {}
        self.inputs: dict[str, np.ndarray] = {}
        self.reply: Any = None

    def _check_inputs(self) -> None:
        wanted = {f.name: f.components for f in self.closure.inputs.fields}
        if unknown := sorted(set(self._inputs) - wanted.keys()):
            raise InputError(f"input {unknown[0]!r} is not one of the micro problem's: {', '.join(wanted)}")
        for name, components in wanted.items():
            if name not in self._inputs:
                raise InputError(f"input {name!r} ({', '.join(components)}) of the micro problem has no UFL expression")
            shape = self._inputs[name].ufl_shape
            if int(np.prod(shape, dtype=int)) != len(components) or len(shape) > 1:
                asked = f"a vector of {len(components)} ({', '.join(components)})" if components[1:] else "a scalar"
                raise InputError(f"input {name!r}: the UFL expression has shape {shape}, the problem takes {asked}")

    def _quadrature_function(self, shape: tuple[int, ...]) -> _QuadratureFunction:
        shape = tuple(n for n in shape if n > 1)
        return _QuadratureFunction(self.mesh, self.degree, shape, self.points_per_cell)

    def __getitem__(self, name: str) -> Any:
        """The output as a coefficient: a scalar or a vector of the field's components."""
        return self._outputs[name].function

    def tangent(self, output: str, field: str) -> Any:
        """d output / d input field as a coefficient."""
        if (output, field) not in self._tangents:
            sizes = {f.name: len(f.components) for f in (*self.closure.outputs.fields, *self.closure.inputs.fields)}
            self._tangents[output, field] = self._quadrature_function((sizes[output], sizes[field]))
        return self._tangents[output, field].function

    def derivative(self, output: str, u: Any, du: Any) -> Any:
        """Derivative of an output with respect to the unknown u in the direction du: tangent . d input / du."""
        parts = []
        for field, expression in self._inputs.items():
            change = expand_derivatives(ufl.derivative(expression, u, du))
            if isinstance(change, ufl.constantvalue.Zero):
                continue
            parts.append(_contract(self.tangent(output, field), change, self[output].ufl_shape))
        if not parts:
            raise InputError(f"output {output!r}: none of the inputs depends on the unknown that it is derived by")
        return sum(parts[1:], parts[0])

    def jacobian(self, residual: Any, u: Any, du: Any | None = None) -> Any:
        """The residual's derivative with respect to u, through the outputs as well: what Newton needs.

        du: trial function; None: one is made
        """
        if du is None:
            du = ufl.TrialFunction(u.function_space)
        total = ufl.derivative(residual, u, du)
        for name in self._outputs:
            if any(c is self[name] for c in residual.coefficients()):
                total += ufl.derivative(residual, self[name], expand_derivatives(self.derivative(name, u, du)))
        return total

    def evaluate(self, t: float, dt: float, totals: Mapping[str, float] | None = None) -> None:
        """Send the inputs at the present unknowns and put the answer into the quadrature functions.

        Raises: what `closure.evaluate` raises. Collective: yes
        """
        self.inputs = {name: evaluator() for name, evaluator in self._evaluators.items()}
        self.reply = self.closure.evaluate(self.inputs, t, dt, totals)
        self.values = {name: self.reply[name] for name in self._outputs}
        for name, values in self.values.items():
            self._outputs[name].set(values)
        tangent = self.reply.tangent
        for (output, field), function in self._tangents.items():
            rows, columns = self.closure.outputs.slice_of(output), self.closure.inputs.slice_of(field)
            function.set(tangent[:, rows, columns])

    def cell_means(self, values: np.ndarray) -> np.ndarray:
        """Volume mean of this rank's point values [n, ...] over each owned cell, [cell, components]."""
        shares = self.points.volumes.reshape(-1, self.points_per_cell)
        shares = shares / shares.sum(axis=1, keepdims=True)
        return np.einsum("cq,cqi->ci", shares, values.reshape(*shares.shape, -1))

    def commit(self, macro_state: Mapping[str, np.ndarray] | None = None) -> None:
        """The window has converged. macro_state: this rank's arrays to be kept with the checkpoint. Collective: yes"""
        self.closure.commit(macro_state)

    def rollback(self) -> None:
        """Repeat the window. Collective: yes"""
        self.closure.rollback()

    def close(self) -> None:
        """End the run. Collective: yes"""
        self.closure.close()

    @property
    def folder(self) -> Path:
        """Where the run writes its results."""
        return self.closure.folder


class _QuadratureFunction:
    """A quadrature function, set by values [point, ...] of the owned cells; ghosts are updated."""

    def __init__(self, mesh: Any, degree: int, shape: tuple[int, ...], points_per_cell: int) -> None:
        space = compat.quadrature_space(mesh, degree, shape)
        self.function = fem.Function(space)
        self._size = int(np.prod(shape, dtype=int))
        self._rows = compat.quadrature_dofs(space, compat.owned_cells(mesh), points_per_cell).ravel()

    def set(self, values: np.ndarray) -> None:
        self.function.x.array.reshape(-1, self._size)[self._rows] = values.reshape(-1, self._size)
        self.function.x.scatter_forward()


def _contract(tangent: Any, change: Any, output_shape: tuple[int, ...]) -> Any:
    """tangent . change for scalar or vector outputs and inputs."""
    if not change.ufl_shape:
        return tangent * change
    return ufl.dot(tangent, change) if output_shape else ufl.inner(tangent, change)


def quadrature_points(mesh: Any, degree: int) -> Points:
    """The quadrature points of the cells that this rank owns, cell by cell.

    volumes: quadrature weight * |det J| m^dimension
    """
    rule, weights = compat.quadrature_rule(mesh, degree)
    cells = compat.owned_cells(mesh)
    coordinates = compat.Evaluator(ufl.SpatialCoordinate(mesh), mesh, rule, cells)()
    size = compat.Evaluator(ufl.JacobianDeterminant(mesh), mesh, rule, cells)()
    volumes = np.abs(size[:, 0]) * np.tile(weights, cells)
    ids = (compat.original_cells(mesh)[:, None] * len(weights) + np.arange(len(weights))).ravel()
    return Points(ids, coordinates, volumes)
