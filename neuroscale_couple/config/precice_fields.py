"""Which preCICE data field carries which of our columns: by name, or as `neuroscale.precice.data` says.

preCICE knows scalars and vectors of the mesh dimension. A field of ours with more components is split, and put
together by name: `Stress` in our configuration is `Stress` in the XML if its size fits, else `Stress-XX`,
`Stress-YY`, `Stress-XY` (or Stress_xx, stress.xx, stressXX ...). Likewise `Tangent-XX-YY` or `Tangent-12`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from neuroscale_couple.config import units
from neuroscale_couple.config.precice_xml import Asked, PreciceXml, mistakes
from neuroscale_couple.config.schema import Config, DataName, PreciceData
from neuroscale_couple.config.schema import Interface as XmlInterface
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.values import FieldSpec, Layout

DIAGNOSTICS = ("neuroscale.source", "neuroscale.error_estimate", "neuroscale.model_version")
"""Columns that may be written beside the outputs: which rung answered, its estimated error, the surrogate's version."""

IDS_OF_THE_MESH = ("coordinates", "vertices")
"""Values of `precice.ids` that name no data field."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column that we read or write. group: the field it belongs to; aliases: plain names it is known by."""

    name: str
    group: str
    suffix: str
    unit: str
    aliases: frozenset[str]


@dataclass(frozen=True, slots=True)
class Carrier:
    """One preCICE data field: the columns it carries in order, and our value = factor * its value for each."""

    data: str
    vector: bool
    columns: tuple[int, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """One macro mesh and what is carried over it. ids: the data field that holds the ids of its points, if one does."""

    mesh: str
    read: tuple[Carrier, ...]
    write: tuple[Carrier, ...]
    ids: str | None = None


@dataclass
class Fit:
    """The interfaces, and what does not fit, each in a sentence."""

    interfaces: list[Interface] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def asked(self) -> list[Asked]:
        """What the preCICE configuration must provide."""
        return [
            Asked(
                i.mesh,
                {c.data: c.vector for c in i.read} | ({i.ids: False} if i.ids is not None else {}),
                {c.data: c.vector for c in i.write},
            )
            for i in self.interfaces
        ]


def plain(name: str) -> str:
    """A name without case and separators."""
    return re.sub(r"[-_. ]", "", name).lower()


def input_columns(inputs: Layout) -> list[Column]:
    """The columns that we read."""
    return [
        Column(full, f.name, c, f.unit, frozenset({plain(f.name + c)}))
        for full, (f, c) in zip(inputs.columns, _components(inputs), strict=True)
    ]


def output_columns(inputs: Layout, outputs: Layout, tangent: bool = True) -> list[Column]:
    """The columns that we can write: outputs, tangent (row by row, if there is one) and diagnostics."""
    found = []
    for full, (f, c) in zip(outputs.columns, _components(outputs), strict=True):
        # a symmetric tensor: yx is xy
        turned = {plain(f.name + c[::-1])} if len(c) == 2 and c[::-1] not in f.components else set()
        found.append(Column(full, f.name, c, f.unit, frozenset({plain(f.name + c)} | turned)))
    rows, columns = _labels(outputs), _labels(inputs)
    out_units, in_units = _units(outputs), _units(inputs)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns if tangent else ()):
            aliases = {plain(f"tangent{row}{column}")}
            if max(len(rows), len(columns)) < 10:
                aliases.add(f"tangent{i + 1}{j + 1}")
            unit = f"({out_units[i]})/({in_units[j]})"
            found.append(Column(f"tangent.{row}.{column}", "tangent", f"{row}-{column}", unit, frozenset(aliases)))
    return found + [Column(name, name, "", "1", frozenset({plain(name)})) for name in DIAGNOSTICS]


def _components(layout: Layout) -> list[tuple[FieldSpec, str]]:
    return [(f, c) for f in layout.fields for c in f.components]


def _units(layout: Layout) -> list[str]:
    return [f.unit for f in layout.fields for _ in f.components]


