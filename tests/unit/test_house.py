"""The rules of the house: soft limits, cheap imports, flags of the benchmarks."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTION, FILE, NESTING, LINE = 60, 400, 3, 120

PACKAGE = sorted((ROOT / "neuroscale_couple").rglob("*.py"))
FOLDERS = ("adapters", "benchmarks", "cases", "docs", "tests")
OTHERS = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
CPP = sorted(p for end in ("h", "hpp", "c", "cpp", "cu", "C", "H") for p in (ROOT / "csrc").rglob(f"*.{end}"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def depth(statements: list[ast.stmt], above: int = 0) -> int:
    """Deepest nesting of blocks; `elif` is no deeper than its `if`, and a function inside starts anew."""
    deepest = above
    for node in statements:
        if not isinstance(node, BLOCKS):
            continue
        deepest = max(deepest, above + 1)
        for field in ("body", "orelse", "finalbody"):
            inner = getattr(node, field, [])
            is_elif = field == "orelse" and isinstance(node, ast.If) and [type(n) for n in inner] == [ast.If]
            deepest = max(deepest, depth(inner, above if is_elif else above + 1))
        for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            deepest = max(deepest, depth(handler.body, above + 1))
    return deepest


def test_depth_counts_blocks() -> None:
    def of(text: str) -> int:
        return depth(ast.parse(text).body)

    assert of("x = 1") == 0
    assert of("for a in b:\n  if a:\n    pass\n  elif b:\n    pass") == 2
    assert of("try:\n  pass\nexcept E:\n  while a:\n    with b:\n      pass") == 3
    assert of("if a:\n  def f():\n    if b:\n      pass") == 1


@pytest.mark.parametrize("path", PACKAGE + OTHERS, ids=name)
def test_python_file_keeps_the_limits(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= FILE, f"{name(path)}: {lines} lines, at most {FILE}: split it by idea"
    for node in functions(ast.parse(text)):
        length = (node.end_lineno or 0) - node.lineno + 1
        where = f"{name(path)}:{node.lineno} {node.name}"
        assert length <= FUNCTION, f"{where}: {length} lines, at most {FUNCTION}"
        nesting = depth(node.body)
        assert nesting <= NESTING, f"{where}: {nesting} nested blocks, at most {NESTING}"


@pytest.mark.parametrize("path", CPP, ids=name)
def test_cpp_file_keeps_the_limits(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE, f"{name(path)}: {len(lines)} lines, at most {FILE}: split it by idea"
    too_long = [i for i, line in enumerate(lines, start=1) if len(line) > LINE]
    assert not too_long, f"{name(path)}:{too_long[0]}: more than {LINE} characters"


# Folder of csrc -> what its files may not include.
FORBIDDEN_INCLUDES = {
    "include": ("Python", "pybind11", "torch", "ATen", "mpi", "cuda"),
    "kernels/reference": ("Python", "pybind11", "torch", "ATen", "mpi", "cuda"),
    "kernels/cpu": ("Python", "pybind11", "torch", "ATen", "mpi", "cuda"),
    "kernels/cuda": ("Python", "pybind11", "torch", "ATen", "mpi"),
    "client/": ("Python", "pybind11", "torch", "ATen", "cuda", "mpi"),
    "tests": ("Python", "pybind11", "torch", "ATen", "mpi"),  # tests/host_cuda stands in for cuda_runtime.h
    "channels/embedded": ("pybind11", "torch", "ATen", "cuda", "mpi"),
    "channels/mpi": ("Python", "pybind11", "torch", "ATen", "cuda"),
    "channels/ranks": ("Python", "pybind11", "torch", "ATen", "cuda", "mpi"),
    "channels/precice": ("Python", "pybind11", "torch", "ATen", "cuda", "mpi"),
    "examples": ("Python", "pybind11", "torch", "ATen", "cuda"),
    "bindings": ("torch", "ATen", "mpi"),
}


@pytest.mark.parametrize("path", CPP, ids=name)
def test_cpp_file_includes_what_its_layer_may(path: Path) -> None:
    inside = path.relative_to(ROOT / "csrc").as_posix()
    forbidden = [word for folder, words in FORBIDDEN_INCLUDES.items() if inside.startswith(folder) for word in words]
    assert forbidden, f"{name(path)}: its folder has no rule in FORBIDDEN_INCLUDES"
    includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
    assert not [line for line in includes if any(f"{opening}{w}" in line for w in forbidden for opening in '<"')]


def test_every_package_folder_has_an_init() -> None:
    folders = {path.parent for path in PACKAGE}
    assert not [name(f) for f in sorted(folders) if not (f / "__init__.py").exists()]


def test_import_is_cheap() -> None:
    program = """
