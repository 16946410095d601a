"""What can be found wrong with a preCICE case before anything blocks: our configuration and the XML read together."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from neuroscale_couple.config.load import Loaded
from neuroscale_couple.config.precice_fields import Carrier, Interface, find_interfaces, input_columns, output_columns
from neuroscale_couple.config.precice_macro import refuse_scheme, transposed
from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.transport.precice_regions import check_regions

OURS = ("neuroscale",)


def findings(loaded: Loaded, problem: MicroProblem) -> Iterator[tuple[bool, str, str]]:
    """Whether each thing looked at is good, a few words for it, and what was found."""
    if importlib.util.find_spec("precice") is None:
        yield False, "preCICE", "its Python package is not installed: install libprecice 3, then pip install pyprecice"
    if (said := adapter_schema(loaded.path)) is not None:
        yield True, "adapter schema", said
    settings = loaded.config.neuroscale.precice
    try:
        file, interfaces = find_interfaces(
            loaded.config, loaded.folder, problem.inputs, problem.outputs, problem.has_tangent
        )
        for interface in interfaces:
            dimensions = file.dimensions(interface.mesh)
            check_regions(settings.regions, max(1, len(settings.regions)), dimensions, interface.mesh)
        if isinstance(settings.volumes, str) and not loaded.resolve(settings.volumes).is_file():
            raise ConfigError(f"neuroscale.precice.volumes: no file {loaded.resolve(settings.volumes)}")
        if is_newtons(loaded.macro):
            refuse_newton(file, loaded.config.participant_name, interfaces, problem)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield False, "preCICE", line
        return
    reads = input_columns(problem.inputs)
    writes = output_columns(problem.inputs, problem.outputs, problem.has_tangent)
    for interface in interfaces:
        yield True, "preCICE", _described(interface, [c.name for c in reads], [c.name for c in writes])


def is_newtons(script: Path | None) -> bool:
    """Whether a macro script lets Newton's method ask through preCICE, as those with our dolfinx adapter do."""
    return script is not None and script.is_file() and b"neuroscale_fenicsx" in script.read_bytes()


def refuse_newton(file: PreciceXml, us: str, interfaces: Sequence[Interface], problem: MicroProblem) -> None:
    """Raises: ConfigError where the coupling cannot carry the iterations of Newton's method"""
    for interface in interfaces:
        refuse_scheme(file, us, file.peers(us, [interface.mesh])[interface.mesh])
        transposed(interface, problem.inputs, problem.outputs)


def adapter_schema(path: Path) -> str | None:
    """How the top of our file stands to the preCICE adapter schema; None where its package is not installed.

    A name that the schema's convention does not know is taken all the same: only preCICE decides what is a name.
    """
    if path.suffix == ".json" or importlib.util.find_spec("preciceadapterschema") is None:
        return None
    errors: Any = importlib.import_module("jsonschema")
    schema: Any = importlib.import_module("preciceadapterschema")
    top = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key not in OURS}
    try:
        schema.validate(top)
    except errors.ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path) or "top of the file"
        return f"differs from the convention at {place} ({error.message}); taken all the same"
    return "followed"


def _described(interface: Interface, reads: Sequence[str], writes: Sequence[str]) -> str:
    def told(carriers: Sequence[Carrier], names: Sequence[str]) -> str:
        return ", ".join(f"{c.data} ({', '.join(names[i] for i in c.columns)})" for c in carriers)

    return f"{interface.mesh}: reads {told(interface.read, reads)}; writes {told(interface.write, writes)}"