def _labels(layout: Layout) -> list[str]:
    """Short names of columns: the component, or the field where it has none; full names if two are alike."""
    short = [c or f.name for f in layout.fields for c in f.components]
    return short if len(set(short)) == len(short) else list(layout.columns)


def fit(config: Config, file: PreciceXml, inputs: Layout, outputs: Layout, tangent: bool = True) -> Fit:
    """Find the carriers of all interfaces. Mistakes are collected, not raised."""
    found = Fit()
    if not config.interfaces:
        found.mistakes.append("interfaces: none is named; name the macro mesh, what is read and what is written")
    used: set[str] = set()
    ids = id_field(config)
    for number, interface in enumerate(config.interfaces):
        sides = []
        found.mistakes += [f"interfaces[{number}].read_data: {m}" for m in _wrong_ids(file, interface, ids)]
        for side, entries, columns in (
            ("read_data", tuple(e for e in interface.read_data if e.name != ids), input_columns(inputs)),
            ("write_data", interface.write_data, output_columns(inputs, outputs, tangent)),
        ):
            matcher = _Matcher(file, interface.mesh_name, columns, config.neuroscale.precice.data, side)
            carriers = matcher.match(entries)
            sides.append(carriers)
            used |= matcher.used
            found.mistakes += [f"interfaces[{number}].{side}: {m}" for m in matcher.mistakes]
        found.interfaces.append(Interface(interface.mesh_name, sides[0], sides[1], ids))
    for entry in config.neuroscale.precice.data:
        if config.interfaces and entry.name not in used:
            names = sorted(used | {e.name for i in config.interfaces for e in (*i.read_data, *i.write_data)})
            found.mistakes.append(
                f"neuroscale.precice.data: {entry.name!r} is in no interface; there are {', '.join(names)}"
            )
    known = inputs.columns
    for name in config.neuroscale.precice.initial:
        if name not in known:
            found.mistakes.append(f"neuroscale.precice.initial: no input {name!r}; there are {', '.join(known)}")
    return found


def id_field(config: Config) -> str | None:
    """The data field that holds the ids of the points; None where they come from the mesh."""
    named = config.neuroscale.precice.ids
    return None if named in IDS_OF_THE_MESH else named


def _wrong_ids(file: PreciceXml, interface: XmlInterface, ids: str | None) -> Iterable[str]:
    """What does not fit about the field that holds the ids."""
    if ids is None:
        return
    if ids not in {entry.name for entry in interface.read_data}:
        yield (
            f"neuroscale.precice.ids names {ids!r}, which is not read over mesh {interface.mesh_name!r}; add "
            f"{{name: {ids}}}, or write ids: {' | '.join(IDS_OF_THE_MESH)}"
        )
    elif file.is_vector(ids):
        place = file.at(file.data[ids])
        yield f'{ids!r} holds the ids and must be a scalar; {place}: write <data:scalar name="{ids}" />'


