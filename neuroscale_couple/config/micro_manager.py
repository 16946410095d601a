"""Reads a `micro-manager-config.json` of the preCICE Micro Manager, old and new dialect, as a configuration of ours.

| concept | up to 0.8 | 0.12 |
| --- | --- | --- |
| micro file | micro_file_name | micro_manager.micro_file_names[0] |
| preCICE file | coupling_params.precice_config_file_name, config_file_name | precice_config_file_path |
| participant | coupling_params.participant_name | participant_name |
| mesh, data | coupling_params.{macro_mesh_name, read_data_names, write_data_names} | interfaces[0] |
| the rest | simulation_params, diagnostics | the same under micro_manager |

What has no meaning here is known by name, so that a misspelt key is still found.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.errors import ConfigError

TOLERANCE = 0.01
"""Relative error that an accepted answer may have where nothing else is said."""
AXES = ("x", "y", "z")
KINDS = ("scalar", "vector")
SECTIONS: dict[str, tuple[str, ...]] = {
    "": ("participant_name", "precice_config_file_path", "interfaces", "micro_manager", "neuroscale"),
    "micro": (
        *("micro_file_name", "micro_file_names", "micro_stateless_flags", "micro_stateless"),
        *("output_directory", "output_dir", "memory_usage_output_type", "memory_usage_output_n"),
        *("coupling_params", "simulation_params", "diagnostics", "snapshot_params", "tasking"),
    ),
    "coupling_params": (
        *("participant_name", "precice_config_file_name", "config_file_name", "macro_mesh_name"),
        *("read_data_names", "write_data_names", "parameter_file_name"),
    ),
    "simulation_params": (
        *("micro_dt", "micro_output_n", "macro_domain_bounds", "decomposition", "decomposition_type"),
        *("minimum_access_region_size", "adaptivity", "adaptivity_settings", "load_balancing"),
        *("load_balancing_settings", "model_adaptivity", "model_adaptivity_settings", "model_switching"),
        *("model_switching_settings", "interpolation_configs", "interpolate_crash", "interpolate_crash_params"),
    ),
    "diagnostics": ("data_from_micro_sims", "micro_output_n", "output_micro_sim_solve_time"),
    "interfaces[0]": ("mesh_name", "read_data", "write_data", "patches"),
}
REPLACED = {
    "adaptivity": "the gate decides which points are solved (neuroscale.gate); similar points are solved once",
    "load_balancing": "each rank spreads its points over worker processes (fine.micro.workers)",
    "interpolate_crash": "a point that fails is answered by the surrogate where there is one (fine.on_failure: keep)",
    "output_micro_sim_solve_time": "the ledger has the seconds of all micro solves of a window",
    "memory_usage_output_type": "memory is not written down",
    "tasking": "micro simulations run in worker processes anyway (fine.micro.workers)",
}


def as_ours(path: Path, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Our configuration, not yet checked. own: a `neuroscale` section that goes before what is said here.

    Raises: ConfigError with all mistakes, one a line
    """
    raw = _read(path)
    said = _Reader(path, raw)
    new = "micro_manager" in raw or "interfaces" in raw
    top = said.section(raw, "") if new else {}
    micro = said.section(top.get("micro_manager", {}) if new else {k: v for k, v in raw.items() if k != "neuroscale"},
                         "micro")  # fmt: skip
    ours = _Case(said, top, micro, dict(raw.get("neuroscale") or {}) | dict(own or {})).ours()
    if said.mistakes:
        raise ConfigError("\n".join(f"{path}: {line}" for line in dict.fromkeys(said.mistakes)))
    return ours


def replaced(path: Path) -> Iterator[str]:
    """What this configuration asks the Micro Manager for that is there by other means, each in a sentence."""
    raw = _read(path)
    micro = raw.get("micro_manager", raw)
    values = {**micro, **micro.get("simulation_params", {}), **micro.get("diagnostics", {})}
    for key, means in REPLACED.items():
        if values.get(key) not in (None, False, "False", "false", ""):
            yield f"{key}: {means}"