import sys
import neuroscale_couple
heavy = {"torch", "mpi4py", "mapie", "sklearn", "scipy", "matplotlib", "skfem", "meshio", "precice"}
print(",".join(sorted(heavy & sys.modules.keys())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "", f"import neuroscale_couple imports {done.stdout.strip()}"


@pytest.mark.parametrize("path", BENCHMARKS, ids=name)
def test_benchmark_takes_the_common_flags(path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert "--quick" in done.stdout


def test_the_version_is_said_once() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{declared}]" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_calls_make_test() -> None:
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")


@pytest.mark.skipif(sys.platform != "linux", reason="the script asks apt-get")
def test_system_packages_are_wanted_only_where_a_folder_asks(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "system-packages"
    script.write_text((ROOT / ".ci" / "system-packages").read_text())

    def run() -> str:
        command = ["sh", str(script)]
        environment = {"PATH": "/usr/bin:/bin", "NSC_DRY_RUN": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout

    assert run() == ""
    (tmp_path / "tests" / "openfoam").mkdir(parents=True)
    (tmp_path / "tests" / "openfoam" / "system-packages").write_text("# the solver\nno-such-package-of-ours\n")
    assert "no-such-package-of-ours" in run()


LOCKED = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"


@pytest.mark.skipif(sys.platform != "linux", reason="the script asks apt-get")
@pytest.mark.parametrize(
    ("said", "calls"), [(LOCKED, ["update", "update", "install"]), ("E: no network", ["update"])], ids=["lock", "other"]
)
def test_system_packages_wait_for_another_apt(tmp_path: Path, said: str, calls: list[str]) -> None:
    """A lock that is taken is waited for; another error ends the script with what apt said."""
    programs = {
        "apt-get": f'echo "$@" >> calls; [ -e before ] || {{ touch before; echo "{said}" >&2; exit 100; }}',
        "dpkg": "exit 1", "id": "echo 0", "sleep": "exit 0",
    }  # fmt: skip
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for folder, text in ((".ci", (ROOT / ".ci" / "system-packages").read_text()), ("tests/a", "a-package\n")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "system-packages").write_text(text)
    command = ["sh", str(tmp_path / ".ci" / "system-packages")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60, check=False
    )
    lines = (tmp_path / "calls").read_text().splitlines()
    assert [next(name for name in ("update", "install") if name in line.split()) for line in lines] == calls
    assert all("-o DPkg::Lock::Timeout=600" in line for line in lines)
    assert (done.returncode == 0) is (said == LOCKED)
    assert (said in done.stderr) is (said != LOCKED)


@pytest.mark.parametrize(
    ("version", "there", "called"),
    [("3.4.1", 1, ["-m pip install --quiet --user pyprecice==3.4.*"]), ("3.4.1", 0, []), ("", 1, [])],
    ids=["library alone", "package too", "no library"],
)
def test_python_package_of_precice_comes_where_its_library_is(
    tmp_path: Path, version: str, there: int, called: list[str]
) -> None:
    programs = {
        "pkg-config": f"[ -n '{version}' ] && echo {version}",
        "python": f'[ "$1" = -c ] && exit {there}; echo "$@" >> {tmp_path}/calls; exit 1',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    command = ["sh", str(ROOT / ".ci" / "pyprecice"), str(tmp_path / "python"), "--user"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60, check=True
    )
    calls = tmp_path / "calls"
    assert (calls.read_text().splitlines() if calls.exists() else []) == called
    assert ("the tests that need it skip" in done.stdout) is bool(called)
