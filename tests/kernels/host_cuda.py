"""The CUDA kernels on the host: csrc/kernels/cuda compiled by g++ against csrc/tests/host_cuda, thread by thread."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from neuroscale_couple.kernels import backend

CSRC = Path(__file__).parents[2] / "csrc"
HOST = CSRC / "tests/host_cuda/host_cuda.cpp"
CUDA = sorted((CSRC / "kernels/cuda").glob("*.cu"))
CPU = sorted((CSRC / "kernels/cpu").glob("*.cpp"))  # only so that everything links
REFERENCE = sorted((CSRC / "kernels/reference").glob("*.cpp"))
BINDINGS = [
    CSRC / "bindings/module.cpp",
    *sorted(f for f in (CSRC / "bindings").glob("*.cpp") if f.stem in {"array_view", *(c.stem for c in CUDA)}),
]
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-DNEUROSCALE_HOST_CUDA", "-DNEUROSCALE_HAS_CUDA",
         f"-I{CSRC / 'include'}", f"-I{CSRC / 'tests/host_cuda'}", "-Wno-unknown-pragmas"]  # fmt: skip
RACES = ("-O1", "-g", "-fsanitize=thread")
RACES_HOST = ("-O1", "-DHOST_CUDA_RACES")
MEMORY = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NAME = "neuroscale_couple.kernels._compiled"


def compile_all(folder: Path, sources: list[Path], *options: str, host_options: tuple[str, ...] = ()) -> list[str]:
    """Object files of these sources and of the host's stand-in for CUDA; two compilers at a time."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ was not found")

    def one(source: Path) -> str:
        out = str(folder / f"{source.parent.name}_{source.stem}.o")
        mine = host_options if source == HOST and host_options else options
        if source in BINDINGS or source in CPU:
            mine = tuple("-O0" if option == "-O1" else option for option in mine)  # not what is tested
        done = subprocess.run(
            [compiler, *FLAGS, *mine, "-x", "c++", "-c", str(source), "-o", out],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return out

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, [HOST, *sources]))


def program(folder: Path, sources: list[Path], *options: str, host_options: tuple[str, ...] = ()) -> Path:
    """An executable of these sources; skips where a sanitizer's library is not there."""
    objects = compile_all(folder, sources, *options, host_options=host_options)
    out = folder / "program"
    done = subprocess.run(
        ["g++", *options, *objects, "-o", str(out)], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode and "cannot find" in done.stderr:
        pytest.skip("the sanitizer's library was not found")
    assert done.returncode == 0, done.stderr
    return out


def run(built: Path, *arguments: str, order: str = "forward") -> subprocess.CompletedProcess[str]:
    """Run a program; `order`: of the threads between barriers, forward, backward or a number for a mixed one."""
    environment = {**os.environ, "HOST_CUDA_ORDER": order, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(
        [str(built), *arguments], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space does not suit ThreadSanitizer")
    return done


@functools.cache
def _made() -> ModuleType | BaseException:
    try:
        return _make_extension()
    except BaseException as error:
        return error


def extension() -> ModuleType:
    """The compiled extension, whose kernels of CUDA work on arrays of the CPU; built, or not, once per process."""
    made = _made()
    if isinstance(made, BaseException):
        raise made
    return made


def _make_extension() -> ModuleType:
    pybind11 = pytest.importorskip("pybind11")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        includes = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}")
        objects = compile_all(folder, [*CUDA, *REFERENCE, *CPU, *BINDINGS], "-O1", "-fvisibility=hidden", *includes)
        library = folder / f"_compiled{sysconfig.get_config_var('EXT_SUFFIX')}"
        subprocess.run(["g++", "-shared", *objects, "-o", str(library)], check=True, timeout=300)
        spec = importlib.util.spec_from_file_location(NAME, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def cuda_on_host() -> Iterator[None]:
    """Backend `compiled` is CUDA's kernels meanwhile, for arrays of the CPU; `reference` stays what it is."""
    module = extension()
    before = sys.modules.get(NAME)
    sys.modules[NAME] = module
    backend.compiled.cache_clear()
    try:
        yield
    finally:
        if before is None:
            del sys.modules[NAME]
        else:
            sys.modules[NAME] = before
        backend.compiled.cache_clear()
