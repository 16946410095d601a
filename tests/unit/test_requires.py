"""`NSC_TEST_REQUIRES` turns the skip of a named component into an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = """
import pytest

@pytest.mark.needs("precice")
def test_that_needs_an_absent_package():
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A test folder with our conftest, in which `precice` is never found."""
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    absent = '\nCOMPONENTS["precice"] = (lambda: False, "the Python package precice")\n'
    (tmp_path / "conftest.py").write_text(conftest + absent)
    (tmp_path / "test_one.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    needs(component): x\n")
    return tmp_path


def run(folder: Path, requires: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NSC_TEST_REQUIRES": requires}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=100, check=False
    )


def test_an_absent_component_is_skipped_and_counted(folder: Path) -> None:
    done = run(folder, "")
    assert done.returncode == 0, done.stdout
    assert "needs precice: the Python package precice was not found" in done.stdout
    assert "skipped tests: 1 (components required by NSC_TEST_REQUIRES: none)" in done.stdout


def test_a_required_component_fails(folder: Path) -> None:
    done = run(folder, "openfoam, precice")
    assert done.returncode == 1
    assert "NSC_TEST_REQUIRES requires precice, but the Python package precice was not found" in done.stdout
    assert "required by NSC_TEST_REQUIRES: openfoam, precice" in done.stdout


def test_an_unknown_component_is_refused(folder: Path) -> None:
    done = run(folder, "precise")
    assert done.returncode != 0
    assert "names 'precise'; known components: cuda, fenicsx, fortran, openfoam, precice" in done.stderr
