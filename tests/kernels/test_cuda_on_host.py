"""The CUDA kernels against the reference, bit for bit, without a GPU; with one, test_NAME.py runs them there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple import kernels
from tests.kernels.host_cuda import CSRC, CUDA, REFERENCE, cuda_on_host, program

pytestmark = pytest.mark.timeout(400)  # they compile
MAIN = CSRC / "tests/kernels_main.cpp"
ORDERS = ("forward", "backward", "7")


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The order in which the threads of a block run between two barriers."""
    monkeypatch.setenv("HOST_CUDA_ORDER", request.param)
    with cuda_on_host():
        yield


def same(got: Any, expected: Any) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "levels"),
    [((5, 2, 32, 32), 5), ((2, 1, 96, 160), [2, 4, 2]), ((1, 1, 60, 30), [3, 5, 2]), ((2, 1, 16, 16, 16), 4)],
)
def test_pyramid(shape: tuple[int, ...], levels: Any, dtype: Any) -> None:
    field = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    same(kernels.coarsen_pyramid(field, levels, "compiled"), kernels.coarsen_pyramid(field, levels, "reference"))


RACES = ("-O1", "-g", "-fsanitize=thread")
MEMORY = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run(built: Path, *arguments: str, order: str = "forward") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOST_CUDA_ORDER": order, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        [str(built), *arguments], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space does not suit ThreadSanitizer")
    return done


def test_threads_of_cuda_do_not_race(tmp_path: Path) -> None:
    built = program(tmp_path, [*CUDA, *REFERENCE, MAIN], *RACES, host_options=("-O1", "-DHOST_CUDA_RACES"))
    for order in ORDERS:
        done = run(built, "100", order=order)
        assert done.returncode == 0 and "WARNING: ThreadSanitizer" not in done.stderr, done.stdout + done.stderr


def test_cuda_uses_memory_as_it_should(tmp_path: Path) -> None:
    built = program(tmp_path, [*CUDA, *REFERENCE, MAIN], *MEMORY)
    for order in ORDERS:
        done = run(built, "100", order=order)
        assert done.returncode == 0, done.stdout + done.stderr
