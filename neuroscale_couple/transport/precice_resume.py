"""A coupling by preCICE that is resumed: both sides go on after the newest window that both have kept.

preCICE starts at its time 0 again and couples what is left: a copy of its configuration with a nearer end, the same
bytes on both sides, lies with the results. Both sides find the window by themselves: results lie in a folder that both
see, as the files do by which preCICE's programs meet, and neither writes there before they have met.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from neuroscale_couple.checkpoint import read_manifest, write_atomically
from neuroscale_couple.config.precice_xml import PreciceXml, Tag
from neuroscale_couple.errors import CheckpointError, ConfigError

SERVICE, MACRO = "checkpoint", "macro_checkpoint"
"""Folders in that of the results: what the service keeps, and what a macro script of ours does."""
VALUE = re.compile(rb"""(\bvalue\s*=\s*)(["'])(.*?)\2""", re.DOTALL)


def common_window(folder: Path) -> int | None:
    """Number of committed windows that both sides can go on after.

    folder: of the results; None: the macro solver keeps its state elsewhere, the service's own newest window counts
    Raises: CheckpointError if both have kept windows, but none in common
    """
    paths = [folder / name / "manifest.json" for name in (SERVICE, MACRO)]
    if not paths[1].exists():
        return None
    nothing: dict[str, Any] = {"digest": "", "windows": []}
    service, macro = (read_manifest(path) if path.exists() else nothing for path in paths)
    if service["windows"] and service["digest"] != macro["digest"]:
        return None  # left by a run of another configuration
    kept = [sorted(int(entry["window"]) for entry in side["windows"]) for side in (service, macro)]
    both = set(kept[0]) & set(kept[1])
    if not both:
        raise CheckpointError(
            f"--resume: {folder}: the service has kept windows {kept[0]}, the macro solver {kept[1]}: there is none "
            "that both can go on after; start both without --resume"
        )
    return max(both)


def shortened(file: PreciceXml, us: str, peer: str, windows: int, folder: Path) -> PreciceXml:
    """The preCICE configuration of what is left after some windows, written into the folder of the results.

    us, peer: the two participants of the coupling
    Raises: ConfigError where the length of a window or of the run is open; CheckpointError if nothing is left
    """
    scheme = file.scheme(us, peer)
    if len(file.participants) != 2 or scheme is None:
        raise ConfigError(f"{file.path}: --resume couples two participants alone, there are {len(file.participants)}")
    changes = _ends(file, scheme, windows)
    if not changes:
        raise ConfigError(f"{file.at(scheme)}: --resume needs an end: <max-time> or <max-time-windows>")
    text = file.text
    for tag, left in sorted(changes, key=lambda change: -change[0].start):
        if left <= 0:
            raise CheckpointError(
                f"--resume: all {windows} windows of this run are done ({file.at(tag)}); "
                "`neuroscale-couple report` writes its report again"
            )
        stop = text.index(b">", tag.start)
        changed = VALUE.sub(rb"\g<1>\g<2>%s\g<2>" % f"{left:f}".encode(), text[tag.start : stop], count=1)
        text = text[: tag.start] + changed + text[stop:]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "precice-config.resumed.xml"
    write_atomically(path, text)
    return PreciceXml(path)


def _ends(file: PreciceXml, scheme: Tag, windows: int) -> list[tuple[Tag, Decimal]]:
    """The tags that end the coupling, and what is left of each."""
    changes = []
    if (count := scheme.first("max-time-windows")) is not None:
        changes.append((count, _number(file, count) - windows))
    if (end := scheme.first("max-time")) is not None:
        size = scheme.first("time-window-size")
        length = _number(file, size) if size is not None else Decimal(-1)
        if length <= 0:
            raise ConfigError(
                f"{file.at(size or scheme)}: --resume needs windows of a fixed length, or <max-time-windows> in place "
                "of <max-time>"
            )
        changes.append((end, _number(file, end) - windows * length))
    return changes


def _number(file: PreciceXml, tag: Tag) -> Decimal:
    try:
        return Decimal(tag.get("value"))
    except InvalidOperation:
        raise ConfigError(f"{file.at(tag)}: <{tag.name}> has the value {tag.get('value')!r}, no number") from None
