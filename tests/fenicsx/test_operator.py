"""The external operator in one process: exact laminates, exact Jacobian, quadratic Newton, messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.errors import InputError
from tests.fenicsx.problems import Heat, laminate, write_config

pytestmark = pytest.mark.needs("fenicsx")


@pytest.fixture(scope="module")
def comm() -> Any:
    from neuroscale_fenicsx import start

    return start()


@pytest.fixture
def heat(comm: Any, tmp_path: Path) -> Heat:
    return Heat(write_config(tmp_path), comm)


def conductors(heat: Heat) -> tuple[Any, Any, Any]:
    """The same problem with the laminate's exact conductivity in place of the micro problems."""
    import ufl
    from dolfinx import fem

    from neuroscale_fenicsx import compat

    space = heat.T.function_space
    T, S, dT = fem.Function(space), ufl.TestFunction(space), ufl.TrialFunction(space)
    along, across = laminate(T)
    flux = ufl.as_vector([along * T.dx(0), across * T.dx(1)])
    residual = (ufl.inner(flux, ufl.grad(S)) - 300.0 * S) * heat.law.dx
    compiled = fem.form(residual), fem.form(ufl.derivative(residual, T, dT))
    return T, *compiled, compat


def test_points_are_those_of_the_mesh(heat: Heat) -> None:
    points = heat.law.points
    assert sorted(points.ids) == list(range(64))
    assert points.volumes.sum() == pytest.approx(1.0, rel=1e-14)
    assert points.volumes @ points.coordinates[:, 0] ** 3 == pytest.approx(0.25, rel=1e-13)


def test_residual_and_jacobian_are_those_of_the_laminate(heat: Heat) -> None:
    """Flux and both tangents against a form with the exact conductivities, at a rough temperature field."""
    T, residual, jacobian, compat = conductors(heat)
    rng = np.random.default_rng(1)
    heat.T.x.array[:] = T.x.array[:] = 340 + 30 * rng.standard_normal(len(T.x.array))
    heat.law.evaluate(1.0, 1.0)
    pairs = []
    for form in (heat.newton._jacobian, jacobian):
        A = compat.create_matrix(form)
        compat.assemble_jacobian(A, form, [])
        pairs.append(A.convert("dense").getDenseArray())
    assert np.abs(pairs[0] - pairs[1]).max() < 1e-9 * np.abs(pairs[1]).max()
    forces = []
    for form in (heat.newton._residual, residual):
        b = compat.vector(T).duplicate()
        compat.assemble_forces(b, form)
        forces.append(b.array.copy())
    assert np.abs(forces[0] - forces[1]).max() < 1e-9 * np.abs(forces[1]).max()


def test_jacobian_is_the_derivative_of_the_residual(comm: Any, tmp_path: Path) -> None:
    """Fibres, so that the tangent is no diagonal: central differences."""
    heat = Heat(write_config(tmp_path, kind="fibres"), comm, cells=2)
    from neuroscale_fenicsx import compat

    rng = np.random.default_rng(2)
    T = 340 + 20 * rng.standard_normal(len(heat.T.x.array))
    step = 1e-3 * rng.standard_normal(len(T))

    def force(values: np.ndarray) -> np.ndarray:
        heat.T.x.array[:] = values
        heat.law.evaluate(1.0, 1.0)
        return heat.newton.forces()

    difference = (force(T + step) - force(T - step)) / 2
    force(T)
    A = compat.create_matrix(heat.newton._jacobian)
    compat.assemble_jacobian(A, heat.newton._jacobian, [])
    expected = A.convert("dense").getDenseArray() @ step
    assert np.abs(difference - expected).max() < 1e-6 * np.abs(expected).max()


def test_newton_is_quadratic(comm: Any, tmp_path: Path) -> None:
    """The order log(r2/r1) / log(r1/r0) of the last residuals above round-off."""
    heat = Heat(write_config(tmp_path), comm, source=6000.0)
    residuals = np.array(heat.newton.solve(1.0, 1.0).residuals)
    r = residuals[residuals > 1e-11 * residuals[0]]
    assert len(r) >= 4, residuals
    orders = np.log(r[2:] / r[1:-1]) / np.log(r[1:-1] / r[:-2])
    assert orders[-1] > 1.9, residuals
    assert residuals[-1] < 1e-11 * residuals[0]


def test_reactions_balance_the_source(heat: Heat) -> None:
    heat.newton.solve(1.0, 1.0)
    assert heat.newton.forces().sum() == pytest.approx(-300.0, rel=1e-9)


def test_windows_are_committed_and_written_down(heat: Heat) -> None:
    from neuroscale_couple.ledger import read_table

    for number in (1, 2):
        heat.newton.solve(float(number), 1.0)
        heat.law.commit()
    heat.law.close()
    ledger = read_table(heat.law.folder / "ledger.csv")
    assert ledger["window"] == [0, 1]
    assert ledger["points"] == [64, 64]
    assert ledger["iterations"][1] == 1, "the second window starts at its solution"


def test_failed_window_is_rolled_back(comm: Any, tmp_path: Path) -> None:
    from neuroscale_fenicsx import Newton, NotConvergedError

    heat = Heat(write_config(tmp_path), comm)
    heat.T.x.array[:] = 310.0
    short = Newton(heat.law, heat.residual, heat.T, heat.bcs, tolerance=1e-11, max_iterations=1)
    with pytest.raises(NotConvergedError, match=r"t = 2: Newton did not reach 1e-11 in 1 iterations .*residuals: "):
        short.solve(2.0, 1.0)
    assert np.all(heat.T.x.array == 310.0)
    solved = heat.newton.solve(2.0, 1.0)
    assert solved.residuals[-1] < 1e-9 * solved.residuals[0]


def test_not_finite_unknown_names_the_point(heat: Heat) -> None:
    heat.T.x.array[:] = np.nan
    with pytest.raises(InputError, match=r"gradient\.x = nan at point id 0 .*64 point"):
        heat.newton.solve(1.0, 1.0)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (lambda ufl, T: {"gradient": ufl.grad(T)}, r"input 'temperature' \(.*\) of the micro problem has no UFL"),
        (lambda ufl, T: {"gradient": T, "temperature": T}, r"'gradient'.* shape \(\), the problem takes a vector of 2"),
        (lambda ufl, T: {"strain": ufl.grad(T)}, r"input 'strain' is not one of the micro problem's: gradient, temp"),
    ],
)
def test_wrong_inputs_are_named(comm: Any, tmp_path: Path, inputs: Any, said: str) -> None:
    import ufl
    from dolfinx import fem, mesh

    from neuroscale_fenicsx import ExternalOperator, compat

    domain = mesh.create_unit_square(comm, 2, 2)
    T = fem.Function(compat.function_space(domain, "Lagrange", 1))
    with pytest.raises(InputError, match=said):
        ExternalOperator(write_config(tmp_path), comm, domain, inputs(ufl, T), degree=2)


def test_output_that_does_not_depend_on_the_unknown(heat: Heat) -> None:
    import ufl
    from dolfinx import fem

    other = fem.Function(heat.T.function_space)
    with pytest.raises(InputError, match="'flux': none of the inputs depends on the unknown"):
        heat.law.derivative("flux", other, ufl.TrialFunction(heat.T.function_space))
