"""Warnings of Debian's FEniCSx itself that tests of ours are not held to."""

from __future__ import annotations

from pathlib import Path

import pytest

FILTERS = (
    # ffcx 0.5 calls numpy.product, which numpy 1.25 has announced to leave
    "ignore:`product` is deprecated:DeprecationWarning",
    # ffcx 0.5 leaves the C files that it writes to the garbage collector
    r"ignore:unclosed file .*libffcx:ResourceWarning",
    r"ignore:Exception ignored in. .*libffcx:pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for text in FILTERS:
                item.add_marker(pytest.mark.filterwarnings(text))
