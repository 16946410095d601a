"""What goes wrong in an OpenFOAM run ends it within seconds, with the first cause, and leaves no service behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.openfoam.foam import ADAPTER, Case, cavity, end, heat, mpirun, surroundings, wait_for

pytestmark = [pytest.mark.needs("openfoam"), pytest.mark.timeout(240)]

BROKEN = '''

from stress import ExactStress


class Broken(ExactStress):
    """Answers what is not finite from the third call on."""

    calls = 0

    def solve(self, rows, inputs, guess=None):
        answer = super().solve(rows, inputs, guess)
        Broken.calls += 1
        if Broken.calls > 2:
            answer.outputs[0] = float("nan")
        return answer
'''


def fatal(case: Case, solver: str = "pimpleFoam", ranks: int = 1) -> str:
    """Output of a run that must end with an error, in one line; no service is left."""
    output = case.solve(solver, ranks, code=1)
    if ranks == 1:  # MPI may lose the last words of ranks that it ends
        assert re.search(r"FOAM FATAL (IO )?ERROR", output), output[-3000:]
    case.no_service_left()
    return " ".join(output.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("grad\\(U\\)", "grad(V)"), "input gradient: the solver has no field V to take the gradient of"),
        (("neuroscale.yaml", "other.yaml"), "config: there is no file"),
        (("name stress", "name strss"), "strss"),
        (("components \\(xx xy yx yy\\); unit \"1/s\"", "components (xx xy); unit \"1/s\""), "gradient"),
        (("components \\(xx xy yx yy\\); unit \"1/s\"", "components (xx xq); unit \"1/s\""), "component xq is unknown"),
        (("unit \"m2/s2\"", "unit \"Pa\""), "Pa"),
        (("every;", "sometimes;"), "exchange is sometimes; it may be once"),
        (("every;", "every; noFlux (floor);"), "noFlux: there is no patch floor; the mesh has"),
        (("every;", "every; structure blocks;"), "blocks"),
        (("every;", "every; service \"/no/such/program\";"), "/no/such/program"),
        (("every;", "every; channel pigeon;"), "pigeon"),
    ],
)  # fmt: skip
def test_a_wrong_dictionary_is_said(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    assert said in fatal(cavity(tmp_path).edit("constant/fvOptions", change))


def test_an_equation_that_nobody_assembles_is_an_error(tmp_path: Path) -> None:
    said = fatal(cavity(tmp_path).edit("constant/fvOptions", (r"field +U;", "field T;")))
    assert "the solver has no equation of a field T that reads fvOptions; it has the scalar fields" in said


def test_a_wrong_configuration_is_said_with_its_own_words(tmp_path: Path) -> None:
    case = cavity(tmp_path).edit("neuroscale.yaml", ("gate:", "gat:"))
    assert "did you mean 'neuroscale.gate'" in fatal(case, ranks=2)


def test_a_field_without_a_value_on_a_patch_is_said(tmp_path: Path) -> None:
    case = cavity(tmp_path / "U").edit("0/U", (r"^ *walls[^}]*}", ""))
    assert "Cannot find patchField entry for walls" in fatal(case)
    case = heat(tmp_path / "structure", 8, 6).edit("0/structure", (r'"\.\*"', '"hot|cold"'))
    assert "Cannot find patchField entry for sides" in fatal(case, "laplacianFoam")


def test_a_number_of_a_micro_structure_that_is_none_is_said(tmp_path: Path) -> None:
    case = heat(tmp_path, 8, 6).edit("0/structure", (r"\(\s*0 ", "(-1 "))
    said = fatal(case, "laplacianFoam")
    assert "field structure (key structure) is -1 in cell 0; the numbers of micro structures are whole" in said


def pretend(case: Case, script: str) -> Case:
    """Another program in the place of the service."""
    program = case.folder / "pretend"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o700)
    return case.edit("constant/fvOptions", ("every;", f'every; service "{program}"; startTimeout 2;'))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_service_that_ends_at_once_is_said(tmp_path: Path, ranks: int) -> None:
    said = fatal(pretend(cavity(tmp_path), "exit 3\n"), ranks=ranks)
    assert re.search(r"starting the service (at time \S+ )?failed: .*pretend ended with status 3", said)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_service_that_never_listens_is_said_and_ended(tmp_path: Path, ranks: int) -> None:
    case = pretend(cavity(tmp_path), "exec sleep 1000  # serve\n")
    said = fatal(case, ranks=ranks)
    assert re.search(r"starting the service (at time \S+ )?failed", said)
    sleeping = [p for p in Path("/proc").glob("[0-9]*/environ") if str(case.folder).encode() in environ(p)]
    assert not sleeping


def environ(path: Path) -> bytes:
    """Variables of a process, empty if it has gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_service_that_falls_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    case = cavity(tmp_path, steps=100000).edit("constant/fvOptions", ("every;", "every; timeout 2;"))
    solver = case.start("pimpleFoam")
    try:
        wait_for(solver, "Time = 0.4")
        os.kill(case.services()[0], signal.SIGSTOP)
        output = solver.communicate(timeout=30)[0]
    finally:
        end(solver)
    assert solver.returncode != 0
    assert re.search(r"failed: .*no answer in time|failed: .*did not answer|failed: .*time", " ".join(output.split()))
    case.no_service_left()


def test_a_rank_that_dies_ends_the_others_and_the_service(tmp_path: Path) -> None:
    case = cavity(tmp_path, steps=100000)
    case.run("decomposePar")
    job = case.start(mpirun(), "-n", "2", "pimpleFoam", "-parallel")
    try:
        wait_for(job, "Time = 0.4")
        ranks = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/environ") if is_rank(p, case)]
        assert len(ranks) == 2
        os.kill(max(ranks), signal.SIGKILL)
        job.communicate(timeout=30)
    finally:
        end(job)
    assert job.returncode != 0
    case.no_service_left()


