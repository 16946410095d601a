"""Write docs/configuration.md from `config/schema.py`, the single source of all keys.

python docs/make_configuration.py            rewrite the page
python docs/make_configuration.py --check    exit 1 if the page is not current
"""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from neuroscale_couple.config.schema import Config

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """# Configuration

One YAML file beside the solver's own files. Its top is the preCICE adapter configuration; the section `neuroscale:` is
ours. An unknown key is an error that names the nearest one, and `neuroscale-couple check FILE` finds what can be found
before a run starts.

This page is written by `python docs/make_configuration.py` from `neuroscale_couple/config/schema.py`.
"""
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with its full name, in the order of the file."""
    yield path, model
    for key, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            repeated = "[]" if typing.get_origin(field.annotation) is tuple else ""
            yield from sections(inner, f"{path}.{key}{repeated}".lstrip("."))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections that a type consists of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in typing.get_args(annotation) for m in models_in(inner)]


def type_text(annotation: Any) -> str:
    """A type in the words of a YAML file."""
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
    if annotation in plain:
        return plain[annotation]
    arguments = [a for a in typing.get_args(annotation) if a not in (Ellipsis, type(None))]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{a}`" for a in arguments)
    if origin is typing.Annotated:
        bounds = [m for extra in arguments[1:] if isinstance(extra, FieldInfo) for m in extra.metadata]
        return join(type_text(arguments[0]), limits(bounds))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(a) for a in arguments)
    if origin is tuple:
        many = "list of " if Ellipsis in typing.get_args(annotation) else f"{len(arguments)} × "
        return many + type_text(arguments[0])
    if origin is dict:
        return f"section of {type_text(arguments[1])} by name"
    return "section"


def limits(metadata: list[Any]) -> str:
    """Range of a value, e.g. `≥ 0, ≤ 1`."""
    return ", ".join(f"{sign} {getattr(m, k):g}" for m in metadata for k, sign in BOUNDS.items() if hasattr(m, k))


def join(first: str, second: str) -> str:
    """Two texts with a comma where both are there."""
    return ", ".join(t for t in (first, second) if t)


def default_text(field: FieldInfo) -> str:
    """The default as it would be written in the file."""
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else None
    if models_in(field.annotation) or value is None:
        return "-"
    return f"`{json.dumps(value)}`"


def section_text(path: str, model: type[BaseModel]) -> str:
    """Heading, sentence and table of one section."""
    lines = [f"## `{path or 'top of the file'}`\n", (model.__doc__ or "").strip() + "\n"]
    lines += ["| key | type, range | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in model.model_fields.items():
        kind = join(type_text(field.annotation), limits(field.metadata))
        meaning = (field.description or "").replace("|", "or")
        lines.append(f"| `{key}` | {kind} | {default_text(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section_text(path, model) for path, model in sections(Config))])


def main() -> int:
    """Rewrite or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do not write; exit 1 if the page is not current")
    check = parser.parse_args().check
    text = page()
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    if check:
        print("docs/configuration.md is not current: run python docs/make_configuration.py", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
