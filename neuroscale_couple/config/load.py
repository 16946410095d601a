"""Reads the configuration file: safe YAML, defaults filled in, every mistake said in one plain sentence."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from neuroscale_couple.config.micro_manager import as_ours, merge
from neuroscale_couple.config.schema import Config, Neuroscale
from neuroscale_couple.errors import ConfigError

# Keys that may differ between a run and the run that resumes it: they do not change the answer.
FREE_KEYS = (
    *(("output",), ("fine", "memory_mb"), ("fine", "device"), ("learning", "seconds")),
    *(("transport",), ("socket",), ("record",), ("replay",)),
    *(("precice", "regions"), ("precice", "timeout"), ("precice", "unconverged")),
)

# Sections that change no answer while the gate is closed: a fine-only run is the same whatever they say.
UNUSED_WHEN_CLOSED = ("gate", "model", "learning", "training")

_EXPECTED = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration and where it came from.

    digest: SHA-256 of the resolved configuration without the keys that do not change the answer
    """

    config: Config
    path: Path
    folder: Path
    digest: str

    @property
    def case(self) -> str:
        """Name of the case: the folder of the configuration file."""
        return self.folder.name

    def resolve(self, path: str) -> Path:
        """A path of the configuration, taken relative to the configuration file."""
        return (self.folder / path).resolve()

    @property
    def model(self) -> Path | None:
        """The artifact, or None."""
        return None if self.config.neuroscale.model is None else self.resolve(self.config.neuroscale.model)

    @property
    def macro(self) -> Path | None:
        """The macro solver's script, or None."""
        return None if self.config.neuroscale.macro is None else self.resolve(self.config.neuroscale.macro)


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read and check a configuration.

    overrides: key -> value; keys may be dotted, e.g. `gate.tolerance` (a leading `neuroscale.` may be left out),
        and values may be sections themselves
    Raises: ConfigError with all mistakes, one a line.
    """
    path = Path(path)
    raw = as_ours(path) if path.suffix == ".json" else _with_micro_manager(_read(path), path)
    if "neuroscale" not in raw:
        near = difflib.get_close_matches("neuroscale", [str(key) for key in raw], 1, 0.6)
        hint = f"; did you mean it by '{near[0]}'?" if near else "; it holds the problem, the gate and the rest"
        raise ConfigError(f"{path}: the section 'neuroscale:' is missing{hint}")
    for key, value in (overrides or {}).items():
        _override(raw, key, value, path)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _sentences(error.errors()))) from None
    if mistakes := list(_inconsistent(config.neuroscale)):
        raise ConfigError("\n".join(f"{path}: {m}" for m in mistakes))
    return Loaded(config, path.resolve(), path.resolve().parent, digest(config))


def dump(config: Config) -> str:
    """The resolved configuration as YAML, all defaults written out."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)
    return text


def digest(config: Config) -> str:
    """SHA-256 of what in the configuration can change the answer; an open and a closed gate never have the same."""
    resolved = config.model_dump(mode="json")
    for *parents, last in FREE_KEYS:
        section = resolved["neuroscale"]
        for name in parents:
            section = section[name]
        section.pop(last, None)
    if not config.neuroscale.gate.open:
        resolved["neuroscale"] |= dict.fromkeys(UNUSED_WHEN_CLOSED)
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def parse_value(text: str) -> Any:
    """A value given on the command line, read as the configuration file would read it."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 core rules for numbers and truth values; a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not a text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} comes twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot read the configuration: not a UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{where}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        got = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise ConfigError(f"{path}: expected keys and values, got {got}; the file must have a section 'neuroscale:'")
    return raw


def _with_micro_manager(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The Micro Manager's configuration that ours names, with ours over it. Raises: ConfigError."""
    section = raw.get("neuroscale")
    named = section.get("micro_manager") if isinstance(section, dict) else None
    if not isinstance(named, str):
        return raw
    merged = as_ours(path.parent / named, section)
    merge(merged, {key: value for key, value in raw.items() if key != "neuroscale"})
    return merged


def _override(raw: dict[str, Any], key: str, value: Any, path: Path) -> None:
    """Set a dotted key; a name that itself holds dots (`load_range: {strain.xx: ...}`) is found where it stands."""
    parts = key.split(".")
    if parts[0] not in Config.model_fields:
        parts = ["neuroscale", *parts]
    given = ".".join(parts)
    section: Any = raw
    while len(parts) > 1 and ".".join(parts) not in section:
        if section.get(parts[0]) is None:
            section[parts[0]] = {}
        section = section[parts.pop(0)]
        if not isinstance(section, dict):
            said = f"got {_shown(section)}, expected a section of keys and values"
            raise ConfigError(
                f"{path}: '{given.removesuffix('.' + '.'.join(parts))}': {said}; '{key}' is to be set in it"
            )
    _replace(section, ".".join(parts), value)


