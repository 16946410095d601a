"""The macro solver of case 01 by itself: patch test, Kirsch's plate, quadratic Newton convergence."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from neuroscale_couple.parallel import SerialComm

CASE = Path(__file__).parents[2] / "cases" / "01_fe2_plate"
E, NU = 5000.0, 0.3
LAME, SHEAR = E * NU / ((1 + NU) * (1 - 2 * NU)), E / (2 * (1 + NU))
STIFFNESS = np.array([[LAME + 2 * SHEAR, LAME, 0], [LAME, LAME + 2 * SHEAR, 0], [0, 0, SHEAR]])
RADIUS = 0.3


@pytest.fixture(scope="module")
def mechanics() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mechanics", CASE / "mechanics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["mechanics"] = module
    spec.loader.exec_module(module)
    return module


def linear(strain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return strain @ STIFFNESS, np.broadcast_to(STIFFNESS, (len(strain), 3, 3))


def softening(strain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sigma = (C e) / (1 + e.C.e / w)^(1/4), from a convex potential, with its exact tangent."""
    limit = 0.2
    s = strain @ STIFFNESS
    q = 1 + np.einsum("pi,pi->p", strain, s) / limit
    factor = q**-0.25
    slope = -0.25 * 2 / limit * q**-1.25
    return factor[:, None] * s, factor[:, None, None] * STIFFNESS + slope[:, None, None] * s[:, :, None] * s[:, None, :]


def solve_with(plate, fixed, values) -> np.ndarray:
    """Linear solve with any prescribed dofs."""
    import scipy.sparse.linalg as solvers

    stiffness = plate.stiffness(np.broadcast_to(STIFFNESS, (4 * len(plate.dofs), 3, 3))).tocsr()
    free = np.setdiff1d(np.arange(plate.size), fixed)
    u = np.zeros(plate.size)
    u[fixed] = values[fixed]
    u[free] = solvers.spsolve(stiffness[free][:, free].tocsc(), -stiffness[free][:, fixed] @ u[fixed])
    return u


def test_points_fill_the_plate(mechanics: ModuleType) -> None:
    ids, coordinates, volumes = mechanics.Plate((16, 16), RADIUS, 1.0, SerialComm()).points()
    assert len(ids) == 1024
    assert np.array_equal(ids, np.arange(1024))
    assert volumes.sum() == pytest.approx(1 - np.pi * RADIUS**2 / 4, rel=1e-6)
    assert (np.linalg.norm(coordinates, axis=1) > RADIUS).all()


def test_odd_number_of_cells_around_is_refused(mechanics: ModuleType) -> None:
    with pytest.raises(ValueError, match="got 5 around the hole, expected an even number"):
        mechanics.Plate((5, 4), RADIUS, 1.0, SerialComm())


def test_linear_displacement_passes_the_patch_test(mechanics: ModuleType) -> None:
    """A displacement that is linear in space gives its uniform strain, and no internal force at inner nodes."""
    plate = mechanics.Plate((4, 4), RADIUS, 1.0, SerialComm())
    x, y = plate.locations.T
    u = np.where(plate.is_x, 0.01 * x + 0.003 * y, 0.002 * x - 0.004 * y)
    strain = plate.strain(u)
    assert np.allclose(strain, [0.01, -0.004, 0.005], atol=1e-13)
    force = plate.internal_force(linear(strain)[0])
    inner = (x > 1e-9) & (y > 1e-9) & (x < 1 - 1e-9) & (y < 1 - 1e-9) & (np.hypot(x, y) > RADIUS + 1e-3)
    assert inner.sum() > 10
    assert np.abs(force[inner]).max() < 1e-12 * E


