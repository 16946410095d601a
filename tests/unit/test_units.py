"""Units that a macro solver's data may have."""

from __future__ import annotations

import pytest

from neuroscale_couple.config.units import factor
from neuroscale_couple.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("MPa", "MPa", 1.0),
        ("Pa", "MPa", 1e-6),
        ("N/mm2", "MPa", 1.0),
        ("N mm^-2", "MPa", 1.0),
        ("(MPa)/(1)", "Pa", 1e6),
        ("kW/m**2", "W/m2", 1e3),
        ("(W/m2)/(K/m)", "W/(m K)", 1.0),
        ("W/m/K", "W/(m K)", 1.0),
        ("%", "1", 0.01),
        ("-", "1", 1.0),
        ("1/K", "K-1", 1.0),
        ("h", "s", 3600.0),
        ("cm2", "m2", 1e-4),
        ("min", "s", 60.0),
    ],
)
def test_factor(source: str, target: str, expected: float) -> None:
    assert factor(source, target) == pytest.approx(expected, rel=1e-12)
    assert factor(target, source) == pytest.approx(1 / expected, rel=1e-12)


def test_other_quantity_is_refused() -> None:
    with pytest.raises(ConfigError, match="'Pa' cannot be converted to 'K': they do not measure the same"):
        factor("Pa", "K")


@pytest.mark.parametrize("wrong", ["foo", "", "W/(m", "W)", "2 m", "m&"])
def test_what_is_not_understood_is_said(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"is not understood.*or give a factor instead|the unit is empty"):
        factor(wrong, "MPa")