class _Matcher:
    """Finds the carriers of one side of one interface."""

    def __init__(
        self, file: PreciceXml, mesh: str, columns: list[Column], rules: Iterable[PreciceData], side: str
    ) -> None:
        self.file, self.columns, self.side = file, columns, side
        self.rules = {rule.name: rule for rule in rules}
        self.names = {column.name: i for i, column in enumerate(columns)}
        self.dimensions = file.dimensions(mesh) or 2
        tag = file.meshes.get(mesh)
        on_mesh = [t.get("name") for t in tag.all("use-data")] if tag is not None else []
        # Data of this mesh first: another mesh may carry data of the same plain name.
        self.available = list(dict.fromkeys([*on_mesh, *file.data]))
        self.mistakes: list[str] = []
        self.used: set[str] = set()

    def match(self, entries: Sequence[DataName]) -> tuple[Carrier, ...]:
        """The carriers of these entries; what is wrong goes to `mistakes`."""
        carriers: list[Carrier] = []
        for entry in entries:
            carriers += self._entry(entry.name)
        self._check_complete(carriers)
        return tuple(carriers)

    def _entry(self, name: str) -> list[Carrier]:
        rule = self.rules.get(name)
        if rule is not None and rule.holds:
            unknown = [c for c in rule.holds if c not in self.names]
            if unknown:
                self._unknown(unknown[0], self.names, f"{name!r} cannot hold {unknown[0]!r}")
                return []
            return self._carrier(name, [self.names[c] for c in rule.holds], name)
        group = [i for i, c in enumerate(self.columns) if plain(c.group) == plain(name)]
        if group and (name in self.file.data or len(group) == 1):
            return self._carrier(name, group, name)
        if group:
            return self._components_of(name, group)
        single = [i for i, c in enumerate(self.columns) if plain(name) in c.aliases]
        if single:
            return self._carrier(name, single, name)
        groups = dict.fromkeys(c.group for c in self.columns)
        self._unknown(name, groups, f"{name!r} is none of our fields")
        return []

    def _unknown(self, name: str, known: Iterable[str], said: str) -> None:
        lowered = {k.lower(): k for k in known}
        near = get_close_matches(name.lower(), lowered, 1, 0.6)
        hint = f"did you mean {lowered[near[0]]!r}? " if near else ""
        verb = "read" if self.side == "read_data" else "write"
        self.mistakes.append(
            f"{said}; {hint}We {verb} {', '.join(lowered.values())}; a name of your own needs an entry in "
            f"neuroscale.precice.data, e.g. {{name: {name}, holds: [{self.columns[0].name}]}}"
        )

    def _components_of(self, name: str, group: list[int]) -> list[Carrier]:
        """A field that is split into scalars, one for each component."""
        by_plain = {plain(data): data for data in reversed(self.available)}
        found: list[Carrier] = []
        missing = []
        there = {i: next((by_plain[a] for a in self._aliases(name, i) if a in by_plain), None) for i in group}
        for i in group:
            data = there[i]
            if data is not None:
                found += self._carrier(data, [i], name)
            elif not (self.columns[i].group == "tangent" and there.get(self._turned(i)) is not None):
                missing.append(i)
        for i in missing:
            suggestion = f"{name}-{self.columns[i].suffix.upper()}"
            whole = f"{len(group)} components ({', '.join(self.columns[k].suffix for k in group)})"
            use = f'<use-data name="{suggestion}" />'
            self.mistakes.append(
                f"{name!r} has {whole}, but there is no data for {self.columns[i].name}; add to "
                f'{self.file.path}: <data:scalar name="{suggestion}" />, to the mesh: {use}, '
                "and read, write and exchange it like the others"
            )
        return found

    def _aliases(self, name: str, i: int) -> list[str]:
        return sorted({plain(name + self.columns[i].suffix)} | self.columns[i].aliases)

    def _turned(self, i: int) -> int:
        """The column of the transposed tangent component; -1 if there is none."""
        row, _, column = self.columns[i].suffix.partition("-")
        return self.names.get(f"tangent.{column}.{row}", -1)

    def _carrier(self, data: str, columns: list[int], rule_name: str) -> list[Carrier]:
        vector = self.file.is_vector(data)
        if vector is None:
            vector = len(columns) > 1
        size = self.dimensions if vector else 1
        self.used |= {data, rule_name}
        if size != len(columns):
            self._wrong_size(data, vector, size, columns)
            return []
        factors = []
        for i in columns:
            try:
                factors.append(self._factor(data, rule_name, self.columns[i].unit))
            except ConfigError as error:
                self.mistakes.append(f"{data!r}: {error}")
                factors.append(1.0)
        return [Carrier(data, vector, tuple(columns), tuple(factors))]

    def _wrong_size(self, data: str, vector: bool, size: int, columns: list[int]) -> None:
        kind = f"a vector of {size} components on this mesh" if vector else "a scalar"
        names = [self.columns[i].name for i in columns]
        group = self.columns[columns[0]].group
        lines = "".join(f'<data:scalar name="{data}-{self.columns[i].suffix.upper()}" />' for i in columns)
        one = f'<data:scalar name="{data}" />'
        fits = len(columns) == self.dimensions and not vector
        write = f'<data:vector name="{data}" />' if fits else (one if len(columns) == 1 else lines)
        self.mistakes.append(
            f"{data!r} is {kind}, but {group} has {len(columns)} ({', '.join(names)}); "
            f"{self.file.at(self.file.data.get(data))}: write {write}, or name what it holds in neuroscale.precice.data"
        )

    def _factor(self, data: str, rule_name: str, unit: str) -> float:
        rule = self.rules.get(data) or self.rules.get(rule_name)
        if rule is None:
            return 1.0
        if rule.factor == 0.0:
            raise ConfigError("its factor is 0")
        return rule.factor * (1.0 if rule.unit is None else units.factor(rule.unit, unit))

    def _check_complete(self, carriers: Sequence[Carrier]) -> None:
        """Every input comes once; an output that is written at all is written whole."""
        carried = [i for c in carriers for i in c.columns]
        reading = self.side == "read_data"
        if reading and (twice := next((i for i in carried if carried.count(i) > 1), None)) is not None:
            self.mistakes.append(f"{self.columns[twice].name} is read from two data fields; name one")
        if self.mistakes:
            return  # said already
        started = {self.columns[i].group for i in carried} - {"tangent"}
        for i, column in enumerate(self.columns):
            if i not in carried and (reading or column.group in started):
                verb = "read" if reading else "written, though the rest of it is"
                name = f"{column.group.capitalize()}{'-' if column.suffix else ''}{column.suffix.upper()}"
                self.mistakes.append(
                    f"{column.name} [{column.unit}] is not {verb}; add {{name: {name}}}, or name the data that holds "
                    "it in neuroscale.precice.data"
                )
        if not carriers and not reading:
            self.mistakes.append(
                "nothing is written; name an output, e.g. {name: " + self.columns[0].group.capitalize() + "}"
            )


