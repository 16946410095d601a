"""neuroscale-couple in dolfinx: micro problems at quadrature points, with their tangent, in a PETSc Newton solve.

    comm = start()                                                     # before dolfinx is imported
    operator = ExternalOperator(config, comm, mesh, {"strain": strain(u)}, degree=2)
    residual = inner(operator["stress"], strain(v)) * operator.dx
    newton = Newton(operator, residual, u, bcs)
    newton.solve(t, dt)
    operator.commit()

Only `start` can be used before dolfinx is imported; the other names import it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuroscale_fenicsx.start import start

if TYPE_CHECKING:
    from neuroscale_fenicsx.newton import Newton, NotConvergedError, Solved
    from neuroscale_fenicsx.operator import ExternalOperator, quadrature_points
    from neuroscale_fenicsx.output import Gathered, Records

_PLACES = {
    "ExternalOperator": "operator",
    "Gathered": "output",
    "Newton": "newton",
    "NotConvergedError": "newton",
    "Records": "output",
    "Solved": "newton",
    "quadrature_points": "operator",
}
__all__ = [
    "ExternalOperator",
    "Gathered",
    "Newton",
    "NotConvergedError",
    "Records",
    "Solved",
    "quadrature_points",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
