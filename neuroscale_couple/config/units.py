"""Factors between units, e.g. from Pa to MPa, for data whose unit is not the micro problem's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from neuroscale_couple.errors import ConfigError

Dimension = tuple[int, int, int, int]
"""Powers of m, kg, s and K."""

_NONE: Dimension = (0, 0, 0, 0)
_SYMBOLS: dict[str, tuple[float, Dimension]] = {
    "1": (1.0, _NONE),
    "-": (1.0, _NONE),
    "%": (0.01, _NONE),
    "m": (1.0, (1, 0, 0, 0)),
    "g": (1e-3, (0, 1, 0, 0)),
    "s": (1.0, (0, 0, 1, 0)),
    "K": (1.0, (0, 0, 0, 1)),
    "N": (1.0, (1, 1, -2, 0)),
    "Pa": (1.0, (-1, 1, -2, 0)),
    "bar": (1e5, (-1, 1, -2, 0)),
    "J": (1.0, (2, 1, -2, 0)),
    "W": (1.0, (2, 1, -3, 0)),
    "min": (60.0, (0, 0, 1, 0)),
    "h": (3600.0, (0, 0, 1, 0)),
}
_PREFIXES = {"G": 1e9, "M": 1e6, "k": 1e3, "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9}
_TOKEN = re.compile(r"\s*(?:(?P<symbol>[A-Za-zµ%]+|1|-(?!\d))|(?P<power>(?:\^|\*\*)?-?\d+)|(?P<sign>[/*·.()]))")


def factor(source: str, target: str) -> float:
    """The number f with `value in target = f * value in source`, e.g. factor("Pa", "MPa") = 1e-6.

    Raises: ConfigError if a unit is not understood, or the two do not measure the same.
    """
    if source == target:
        return 1.0
    (f, dimension), (g, other) = _read(source), _read(target)
    if dimension != other:
        raise ConfigError(f"the unit {source!r} cannot be converted to {target!r}: they do not measure the same")
    return f / g


def _read(unit: str) -> tuple[float, Dimension]:
    tokens = list(_tokens(unit))
    if not tokens:
        raise ConfigError("the unit is empty; write 1 for a pure number")
    size, dimension = _product(unit, tokens)
    if tokens:
        raise _not_understood(unit)
    return size, dimension


def _tokens(unit: str) -> Iterator[str]:
    place = 0
    while place < len(unit.rstrip()):
        match = _TOKEN.match(unit, place)
        if match is None:
            raise _not_understood(unit)
        place = match.end()
        # a power needs a symbol before it: a leading 1 is the symbol of a pure number
        yield match["symbol"] or match["sign"] or match["power"]


def _product(unit: str, tokens: list[str]) -> tuple[float, Dimension]:
    """Read factors until the text or a bracket ends; `/` holds for the next factor alone."""
    size, dimension, divide = 1.0, _NONE, False
    while tokens and tokens[0] != ")":
        token = tokens.pop(0)
        if token in ("/", "*", "·", "."):
            divide = token == "/"
            continue
        if token == "(":
            f, d = _product(unit, tokens)
            if not tokens or tokens.pop(0) != ")":
                raise _not_understood(unit)
        else:
            f, d = _symbol(unit, token)
        power = _power(tokens) * (-1 if divide else 1)
        size *= f**power
        dimension = tuple(a + power * b for a, b in zip(dimension, d, strict=True))  # type: ignore[assignment]
        divide = False
    return size, dimension


def _power(tokens: list[str]) -> int:
    if tokens and re.fullmatch(r"(?:\^|\*\*)?-?\d+", tokens[0]):
        return int(tokens.pop(0).lstrip("^*"))
    return 1


def _symbol(unit: str, text: str) -> tuple[float, Dimension]:
    if text in _SYMBOLS:
        return _SYMBOLS[text]
    if text[:1] in _PREFIXES and text[1:] in _SYMBOLS:
        f, d = _SYMBOLS[text[1:]]
        return _PREFIXES[text[0]] * f, d
    raise _not_understood(unit, text)


def _not_understood(unit: str, part: str = "") -> ConfigError:
    which = f" ({part!r})" if part else ""
    return ConfigError(
        f"the unit {unit!r} is not understood{which}; known are {', '.join(list(_SYMBOLS)[2:])} with the prefixes "
        f"{', '.join(_PREFIXES)}, as in MPa, W/(m K), kg/m3; or give a factor instead"
    )