def find_interfaces(
    config: Config, folder: Path, inputs: Layout, outputs: Layout, tangent: bool = True
) -> tuple[PreciceXml, list[Interface]]:
    """Read the preCICE configuration beside ours and find what is carried over which mesh.

    folder: of our configuration; tangent: whether the micro problem has one
    Raises: ConfigError with all that does not fit: names, sizes, units, and tags of the preCICE configuration.
    """
    if config.precice_config_file_path is None:
        raise ConfigError("precice_config_file_path is missing; transport: precice needs the preCICE configuration")
    file = PreciceXml((folder / config.precice_config_file_path).resolve())
    found = fit(config, file, inputs, outputs, tangent)
    us, settings = config.participant_name, config.neuroscale.precice
    exported = frozenset(rule.name for rule in settings.data if rule.exported)
    tested = config.neuroscale.fine.solver != "micro_manager"  # its users' cases run as they are
    wrong = found.mistakes + list(mistakes(file, us, found.asked(), exported, tested))
    peers = file.peers(us, [i.mesh for i in found.interfaces])
    if settings.window_size is None and any(file.sets_window(us, peer) for peer in set(peers.values())):
        wrong.append(
            "neuroscale.precice.window_size is missing: the coupling scheme (method first-participant) leaves the time "
            "window to us; give our time step"
        )
    for interface in found.interfaces:
        if interface.ids is not None and not file.there_at_start(us, peers[interface.mesh], interface.ids):
            wrong.append(
                f"{file.at(file.scheme(us, peers[interface.mesh]))}: {interface.ids!r} holds the ids of the points "
                '(neuroscale.precice.ids) and comes too late; write its <exchange ... initialize="true" />, or take a '
                f"serial scheme with {peers[interface.mesh]!r} first"
            )
    if config.neuroscale.record is not None:
        wrong.append("neuroscale.record: transport: precice does not record; use preCICE's own export, or embedded")
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return file, found.interfaces
