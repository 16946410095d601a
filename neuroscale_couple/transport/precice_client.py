"""How the fields that a client declares are called in preCICE: for the channel `precice` of the client (csrc/channels).

The channel reads no YAML and no XML: it asks `neuroscale-couple serve CASE.yaml --precice-names` once, with its fields
on the standard input, and gets where each of its columns lies, factors included, or what does not fit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroscale_couple.config.precice_fields import Carrier, Interface, find_interfaces
from neuroscale_couple.config.precice_macro import refuse_scheme, transposed
from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.config.schema import Config
from neuroscale_couple.errors import ConfigError, NeuroscaleError
from neuroscale_couple.transport.declared import Columns
from neuroscale_couple.transport.frames import Failure, Header, Kind, Reader, Writer, get_fields
from neuroscale_couple.values import Layout

NOWHERE = (0xFFFFFFFF, 0, 0.0)
"""The place of a column that is not exchanged."""
Place = tuple[int, int, float]
"""Number of a data field, component in it, and factor: declared value = factor * value in the data field."""

Sides = tuple[Layout, Layout]
"""Inputs and outputs."""


@dataclass(frozen=True)
class Names:
    """The macro solver's side of a coupling, in the columns that it declares.

    participant, service: the macro solver and our service in the preCICE configuration; folder: preCICE's own
    free_window: the macro solver chooses the length of a window
    sent: data field -> its columns, each with (declared input column, value in the data field / declared value)
    got: data fields that are read, each with its number of components
    outputs, tangent, diagnostics: where each declared column lies; no tangent: `no_tangent` says why
    """

    participant: str
    service: str
    xml: Path
    folder: Path
    mesh: str
    dimensions: int
    ids: str
    implicit: bool
    free_window: bool
    sent: list[tuple[str, list[tuple[int, float]]]]
    got: list[tuple[str, int]]
    outputs: list[Place]
    tangent: list[Place]
    no_tangent: str
    diagnostics: list[Place]

    def packed(self) -> bytes:
        """As text of a message."""
        to = Writer()
        for text in (self.participant, self.service, str(self.xml), str(self.folder), self.mesh, self.ids):
            to.text(text)
        to.put("I", self.dimensions).put("B", self.implicit).put("B", self.free_window)

        def column(entry: tuple[int, float]) -> None:
            to.put("I", entry[0]).put("d", entry[1])

        def place(entry: Place) -> None:
            to.put("I", entry[0]).put("I", entry[1]).put("d", entry[2])

        to.each(self.sent, lambda field: to.text(field[0]).each(field[1], column))
        to.each(self.got, lambda field: to.text(field[0]).put("I", field[1]))
        to.each(self.outputs, place).each(self.tangent, place).text(self.no_tangent).each(self.diagnostics, place)
        return to.bytes()


def names_of(config: Config, folder: Path, known: Sides, declared: Sides, has_tangent: bool = True) -> Names:
    """Find the names. known, declared: inputs and outputs of the micro problem, and as the client declares them.

    Raises: ConfigError, InputError with what does not fit
    """
    inputs, outputs = known
    file, interfaces = find_interfaces(config, folder, inputs, outputs, has_tangent)
    if len(interfaces) != 1:
        raise ConfigError(f"interfaces: the client has one coupling mesh, got {len(interfaces)}")
    interface, service = interfaces[0], config.participant_name
    us = file.peers(service, [interface.mesh])[interface.mesh]
    refuse_scheme(file, service, us, explicit=True)
    columns = Columns.of(declared[0], inputs, "inputs"), Columns.of(declared[1], outputs, "outputs")
    found = _Places(interface.write)
    tangent, missing = _tangent(interface, known, columns, found) if has_tangent else ([], "the micro problem has none")
    wanted = zip(columns[1].at.tolist(), columns[1].factor.tolist(), strict=True)
    after = outputs.size * (1 + inputs.size) if has_tangent else outputs.size
    return Names(
        us, service, file.path, folder, interface.mesh, file.dimensions(interface.mesh), interface.ids or "",
        _implicit(file, service, us), file.sets_window(us, service),
        [(carrier.data, _sent(carrier, columns[0])) for carrier in interface.read],
        [(carrier.data, len(carrier.columns)) for carrier in interface.write],
        [found.output(outputs, at, 1.0 / factor) for at, factor in wanted],
        tangent, missing, [found.places.get(after + i, NOWHERE) for i in range(3)],
    )  # fmt: skip


def _implicit(file: PreciceXml, service: str, us: str) -> bool:
    scheme = file.scheme(service, us)
    return scheme is not None and scheme.variant.endswith("implicit")


def _sent(carrier: Carrier, columns: Columns) -> list[tuple[int, float]]:
    """The declared columns that a data field holds, each with data value / declared value."""
    at = columns.at.tolist()
    pairs = zip(carrier.columns, carrier.factors, strict=True)
    return [(at.index(column), float(columns.factor[at.index(column)]) / factor) for column, factor in pairs]


class _Places:
    """Where our columns lie among the data fields that the service writes."""

    def __init__(self, carriers: Iterable[Carrier]) -> None:
        self.places: dict[int, Place] = {
            column: (number, component, factor)
            for number, carrier in enumerate(carriers)
            for component, (column, factor) in enumerate(zip(carrier.columns, carrier.factors, strict=True))
        }

    def output(self, outputs: Layout, column: int, scale: float) -> Place:
        """The place of an output column; scale: declared value / the micro problem's. Raises: ConfigError"""
        if column not in self.places:
            raise ConfigError(
                f"interfaces.write_data: the solver declares {outputs.columns[column]}, which is not exchanged"
            )
        return self.scaled(column, scale)

    def scaled(self, column: int, scale: float) -> Place:
        number, component, factor = self.places[column]
        return number, component, factor * scale


def _tangent(
    interface: Interface, known: Sides, columns: tuple[Columns, Columns], found: _Places
) -> tuple[list[Place], str]:
    """Places of d(declared output)/d(declared input), row by row; none, and why, where it is not exchanged."""
    inputs, outputs = known
    try:
        turned = dict(transposed(interface, inputs, outputs))
    except ConfigError as error:
        return [], str(error)
    places = []
    for row, below in zip(columns[1].at.tolist(), columns[1].factor.tolist(), strict=True):
        for column, above in zip(columns[0].at.tolist(), columns[0].factor.tolist(), strict=True):
            number = outputs.size + row * inputs.size + column
            places.append(found.scaled(turned.get(number, number), above / below))
    return places, ""


def tell(find: Callable[[Sides], Names]) -> int:
    """Read the declared fields from the standard input and answer with one message on the standard output.

    Returns the exit status. What else is printed goes to the error output.
    """
    answer = os.dup(1)
    os.dup2(2, 1)
    raw = sys.stdin.buffer.read()
    kind, status = Kind.READY, 0
    try:
        text: Any = Reader(raw)
        declared = get_fields(text), get_fields(text)
        text.end()
        packed = find(declared).packed()
    except NeuroscaleError as error:
        packed, kind, status = Failure(True, type(error).__name__, str(error)).packed(), Kind.ERROR, 1
    with os.fdopen(answer, "wb") as file:
        file.write(Header(kind, len(packed), 0).packed() + packed)
    return status