def kirsch(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Displacement and stress xx of an infinite plate with a hole, unit tension along x, plane strain.

    Source: Kirsch 1898; Muskhelishvili's form.
    """
    r, t, kappa, ratio = np.hypot(x, y), np.arctan2(y, x), 3 - 4 * NU, RADIUS / np.hypot(x, y)
    scale = RADIUS / (8 * SHEAR)
    ux = (kappa + 1) / ratio * np.cos(t) + 2 * ratio * ((1 + kappa) * np.cos(t) + np.cos(3 * t))
    uy = (kappa - 3) / ratio * np.sin(t) + 2 * ratio * ((1 - kappa) * np.sin(t) + np.sin(3 * t))
    ux, uy = ux - 2 * ratio**3 * np.cos(3 * t), uy - 2 * ratio**3 * np.sin(3 * t)
    xx = 1 - ratio**2 * (1.5 * np.cos(2 * t) + np.cos(4 * t)) + 1.5 * ratio**4 * np.cos(4 * t)
    assert r.min() > 0
    return scale * ux, scale * uy, xx


def kirsch_error(mechanics: ModuleType, cells: int) -> tuple[float, float]:
    """Relative L2 error of stress xx, and the largest stress found at the Gauss points against the exact one there."""
    plate = mechanics.Plate((cells, cells), RADIUS, 1.0, SerialComm())
    x, y = plate.locations.T
    ux, uy, _ = kirsch(x, y)
    outer = (x > 1 - 1e-9) | (y > 1 - 1e-9)
    fixed = np.unique(np.concatenate([*plate.symmetry, np.flatnonzero(outer)]))
    u = solve_with(plate, fixed, np.where(plate.is_x, ux, uy))
    found = linear(plate.strain(u))[0][:, 0]
    _, at, weights = plate.points()
    exact = kirsch(*at.T)[2]
    error = np.sqrt(np.sum(weights * (found - exact) ** 2) / np.sum(weights * exact**2))
    peak = int(np.argmax(exact))
    return float(error), float(abs(found[peak] / exact[peak] - 1))


def test_stress_concentration_is_kirschs(mechanics: ModuleType) -> None:
    coarse, _ = kirsch_error(mechanics, 8)
    fine, peak = kirsch_error(mechanics, 16)
    assert fine < 0.005
    assert peak < 0.02
    assert coarse / fine > 3.0  # second order in the stress


def test_newton_converges_quadratically(mechanics: ModuleType) -> None:
    plate = mechanics.Plate((8, 6), RADIUS, 1.0, SerialComm())
    with pytest.raises(RuntimeError, match=r"Newton did not reach 0 in 7 iterations; residuals: ") as caught:
        mechanics.solve_step(plate, plate.stretched(0.01), softening, 0.0, 7)
    text = str(caught.value).rpartition(": ")[2]
    history = np.array([float(r) for r in text.split(", ")])
    drop = np.log10(history)
    steps = [i for i in range(1, 6) if drop[i] > -6 and drop[i] < -1.5]
    assert steps, history
    assert all(drop[i + 1] < 1.6 * drop[i] for i in steps), history
    assert history.min() < 1e-12


def test_extrapolation_is_exact_for_a_line(mechanics: ModuleType) -> None:
    states = [np.array([1.0 - 3 * t, 2.0 * t]) for t in (0.0, 1.0, 2.0)]
    assert np.allclose(mechanics.extrapolate(states[:2]), states[2])


def test_reaction_balances_and_scales_with_a_linear_law(mechanics: ModuleType) -> None:
    plate = mechanics.Plate((8, 6), RADIUS, 1.0, SerialComm())
    one = mechanics.solve_step(plate, plate.stretched(0.01), linear, 1e-10, 5)
    two = mechanics.solve_step(plate, plate.stretched(0.02), linear, 1e-10, 5)
    assert one.iterations == 1
    assert np.allclose(2 * one.u, two.u, rtol=1e-9, atol=1e-14)
    assert two.reaction[0] == pytest.approx(2 * one.reaction[0], rel=1e-9)
    assert abs(one.reaction[1]) < 1e-8 * one.reaction[0]  # nothing pulls in y
    pulled = plate.internal_force(linear(plate.strain(one.u))[0])
    assert pulled[plate.symmetry[0]].sum() == pytest.approx(-one.reaction[0], rel=1e-9)


class Shared:
    """One of two ranks that hold half of the elements each; `allgather` returns what a serial run would have."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return 2


def test_ranks_share_the_points_without_overlap(mechanics: ModuleType) -> None:
    halves = [mechanics.Plate((8, 6), RADIUS, 1.0, Shared(rank)).points() for rank in (0, 1)]
    whole = mechanics.Plate((8, 6), RADIUS, 1.0, SerialComm()).points()
    for part in range(3):
        assert np.array_equal(np.concatenate([half[part] for half in halves]), whole[part])


def test_output_mesh_holds_nodal_and_element_values(mechanics: ModuleType, tmp_path: Path) -> None:
    import meshio

    plate = mechanics.Plate((4, 2), RADIUS, 1.0, SerialComm())
    u = plate.stretched(0.01)
    mesh = plate.output_mesh(u, {"strain": plate.strain(u), "fallback": np.ones((32, 1))})
    mesh.write(tmp_path / "plate.vtu")
    again = meshio.read(tmp_path / "plate.vtu")
    assert np.allclose(again.point_data["displacement"][:, 0], 0.01 * again.points[:, 0])
    assert np.allclose(again.cell_data["strain"][0], [0.01, -0.003, 0.0], atol=1e-12)
    assert again.cell_data["fallback"][0].tolist() == [1.0] * 8
