"""Newton's method of PETSc (SNES) on a residual that holds an external operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dolfinx import fem
from petsc4py import PETSc

from neuroscale_couple.errors import NeuroscaleError
from neuroscale_fenicsx import compat
from neuroscale_fenicsx.operator import ExternalOperator


class NotConvergedError(NeuroscaleError):
    """Newton did not converge; the window was rolled back and the unknown is as before."""


@dataclass(frozen=True)
class Solved:
    """A converged solve. iterations: Newton steps; residuals: size of the residual before each and at the end."""

    iterations: int
    residuals: tuple[float, ...]


class Newton:
    """Full Newton steps with the operator's tangent; one evaluation of the micro problems per iteration.

    The residual on free dofs must fall below `tolerance` times the forces in prescribed dofs (the reactions); a
    problem without such, or with small ones, takes the largest first residual of its solves so far, `largest`, which a
    run that is resumed must be given back.
    snes: the PETSc object; options with the prefix `macro_` apply to it (-macro_ksp_type cg ...)
    """

    def __init__(
        self,
        operator: ExternalOperator,
        residual: Any,
        u: Any,
        bcs: Sequence[Any] = (),
        tolerance: float = 1e-6,
        max_iterations: int = 20,
    ) -> None:
        """residual: UFL form of rank 1 with operator outputs; u: the unknown. Collective: yes"""
        self.operator, self.u, self.bcs = operator, u, list(bcs)
        self.tolerance, self.largest = tolerance, 0.0
        self._residual = fem.form(residual)
        self._jacobian = fem.form(operator.jacobian(residual, u))
        self._forces = fem.Function(u.function_space)  # owns the memory of its vector
        self._prescribed = self._prescribed_dofs()
        self._reaction = 0.0
        self._time = (0.0, 1.0)
        self._history: list[float] = []
        self._cause: Exception | None = None
        self.snes = self._make_snes(max_iterations)

    def _prescribed_dofs(self) -> np.ndarray:
        """Owned dofs that boundary conditions prescribe."""
        found = [bc.dof_indices() for bc in self.bcs]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *(dofs[:own] for dofs, own in found)]))

    def _make_snes(self, max_iterations: int) -> Any:
        x = compat.vector(self.u)
        snes = PETSc.SNES().create(x.comm)
        snes.setOptionsPrefix("macro_")
        snes.setFunction(self._assemble_residual, compat.vector(self._forces).copy())
        matrix = compat.create_matrix(self._jacobian)
        snes.setJacobian(self._assemble_jacobian, matrix)
        snes.setType("newtonls")
        options = PETSc.Options("macro_")
        if "snes_linesearch_type" not in options:
            options["snes_linesearch_type"] = "basic"
        snes.setTolerances(max_it=max_iterations)
        snes.setConvergenceTest(self._converged)
        ksp = snes.getKSP()
        ksp.setType("preonly")
        ksp.getPC().setType("lu")
        if x.comm.size > 1:
            ksp.getPC().setFactorSolverType("mumps")
        snes.setFromOptions()
        return snes

    def solve(self, t: float, dt: float) -> Solved:
        """Solve for the unknown at time t, starting from its present value.

        Raises: NotConvergedError with the residual history, after a rollback; what the service raises. Collective: yes
        """
        self._time, self._history = (t, dt), []
        before = self.u.x.array.copy()
        x = compat.vector(self.u).copy()
        self._cause = None
        try:
            self.snes.solve(None, x)
        except Exception:
            if self._cause is not None:  # newer petsc4py hides it behind an error code
                raise self._cause from None
            raise
        self._take(x)
        reason = self.snes.getConvergedReason()
        if reason > 0:
            return Solved(self.snes.getIterationNumber(), tuple(self._history))
        self.u.x.array[:] = before
        self.operator.rollback()
        shown = ", ".join(f"{r:.1e}" for r in self._history)
        raise NotConvergedError(
            f"t = {t:g}: Newton did not reach {self.tolerance:g} in {self.snes.getIterationNumber()} iterations "
            f"(PETSc reason {reason}); residuals: {shown}. Try a smaller step, or raise max_iterations"
        )

    def forces(self) -> np.ndarray:
        """The residual at the converged unknown without boundary conditions: reactions in prescribed dofs.

        Returns float64 [owned dof]. Collective: yes
        """
        force = compat.vector(self._forces)
        compat.assemble_forces(force, self._residual)
        return np.array(force.array_r)

    def _take(self, x: Any) -> None:
        """Make x the unknown, ghosts included."""
        own = compat.vector(self.u)
        if own.handle != x.handle:
            x.copy(own)
        self.u.x.scatter_forward()

    def _assemble_residual(self, snes: Any, x: Any, b: Any) -> None:
        self._take(x)
        try:
            self.operator.evaluate(*self._time)
        except Exception as error:
            self._cause = error
            raise
        compat.assemble_forces(b, self._residual)
        self._reaction, _ = self._sizes(b)
        compat.prescribe(b, compat.vector(self._forces), self._jacobian, self.bcs, compat.vector(self.u))

    def _assemble_jacobian(self, snes: Any, x: Any, A: Any, P: Any) -> None:
        compat.assemble_jacobian(P, self._jacobian, self.bcs)

    def _sizes(self, b: Any) -> tuple[float, float]:
        """Norms of a vector over prescribed and free dofs of all ranks."""
        squares = np.asarray(b.array_r) ** 2
        prescribed = squares[self._prescribed].sum()
        squares[self._prescribed] = 0.0
        both = np.sqrt(b.comm.tompi4py().allreduce(np.array([prescribed, squares.sum()])))
        return float(both[0]), float(both[1])

    def _converged(self, snes: Any, iteration: int, norms: Any) -> Any:
        off, residual = self._sizes(snes.getFunction()[0])
        self._history.append(residual)
        if iteration == 0:
            self.largest = max(self.largest, residual)
        if not np.isfinite(residual + off):
            return PETSc.SNES.ConvergedReason.DIVERGED_FNORM_NAN
        fits = off <= 1e-10 * max(1.0, self._size_of_unknown())
        if fits and residual <= self.tolerance * max(self._reaction, self.largest):
            return PETSc.SNES.ConvergedReason.CONVERGED_FNORM_RELATIVE
        if iteration >= snes.max_it:
            return PETSc.SNES.ConvergedReason.DIVERGED_MAX_IT
        return PETSc.SNES.ConvergedReason.ITERATING

    def _size_of_unknown(self) -> float:
        return float(compat.vector(self.u).norm())
