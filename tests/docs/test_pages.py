"""What the pages name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cases").glob("*/README.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
PATH = re.compile(r"`((?:neuroscale_couple|csrc|tests|docs|cases|benchmarks)/[\w./*-]*)`")
PATTERNS = ("NAME", "NN_", "*")
MADE_BY_RUNS = ("docs/results/",)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [m[1] for m in LINK.finditer(page.read_text()) if not m[1].startswith(("http://", "https://", "mailto:"))]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page: Path) -> None:
    named = [m[1] for m in PATH.finditer(page.read_text()) if not any(p in m[1] for p in PATTERNS)]
    assert not [path for path in named if not path.startswith(MADE_BY_RUNS) and not (ROOT / path).exists()]


def test_every_decision_is_listed_and_names_what_was_refused() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for page in sorted(folder.glob("[0-9]*.md")):
        assert f"({page.name})" in listed, f"{page.name} is not in docs/decisions/README.md"
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert "**Decided.**" in text and "**Refused.**" in text, f"{page.name} needs **Decided.** and **Refused.**"