def _replace(section: dict[str, Any], name: str, value: Any) -> None:
    """Set a key; a section given as the value is merged into what is there."""
    if not isinstance(value, Mapping):
        section[name] = value
        return
    if not isinstance(section.get(name), dict):
        section[name] = {}
    for inner, inner_value in value.items():
        _replace(section[name], inner, inner_value)


def _dotted(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _sentences(errors: list[ErrorDetails]) -> list[str]:
    """One line per mistake; a missing key that an unknown one nearly spells is said once."""
    lines = [_sentence(e) for e in errors]
    suggested = [line.partition("did you mean ")[2] for line in lines]
    return [
        line
        for line, e in zip(lines, errors, strict=True)
        if e["type"] != "missing" or f"'{_dotted(e['loc'])}'?" not in suggested
    ]


def _sentence(error: ErrorDetails) -> str:
    loc, kind, got = error["loc"], error["type"], error["input"]
    where = _dotted(loc)
    if kind == "extra_forbidden":
        return f"unknown key '{where}'; {_nearest(loc)}"
    if kind == "missing":
        # a tuple such as a range reports a missing element by its number
        if isinstance(loc[-1], int):
            return f"'{_dotted(loc[:-1])}': got {_shown(got)}, expected {_length_of(loc)} values"
        return f"the key '{where}' is missing; it is: {_description(loc)}"
    if kind in ("too_long", "too_short"):
        return f"'{where}': got {_shown(got)}, expected {error['ctx']['max_length']} values"
    context = {k: str(v) for k, v in error.get("ctx", {}).items()}
    expected = _EXPECTED.get(kind, "").format_map(_Lenient(context)) or error["msg"]
    return f"'{where}': got {_shown(got)}, expected {expected}"


class _Lenient(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _models(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """All sections by dotted path; the elements of a list of sections stand under its name."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _models(inner, f"{prefix}.{name}".removeprefix("."))


def _section_of(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    names = ".".join(str(part) for part in loc[:-1] if not isinstance(part, int))
    return dict(_models(Config)).get(names)


def _nearest(loc: tuple[int | str, ...]) -> str:
    key, section = str(loc[-1]), _section_of(loc)
    here = list(section.model_fields) if section else []
    if match := difflib.get_close_matches(key, here, 1, 0.6):
        return f"did you mean '{_dotted((*loc[:-1], match[0]))}'?"
    everywhere = [
        (name, f"{path}.{name}".removeprefix(".")) for path, model in _models(Config) for name in model.model_fields
    ]
    if match := difflib.get_close_matches(key, [name for name, _ in everywhere], 1, 0.8):
        full = " or ".join(f"'{path}'" for name, path in everywhere if name == match[0])
        return f"did you mean {full}? Keys known here: {', '.join(here)}"
    nearest = difflib.get_close_matches(key, here, 1, 0.0)
    hint = f"the nearest is '{nearest[0]}'; " if nearest else ""
    return f"{hint}keys known here: {', '.join(here)}"


def _description(loc: tuple[int | str, ...]) -> str:
    section = _section_of(loc)
    field = section.model_fields.get(str(loc[-1])) if section else None
    if field is not None and field.description:
        return field.description
    annotation = field.annotation if field is not None else None
    doc = annotation.__doc__ if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return (doc or "a required key").splitlines()[0]


def _length_of(loc: tuple[int | str, ...]) -> int:
    section = _section_of(loc[:-1])
    field = section.model_fields.get(str(loc[-2])) if section else None
    return len(get_args(field.annotation)) if field is not None else 2


def _inconsistent(settings: Neuroscale) -> Iterator[str]:
    """What is wrong although each key by itself is right."""
    micro = settings.microstructure
    for name, (low, high) in (("volume_fraction", micro.volume_fraction), ("size", micro.size)):
        if low > high:
            yield f"'neuroscale.microstructure.{name}': got [{low:g}, {high:g}], expected the lower end first"
    if micro.kind == "image" and micro.path is None:
        yield "the key 'neuroscale.microstructure.path' is missing; kind 'image' needs a PNG or .npy file"
    if settings.learning.mode == "online" and not 0.0 < settings.learning.hold_out < 1.0:
        got = f"got {settings.learning.hold_out:g}, expected more than 0 and less than 1"
        yield f"'neuroscale.learning.hold_out': {got} with learning.mode: online"
    for column, (low, high) in settings.training.load_range.items():
        if not low < high:
            yield f"'neuroscale.training.load_range.{column}': got [{low:g}, {high:g}], expected the lower end first"