def is_rank(path: Path, case: Case) -> bool:
    """Whether a process is a rank of this case's solver."""
    named = environ(path.with_name("comm")).strip() == b"pimpleFoam"
    return named and str(case.folder).encode() in environ(path)


def test_a_library_that_does_not_load_is_said_by_our_check(tmp_path: Path) -> None:
    """OpenFOAM itself warns and goes on to what it does not know."""
    case = cavity(tmp_path).edit("system/controlDict", ("libneuroscaleFoam.so", "libneuroscaleFoamX.so"))
    assert "Unknown" in fatal(case)
    done = subprocess.run(
        [str(ADAPTER / "check-case"), str(case.folder)], env=surroundings(case.folder), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the library libneuroscaleFoamX.so does not load" in done.stderr


def test_our_check_finds_what_is_missing(tmp_path: Path) -> None:
    case = cavity(tmp_path)
    assert case.run(str(ADAPTER / "check-case"), ".") == ""
    case.edit("constant/fvOptions", ("grad\\(U\\)", "grad(V)"), ("neuroscale.yaml", "other.yaml"))
    said = case.run(str(ADAPTER / "check-case"), ".", code=1)
    assert "the closure names the field V, which no time folder has" in said
    assert "config: there is no file other.yaml" in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_nan_of_the_service_is_never_used(tmp_path: Path, ranks: int) -> None:
    case = cavity(tmp_path)
    (case.folder / "broken.py").write_text(BROKEN)
    case.edit("neuroscale.yaml", ("stress:ExactStress", "broken:Broken"))
    said = fatal(case, ranks=ranks)
    assert "whose answer is not finite" in said
    assert "neuroscaleClosure stress: the exchange " in said


def test_a_nan_of_the_solver_is_named(tmp_path: Path) -> None:
    case = heat(tmp_path, 8, 6)
    case.edit("0/T", (r"^internalField .*", "internalField uniform 1e200;"))
    assert "neuroscaleClosure heat" in fatal(case, "laplacianFoam")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_service_that_dies_ends_the_solver_within_seconds(tmp_path: Path, ranks: int) -> None:
    case = cavity(tmp_path, steps=100000)
    command = ["pimpleFoam"]
    if ranks > 1:
        case.run("decomposePar")
        command = [mpirun(), "-n", str(ranks), "pimpleFoam", "-parallel"]
    solver = case.start(*command)
    try:
        wait_for(solver, "Time = 0.4")
        os.kill(case.services()[0], signal.SIGKILL)
        output = solver.communicate(timeout=20)[0]
    finally:
        end(solver)
    assert solver.returncode != 0
    assert re.search(
        r"neuroscaleClosure stress: the (exchange|commit of the last time step) (at time \S+ )?failed", output
    )
    case.no_service_left()


def test_a_solver_that_is_killed_leaves_no_service(tmp_path: Path) -> None:
    case = cavity(tmp_path, steps=100000)
    solver = case.start("pimpleFoam")
    wait_for(solver, "Time = 0.4")
    solver.kill()
    solver.communicate(timeout=20)
    case.no_service_left(30)


def test_a_restart_without_its_checkpoint_is_said(tmp_path: Path) -> None:
    """Case 05 checkpoints every step; one that has gone further than the fields cannot be taken."""
    case = cavity(tmp_path, steps=4)
    case.solve("pimpleFoam")
    case.edit("system/controlDict", (r"^endTime .*", "endTime 0.64;"))
    assert "resumed after 4 windows" in case.solve("pimpleFoam")
    for folder in case.folder.glob("0.64"):
        for file in folder.rglob("*"):
            if file.is_file():
                file.unlink()
    said = fatal(
        case.edit(
            "system/controlDict", (r"^startFrom .*", "startFrom startTime;"), (r"^startTime .*", "startTime 0.32;")
        )
    )
    assert "the case starts from time 0.32, but the service's checkpoint is of time 0.64" in said
    assert "set `resume no;`" in said
    case.edit("constant/fvOptions", ("every;", "every; resume no;")).solve("pimpleFoam")


DYNAMIC = """FoamFile { version 2.0; format ascii; class dictionary; object dynamicMeshDict; }
dynamicFvMesh dynamicRefineFvMesh;
refineInterval 2; field p; lowerRefineLevel -1e10; upperRefineLevel 1e10; unrefineLevel 0; nBufferLayers 1;
maxRefinement 1; maxCells 100000; correctFluxes ((phi none)); dumpLevel false;
"""


def test_a_mesh_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    case = cavity(tmp_path, 4)
    case.edit("system/blockMeshDict", (r"\$cells 1\)", "$cells 4)"), ("type empty;", "type wall;"), (r" 0\.1\)", " 1)"))
    case.edit("0/U", ("type empty;", "type noSlip;")).edit("0/p", ("type empty;", "type zeroGradient;"))
    case.edit(
        "system/fvSolution",
        (r"^solvers\n{", 'solvers\n{\n    "pcorr.*" { solver PCG; preconditioner DIC; tolerance 1e-6; }'),
    )
    (case.folder / "constant/dynamicMeshDict").write_text(DYNAMIC)
    case.run("blockMesh")
    said = fatal(case)
    assert (
        "the mesh has changed its size at time" in said and "512 cells and 1728 faces, at the start 64 and 240" in said
    )
