"""The form of the docstrings of all public names, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "neuroscale_couple").rglob("*.py"))
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Arrays carry their shape in brackets: [n, 3], [point, ...], [].
SHAPE = re.compile(r"\[[^\]]*\]")
ARRAYS = re.compile(r"\b(F64|I64|U8|Bool|NDArray|ArrayLike|Tensor)\b")


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Public classes and functions of a module, and the public methods of those classes."""
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


def inherits(tree: ast.Module, name: str) -> bool:
    """Whether a method belongs to a class that fulfils a contract, and may leave the description to it."""
    owner = name.split(".")[0]
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner]
    return any(ast.unparse(base) not in ("ABC", "Protocol") for n in found for base in n.bases)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return " ".join(ast.unparse(a) for a in [*(x.annotation for x in arguments), node.returns] if a is not None)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_names_are_said_in_a_sentence(path: Path) -> None:
    tree = ast.parse(path.read_text())
    problems = []
    if tree.body and not (ast.get_docstring(tree) or "").strip():
        problems.append("the module has no docstring")
    for qualified, node in public(tree.body):
        text = ast.get_docstring(node)
        if text is None:
            if "." not in qualified or not inherits(tree, qualified):
                problems.append(f"line {node.lineno}: {qualified} has no docstring")
            continue
        paragraph = " ".join(text.strip().split("\n\n")[0].split())
        # The sentence may run on into the arrays it names: "w: [n, y, x]." and "ds/de: [n, c] ...".
        if not re.search(r"[.:?](\s|$)", paragraph) or paragraph[0].isspace():
            problems.append(f"line {node.lineno}: {qualified}: the first sentence does not end with a full stop")
    assert not problems, name(path) + ": " + "; ".join(problems)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_functions_of_arrays_state_shapes(path: Path) -> None:
    tree = ast.parse(path.read_text())
    problems = []
    for qualified, node in public(tree.body):
        if isinstance(node, ast.ClassDef) or not ARRAYS.search(annotations(node)):
            continue
        text = ast.get_docstring(node)
        # A method of a subclass may leave the shapes to the contract that it fulfils.
        if text is not None and not SHAPE.search(text) and not ("." in qualified and inherits(tree, qualified)):
            problems.append(f"line {node.lineno}: {qualified} takes or returns arrays, but states no shape")
    assert not problems, name(path) + ": " + "; ".join(problems)


def test_every_file_was_found() -> None:
    assert len(FILES) > 20
