"""What the pages name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from neuroscale_couple.cli import parser
from neuroscale_couple.config.load import load
from neuroscale_couple.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cases").glob("*/README.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
PATH = re.compile(r"`((?:neuroscale_couple|csrc|tests|docs|cases|benchmarks)/[\w./*-]*)`")
YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_can_be_read(page: Path, tmp_path: Path) -> None:
    """Each key that a page shows is known; excerpts may leave keys out."""
    mistakes = []
    for block in YAML.findall(page.read_text()):
        if re.search(r"^neuroscale:", block, re.MULTILINE) and "micro_manager:" not in block:
            (tmp_path / "neuroscale.yaml").write_text(block)
            try:
                load(tmp_path / "neuroscale.yaml")
            except ConfigError as error:
                mistakes += [line for line in str(error).splitlines() if "is missing" not in line]
    assert not mistakes


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    """Lines of code blocks; what is said beside a command stands after two spaces, a # or a colon of mpirun."""
    for block in CODE.findall(page.read_text()):
        for command in re.findall(r"neuroscale-couple ((?:run|serve|check|train|report) \S.*)", block):
            words = re.split(r"  | #| : ", command.replace("\\", " ").replace('"$@"', ""))[0]
            parser().parse_args(shlex.split(words))


def test_every_decision_is_listed_and_names_what_was_refused() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for page in sorted(folder.glob("[0-9]*.md")):
        assert f"({page.name})" in listed, f"{page.name} is not in docs/decisions/README.md"
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert "**Decided.**" in text and "**Refused.**" in text, f"{page.name} needs **Decided.** and **Refused.**"