class _Case:
    """Puts together one case."""

    def __init__(self, said: _Reader, top: Mapping[str, Any], micro: Mapping[str, Any], own: dict[str, Any]) -> None:
        self.said, self.top, self.micro, self.own = said, top, micro, own
        self.coupling = said.section(micro.get("coupling_params", {}), "coupling_params")
        self.simulation = said.section(micro.get("simulation_params", {}), "simulation_params")
        self.diagnostics = said.section(micro.get("diagnostics", {}), "diagnostics")
        faces = top.get("interfaces") or [{}]
        if isinstance(faces, list) and len(faces) > 1:
            said.mistake(f"interfaces: got {len(faces)}, expected one: the macro mesh")
        self.face = said.section(faces[0] if isinstance(faces, list) else faces, "interfaces[0]")

    def ours(self) -> dict[str, Any]:
        """The whole configuration."""
        file = self._first(
            "precice_config_file_path", self.top.get("precice_config_file_path"),
            self.coupling.get("precice_config_file_name"), self.coupling.get("config_file_name"),
        )  # fmt: skip
        mesh = self._first("interfaces[0].mesh_name", self.face.get("mesh_name"), self.coupling.get("macro_mesh_name"))
        reads = self._names(self.face.get("read_data", self.coupling.get("read_data_names")), "read_data")
        writes = self._names(self.face.get("write_data", self.coupling.get("write_data_names")), "write_data")
        exported = self._names(self.diagnostics.get("data_from_micro_sims"), "diagnostics.data_from_micro_sims")
        exported = {name: kind for name, kind in exported.items() if name not in writes}
        name = self.top.get("participant_name") or self.coupling.get("participant_name") or "Micro-Manager"
        if self.said.mistakes:
            return {}
        xml = PreciceXml((self.said.path.parent / file).resolve())
        sides = {"inputs": self._fields(xml, mesh, reads), "outputs": self._fields(xml, mesh, writes | exported)}
        section = self._defaults(xml, str(name), mesh, sides, list(exported))
        merge(section, self.own)
        return {
            "participant_name": name,
            "precice_config_file_path": file,
            "interfaces": [
                {
                    "mesh_name": mesh,
                    "read_data": [{"name": n} for n in reads],
                    "write_data": [{"name": n} for n in (*writes, *exported)],
                }
            ],
            "neuroscale": section,
        }

    def _first(self, key: str, *values: Any) -> str:
        found = next((value for value in values if value), None)
        if not isinstance(found, str):
            old = {"precice_config_file_path": "coupling_params.precice_config_file_name",
                   "interfaces[0].mesh_name": "coupling_params.macro_mesh_name"}[key]  # fmt: skip
            self.said.mistake(f"the key '{key}' (or, in the old form, '{old}') is missing")
        return str(found)

    def _names(self, given: Any, key: str) -> dict[str, str | None]:
        """Data names, and what the file says that they are: scalar, vector or nothing."""
        if given is None:
            return {}
        if isinstance(given, Mapping):
            for name, kind in given.items():
                if kind not in KINDS:
                    self.said.mistake(f"'{key}.{name}': got {kind!r}, expected 'scalar' or 'vector'")
            return dict(given)
        if isinstance(given, list):
            names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in given]
            if all(isinstance(name, str) for name in names):
                return dict.fromkeys(map(str, names))
        self.said.mistake(f"'{key}': got {given!r}, expected a list of names")
        return {}

    def _fields(self, xml: PreciceXml, mesh: str, names: Mapping[str, str | None]) -> dict[str, Any]:
        """Our fields: the preCICE configuration says what is a vector, and of how many components."""
        fields = {}
        for name, kind in names.items():
            vector = xml.is_vector(name)
            if kind is not None and vector is not None and (kind == "vector") != vector:
                self.said.mistake(f"{name!r} is a {kind} here, but {'' if vector else 'no '}vector in {xml.path}")
            axes = list(AXES[: xml.dimensions(mesh) or 3])
            fields[name] = {"components": axes if (kind == "vector" if vector is None else vector) else [""]}
        return fields

    def _defaults(
        self, xml: PreciceXml, us: str, mesh: str, sides: Mapping[str, Any], exported: list[str]
    ) -> dict[str, Any]:
        """Our section, where the user has said nothing."""
        step = self.said.number(self.simulation, "micro_dt")
        every = self.said.number(self.simulation, "micro_output_n") or self.said.number(
            self.diagnostics, "micro_output_n"
        )
        scheme = xml.scheme(us, xml.peers(us, [mesh])[mesh])
        limit = xml.max_iterations(us, xml.peers(us, [mesh])[mesh])
        keep = self.said.truth(self.simulation, "interpolate_crash")
        section: dict[str, Any] = {
            "transport": "precice",
            "problem": {"name": "opaque", "history": not self._stateless(), **sides},
            "fine": {
                "solver": "micro_manager",
                "on_failure": "keep" if keep else "stop",
                "micro": {
                    "file": self._file(),
                    "folder": str(self.said.path.parent.resolve()),
                    "rollback": scheme is None or scheme.variant.endswith("implicit"),
                    "output_every": 1 if every is None else int(every),
                },
            },
            "gate": {"tolerance": TOLERANCE, "iterations": None if limit is None else max(1, limit // 2)},
            "learning": {"mode": "online"},
            "correction": {"admissible": False},
            "output": {"checkpoint": False, "every": 0},
            "precice": {
                "data": [self._rule(name, field, exported) for side in sides.values() for name, field in side.items()],
                "regions": self._regions(),
                "ids": "vertices",
                "unconverged": "continue",
            },
        }
        if step:
            section["precice"] |= {"max_step": float(step), "window_size": float(step)}
        return section

    @staticmethod
    def _rule(name: str, field: Mapping[str, Any], exported: list[str]) -> dict[str, Any]:
        columns = [f"{name}.{c}" if c else name for c in field["components"]]
        return {"name": name, "holds": columns, "exported": name in exported}

    def _file(self) -> str:
        names = self.micro.get("micro_file_names") or self.micro.get("micro_file_name")
        names = [names] if isinstance(names, str) else names or []
        switching = self.said.truth(self.simulation, "model_switching") or self.said.truth(
            self.simulation, "model_adaptivity"
        )
        if (own := self.own.get("fine", {}).get("micro", {}).get("file")) is not None:
            return str(own)
        if not names:
            self.said.mistake("the key 'micro_file_name' (or 'micro_manager.micro_file_names') is missing")
            return ""
        if switching:
            self.said.mistake(
                "model switching is not done here: the surrogate is the cheap model, and the gate switches by its "
                f"error; say which model is the trusted one, e.g. neuroscale: {{fine: {{micro: {{file: {names[0]}}}}}}}"
            )
        return str(names[0])

    def _stateless(self) -> bool:
        flags = self.micro.get("micro_stateless_flags") or self.micro.get("micro_stateless") or False
        return self.said.as_truth(flags[0] if isinstance(flags, list) else flags, "micro_stateless_flags")

    def _regions(self) -> list[Any]:
        """One access region a rank: the domain in equal parts."""
        parts = self.simulation.get("decomposition") or [1]
        bounds = self.simulation.get("macro_domain_bounds")
        if not isinstance(parts, list) or not all(isinstance(p, int) and p > 0 for p in parts):
            self.said.mistake(f"'simulation_params.decomposition': got {parts!r}, expected a list of whole numbers")
            return []
        if all(p == 1 for p in parts):
            return []
        if not isinstance(bounds, list) or len(bounds) != 2 * len(parts):
            self.said.mistake(
                f"'simulation_params.macro_domain_bounds': got {bounds!r}, expected {2 * len(parts)} numbers for a "
                f"decomposition in {len(parts)} directions"
            )
            return []
        regions: list[list[list[float]]] = [[]]
        for axis, count in enumerate(parts):
            low, high = float(bounds[2 * axis]), float(bounds[2 * axis + 1])
            cuts = [low + (high - low) * k / count for k in range(count + 1)]
            regions = [[*region, cuts[k : k + 2]] for k in range(count) for region in regions]
        return regions


class _Reader:
    """Values of the file; what is wrong is collected."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path, self.mistakes = path, list[str]()

    def mistake(self, text: str) -> None:
        """One more thing that is wrong."""
        self.mistakes.append(text)

    def section(self, given: Any, name: str) -> dict[str, Any]:
        """A section whose keys are all known."""
        shown = {"": "", "micro": "micro_manager."}.get(name, f"{name}.")
        if not isinstance(given, Mapping):
            self.mistake(f"'{shown.rstrip('.')}': got {given!r}, expected a section of keys and values")
            return {}
        known = SECTIONS[name]
        for key in given:
            if key in known:
                continue
            shown_key = f"{shown}{key}".removeprefix("micro_manager.")
            self.mistake(f"unknown key '{shown_key}'; {_hint(key, known)}")
        return dict(given)

    def truth(self, section: Mapping[str, Any], key: str) -> bool:
        """A truth value; old files write it as a text."""
        return self.as_truth(section.get(key, False), key)

    def as_truth(self, given: Any, key: str) -> bool:
        """A truth value."""
        if isinstance(given, str) and given.lower() in ("true", "false"):
            return given.lower() == "true"
        if not isinstance(given, bool):
            self.mistake(f"'{key}': got {given!r}, expected true or false")
        return bool(given)

    def number(self, section: Mapping[str, Any], key: str) -> float | None:
        """A positive number, or None."""
        given = section.get(key)
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, (int, float)) or given <= 0:
            self.mistake(f"'{key}': got {given!r}, expected a positive number")
            return None
        return float(given)


def _hint(key: str, known: tuple[str, ...]) -> str:
    """What a key that is unknown in its section may have been meant to be."""
    everywhere = {name: place for place, names in SECTIONS.items() for name in names}
    if key not in everywhere and (near := difflib.get_close_matches(key, known, 1, 0.6)):
        return f"did you mean '{near[0]}'?"
    if near := difflib.get_close_matches(key, everywhere, 1, 0.8):
        place = {"": "at the top", "micro": "at the top, or in micro_manager"}.get(everywhere[near[0]])
        return f"did you mean '{near[0]}' {place or 'in ' + everywhere[near[0]]}?"
    return f"known here: {', '.join(known)}"


def merge(section: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Put a user's keys over the defaults; a list replaces a list."""
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(section.get(key), dict):
            merge(section[key], value)
        else:
            section[key] = value


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot read the configuration: not a UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON in line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, got a {type(raw).__name__}")
    return raw
