"""The same bits for any number of threads, no race, no memory error, and indices beyond 2^31."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple import kernels

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "csrc/kernels/cpu").glob("*.cpp")), *sorted((ROOT / "csrc/kernels/reference").glob("*.cpp"))]
MAIN = ROOT / "csrc/tests/kernels_main.cpp"
INCLUDES = ["-I", str(ROOT / "csrc/include"), "-std=c++17", "-ffp-contract=off", "-g"]

BITS = """
import hashlib, sys
import numpy as np
from neuroscale_couple import kernels
rng = np.random.default_rng(0)
found = hashlib.sha256()
def take(*arrays):
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
moments = kernels.coarsen_moments(rng.standard_normal((9, 3, 192, 192)), 6)
take(*moments.mean, *moments.variance, *moments.total)
take(*kernels.coarsen_pyramid(rng.standard_normal((1, 1, 1024, 1536)), [2, 2, 2, 4, 4, 2]))
take(*kernels.coarsen_pyramid(rng.standard_normal((2, 2, 64, 64, 64)).astype(np.float32), 6))
n = 400_000
cells = kernels.CellMap(np.append(np.arange(0, n, 7), n), rng.permutation(n), rng.random(n) + 0.1)
fine = rng.standard_normal((n, 3))
coarse = kernels.coarsen_cells(fine, cells)
take(coarse, kernels.refine_cells(coarse, cells, mean=False))
groups = rng.integers(0, 5, n)
balance = kernels.Balance(kernels.Plan.of(n, groups, 5), fine, np.array([0, 2]), rng.random(n), rng.random(n))
done = kernels.conserve(balance, rng.standard_normal((5, 2)))
take(fine, done.multiplier, done.defect)
t = rng.standard_normal((n // 4, 3, 3))
take(kernels.admissible(t), t)
reason, error = np.zeros(n, np.uint8), np.zeros(n)
curve = np.linspace(0.0, 1.0, 20), rng.random(20)
take(kernels.gate_select(rng.random(n), 0.9, curve, (6, 5), reason, error), reason, error)
print(found.hexdigest())
"""


def bits(threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "false"}
    done = subprocess.run(
        [sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_same_bits_run_to_run_and_for_any_number_of_threads() -> None:
    assert len({bits(1), bits(1), bits(2), bits(3)}) == 1


def built(folder: Path, *options: str | Path) -> Path:
    """The program that runs every kernel, built with these options."""
    program = folder / "kernels"
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ was not found")
    command = [compiler, *INCLUDES, *map(str, options), *map(str, SOURCES), str(MAIN), "-o", str(program), "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    if done.returncode and "cannot find" in done.stderr:
        pytest.skip("the sanitizer's library was not found")
    assert done.returncode == 0, done.stderr
    return program


def test_threads_do_not_race(tmp_path: Path) -> None:
    """ThreadSanitizer on every kernel; parallel regions run on plain threads, which it understands."""
    runtime = ROOT / "csrc/tests/gomp_threads.cpp"
    objects = tmp_path / "gomp.o"
    command = ["g++", "-std=c++17", "-g", "-O1", "-fsanitize=thread", "-c", str(runtime), "-o", str(objects)]
    if shutil.which("g++") is None:
        pytest.skip("g++ was not found")
    subprocess.run(command, check=True, timeout=60)
    # -fopenmp is for the compiler alone: our own runtime comes first, libgomp is not needed
    program = built(tmp_path, "-O1", "-fopenmp", "-fsanitize=thread", objects)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        [str(program), "1"], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space does not suit ThreadSanitizer")
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind was not found")
def test_memory_is_used_as_it_should_be(tmp_path: Path) -> None:
    program = built(tmp_path, "-O1")
    done = subprocess.run(
        ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", str(program), "50"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr


def test_more_than_two_to_the_31_elements() -> None:
    """Zeros that were never written take no memory: Linux maps one page of zeros for all reads."""
    if not sys.platform.startswith("linux"):
        pytest.skip("relies on Linux' page of zeros")
    try:
        field = np.zeros((1, 1, 65_536 + 256, 32_768), np.float32)
    except MemoryError:
        pytest.skip("8.6 GB of address space were refused")
    assert field.size > 2**31
    field[0, 0, -1, -1] = 65_536.0
    field[0, 0, 65_535, 300] = 131_072.0
    (coarse,) = kernels.coarsen_pyramid(field, [256])
    assert coarse[0, 0, -1, -1] == 1.0 and coarse[0, 0, 255, 1] == 2.0
    assert np.count_nonzero(coarse) == 2
    flat = field.reshape(-1, 1)
    last = len(flat) - 1
    offsets, cells = np.array([0, 2]), np.array([last, 5])
    from neuroscale_couple.kernels.coarsen_cells import coarsen_by

    assert coarsen_by(flat, offsets, cells, None, None)[0, 0] == 65_536.0
