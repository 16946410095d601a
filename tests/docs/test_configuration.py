"""The page of the configuration keys says what the schema says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neuroscale_couple.config.schema import Config

ROOT = Path(__file__).parents[2]


def keys(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for key, field in model.model_fields.items():
        yield f"{model.__name__}.{key}", field
        for inner in sections(field.annotation):
            yield from keys(inner)


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for a in get_args(annotation) for s in sections(a)]


KEYS = dict(keys(Config))


@pytest.mark.parametrize("key", list(KEYS))
def test_every_key_is_described(key: str) -> None:
    assert len((KEYS[key].description or "").split()) >= 2, f"{key} needs a description of a few words"


def test_page_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_configuration.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_page_names_every_key() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert not [key for key in KEYS if f"`{key.split('.')[1]}`" not in text]
    assert "| `tolerance` | number, > 0 | `0.02` |" in text
