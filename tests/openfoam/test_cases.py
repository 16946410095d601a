"""Cases 04 and 05: exact answers, the same on ranks, conserved to round-off."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.openfoam.foam import ADAPTER, BUILD, CAVITY, HEAT, Case, cavity, heat, relative_l2, times

pytestmark = [pytest.mark.needs("openfoam"), pytest.mark.timeout(600)]
CLOSED, EXACT = tomllib.loads((CAVITY / "expected.toml").read_text())["closure"], (CAVITY, "exact")


def without_closure(folder: Path, cells: int, steps: int) -> Case:
    """The cavity at the viscosity that the closure stands for."""
    case = cavity(folder / "exact", cells, steps)
    (case.folder / "constant/fvOptions").unlink()
    case.edit("system/controlDict", (r"^functions[\s\S]*", ""), (r"^libs .*", ""))
    case.edit("constant/transportProperties", (r"^nu .*", "nu 0.02;"))
    case.solve("pimpleFoam")
    return case


def balances(output: str) -> np.ndarray:
    """Relative differences between the flux through the boundary and that into the cells, as the plug-in says them."""
    return np.array([float(text) for text in re.findall(r"relative difference ([-+\d.e]+)", output)])


def test_a_stress_like_a_viscosity_is_that_viscosity_ever_closer(tmp_path: Path) -> None:
    differences = []
    for cells, steps in ((8, 25), (16, 50)):
        folder = tmp_path / str(cells)
        closed, exact = cavity(folder, cells, steps), without_closure(folder, cells, steps)
        output = closed.solve("pimpleFoam")
        last = times(closed.folder)[-1]
        differences.append(relative_l2(closed.value(last, "U"), exact.value(last, "U")))
        assert balances(output).max() < 1e-13, "conservative to round-off"
        assert len(balances(output)) == 2 * steps, "an exchange in each of two outer correctors"
    assert differences[0] < 0.012
    assert differences[1] < 0.6 * differences[0]


@pytest.mark.slow
def test_the_cavity_of_the_readme(tmp_path: Path) -> None:
    closed, exact = cavity(tmp_path, 32, 200), without_closure(tmp_path, 32, 200)
    closed.solve("pimpleFoam")
    difference = relative_l2(closed.value("4", "U"), exact.value("4", "U"))
    assert difference <= CLOSED["largest_at_32"]
    assert difference == pytest.approx(CLOSED["difference"][CLOSED["cells"].index(32)], rel=0.05)


def test_ranks_and_correctors_do_not_change_the_cavity(tmp_path: Path) -> None:
    alone, two = cavity(tmp_path / "1"), cavity(tmp_path / "2")
    for case in (alone, two):  # else ranks differ by the linear solver's tolerance
        case.edit("system/fvSolution", ("tolerance 1e-8; relTol 0.01", "tolerance 1e-13; relTol 0"), ("1e-9", "1e-13"))
    alone.solve("pimpleFoam")
    output = two.solve("pimpleFoam", ranks=2)
    last = times(alone.folder)[-1]
    assert relative_l2(two.value(last, "U"), alone.value(last, "U")) < 1e-9
    assert balances(output).max() < 1e-13
    assert output.count("neuroscaleClosure stress: connected, 96 points") == 1
    once = cavity(tmp_path / "once").edit("constant/fvOptions", ("every;", "once;"))
    output = once.solve("pimpleFoam")
    assert output.count("neuroscaleMonitor monitor: 1 exchanges") == 10
    assert 1e-6 < relative_l2(once.value(last, "U"), alone.value(last, "U")) < 0.01
    for case in (alone, two, once):
        case.no_service_left()


def flows(output: str) -> list[float]:
    """Heat that enters through the hot edge at the end of each time step, W per m of thickness."""
    steps = re.split(r"^Time = ", output, flags=re.MULTILINE)[1:]
    return [2e6 * float(re.findall(r"hot ([-+\d.e]+)", step)[-1]) for step in steps]


def test_two_scale_heat_agrees_with_the_other_macro_solver(tmp_path: Path) -> None:
    """A few cells against the finite elements of case 02, to the error of the mesh; what leaves is what was stored."""
    expected = tomllib.loads((HEAT / "expected.toml").read_text())
    case = heat(tmp_path)
    output = case.solve("laplacianFoam", seconds=120)
    assert flows(output) == pytest.approx(expected["finite_elements"]["heat_flow"], rel=0.01)
    assert balances(output).max() < 1e-12
    accepted = [float(share) for share in re.findall(r"accepted +([\d.]+) %", output)]
    assert len(accepted) == 8 and min(accepted) > 80 and accepted[-1] > 99
    source, error = (case.value("1600", f"heat:{name}") for name in ("source", "error"))
    assert set(np.unique(source)) <= {0, 1, 2} and (source == 0).mean() > 0.9
    assert 0 < error.max() < 0.02 and (case.value("1600", "heat:model") >= 0).all()
    rows = np.loadtxt(case.folder / "postProcessing/monitor/0/closure.dat")
    assert rows[:, 0].tolist() == [200.0 * i for i in range(1, 9)]
    assert (rows[:, 3:6].sum(axis=1) == 32 * 24 + 2 * 32 + 2 * 24).all()
    assert (np.diff(rows[:, 2]) < 1e-4).all() and rows[-1, 2] < 1e-5, "the corrections have converged"


def in_a_repository(case: Path, folder: Path) -> Case:
    """A copy of a case that finds the plug-in where its run.sh looks for it."""
    for part in (ADAPTER, BUILD):
        link = folder / part.relative_to(ADAPTER.parents[1])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(part)
    return Case.copy(case, folder / "cases")


def test_the_scripts_of_the_cases_run(tmp_path: Path) -> None:
    plate = in_a_repository(HEAT, tmp_path / "heat")
    plate.edit("system/blockMeshDict", (r"^along .*", "along 24;"), (r"^across .*", "across 12;"))
    output = plate.run("./run.sh", code=1, seconds=180)  # so few cells differ by more than the case promises
    assert "step 8: heat flow" in output and "largest difference" in output
    assert (plate.folder / "plate.foam").exists()
    output = in_a_repository(CAVITY, tmp_path / "cavity").run("./run.sh", "8", seconds=120)
    assert re.search(r"8 x 8 cells, time 4: velocity differs by 0\.\d+% \(relative L2\)", output)


def test_heat_on_ranks_and_restarted_is_the_same_heat(tmp_path: Path) -> None:
    """Micro structures belong to cells whatever the ranks; a run stopped at a written time goes on to the same end."""
    alone = heat(tmp_path / "alone", 16, 12)
    alone.solve("laplacianFoam")
    two = heat(tmp_path / "two", 16, 12)
    two.edit("system/controlDict", (r"^endTime .*", "endTime 800;"))
    two.solve("laplacianFoam", ranks=2)
    two.edit("system/controlDict", (r"^endTime .*", "endTime 1600;"))
    output = two.solve("laplacianFoam")
    assert "Time = 1000" in output and "Time = 800" not in output
    rise = alone.value("1600", "T") - 300
    assert relative_l2(two.value("1600", "T") - 300, rise) < 1e-6
