"""What every test sees: one torch thread, counted skips, and components that CI may require."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

REQUIRES = "NSC_TEST_REQUIRES"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@functools.cache
def _has_precice() -> bool:
    """Whether the package is there and finds its library; tried in a process of its own, as importing it starts MPI."""
    if importlib.util.find_spec("precice") is None:
        return False
    return subprocess.run([sys.executable, "-c", "import precice"], capture_output=True, check=False).returncode == 0


# component -> (whether it is there, what is missing otherwise)
COMPONENTS = {
    "precice": (_has_precice, "the Python package precice with its library"),
    "openfoam": (lambda: shutil.which("pimpleFoam") is not None, "pimpleFoam on PATH"),
    "fenicsx": (lambda: importlib.util.find_spec("dolfinx") is not None, "the Python package dolfinx"),
    "cuda": (_has_cuda, "a CUDA device"),
    "fortran": (lambda: shutil.which("gfortran") is not None, "gfortran on PATH"),
}


def required() -> frozenset[str]:
    """Components whose absence is an error; an unknown name would require nothing in silence, so it is refused."""
    names = frozenset(name.strip() for name in os.environ.get(REQUIRES, "").split(",") if name.strip())
    if unknown := sorted(names - COMPONENTS.keys()):
        raise pytest.UsageError(f"{REQUIRES} names {unknown[0]!r}; known components: {', '.join(sorted(COMPONENTS))}")
    return names


def pytest_configure(config: pytest.Config) -> None:
    required()
    os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for component in marker.args:
            present, missing = COMPONENTS[component]
            if present():
                continue
            if component in required():
                pytest.fail(f"{REQUIRES} requires {component}, but {missing} was not found", pytrace=False)
            pytest.skip(f"needs {component}: {missing} was not found")


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> Iterator[None]:
    """Tests run on shared cores, and sums must not depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    skipped = len(stats.get("skipped", []))
    needed = ", ".join(sorted(required())) or "none"
    terminalreporter.write_line(f"skipped tests: {skipped} (components required by {REQUIRES}: {needed})")
