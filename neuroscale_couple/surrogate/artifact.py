"""The artifact of a surrogate: one sealed TorchScript file with its card inside.

The card says what a model is, what it was trained on and how good it is. The seal is the comment of the zip archive
that a TorchScript file is: the last 64 bytes are the SHA-256, in hexadecimal, of all bytes before them. A truncated or
changed file is recognised before anything in it is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from neuroscale_couple.errors import ArtifactError

CARD = "card.json"
FORMAT = 1
_SEAL = 64


class Calibration(BaseModel):
    """Held-out evidence for one rung: the surrogate's score and the true relative error of each sample."""

    model_config = ConfigDict(extra="forbid")
    score: list[float]
    error: list[float]


class Card(BaseModel):
    """What travels inside an artifact, as JSON."""

    model_config = ConfigDict(extra="forbid")
    format: int = FORMAT
    problem: dict[str, Any]
    """`MicroProblem.signature` of the problem it was trained for."""
    input_range: list[tuple[float, float]]
    """Training range of each input column."""
    output_floor: float
    """Errors are relative to max(|output|, output_floor)."""
    domain: dict[str, Any]
    """What `gate.domain` needs beyond the ranges (e.g. ranges of micro-structure descriptors)."""
    calibration: dict[str, Calibration]
    """By rung name: `surrogate_coarse`, `surrogate_fine`."""
    metrics: dict[str, float]
    """Errors on held-out data: p50, p95, max per rung."""
    versions: dict[str, str]
    data_sha256: str
    parent: str | None = None
    """SHA-256 of the artifact this one was trained from, if any."""


def write(path: Path, archive: bytes) -> str:
    """Seal a TorchScript archive and write it atomically; returns its SHA-256."""
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b"0" * _SEAL
    content = buffer.getvalue()[:-_SEAL]
    digest = hashlib.sha256(content).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as out:
        out.write(content + digest.encode())
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)
    return digest


def read(path: Path) -> tuple[bytes, Card, str]:
    """The archive, its card and its SHA-256, checked. Raises: ArtifactError."""
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise ArtifactError(
            f"{path}: cannot be read ({cause.strerror or cause}); train it or correct neuroscale.model"
        ) from cause
    digest = check_seal(path, content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            name = next(n for n in file.namelist() if n.endswith(f"/extra/{CARD}"))
            text = file.read(name)
    except (zipfile.BadZipFile, StopIteration) as cause:
        raise ArtifactError(
            f"{path}: is sealed but holds no {CARD}; it was not written by `neuroscale-couple train`"
        ) from cause
    return content, parse_card(path, text), digest


def check_seal(path: Path, content: bytes) -> str:
    """SHA-256 of an artifact's content. Raises: ArtifactError if it is not one, truncated or changed."""
    if not content.startswith(b"PK"):
        raise ArtifactError(
            f"{path}: is not a surrogate artifact (a TorchScript archive starts with 'PK', got {content[:4]!r})"
        )
    stated = content[-_SEAL:].decode("ascii", errors="replace")
    if len(content) <= _SEAL or any(c not in "0123456789abcdef" for c in stated):
        raise ArtifactError(
            f"{path}: is truncated or not a surrogate artifact ({len(content)} bytes, no SHA-256 at the end); "
            "copy or train it again"
        )
    got = hashlib.sha256(content[:-_SEAL]).hexdigest()
    if got != stated:
        raise ArtifactError(f"{path}: is damaged: expected SHA-256 {stated}, got {got}; copy or train it again")
    return got


def parse_card(path: Path, text: bytes) -> Card:
    """Raises: ArtifactError if the card is not one of this format."""
    try:
        known = json.loads(text)
        if isinstance(known, dict) and known.get("format") != FORMAT:
            raise ArtifactError(
                f"{path}: artifact format: expected {FORMAT}, got {known.get('format')}; train it again"
            )
        return Card.model_validate(known)
    except (ValueError, ValidationError) as cause:
        raise ArtifactError(f"{path}: its card cannot be read ({cause}); train it again") from cause


def check_problem(path: Path, card: Card, signature: dict[str, Any]) -> None:
    """Raises: ArtifactError naming the first entry in which the artifact's problem differs from the configured one."""
    expected = json.loads(json.dumps(signature))
    difference = first_difference(expected, card.problem, "")
    if difference is not None:
        where, wanted, got = difference
        raise ArtifactError(
            f"{path}: belongs to another micro problem: {where}: expected {wanted!r} (config), got {got!r} (artifact); "
            "train a model for this problem or correct the config"
        )


def first_difference(expected: Any, got: Any, where: str) -> tuple[str, Any, Any] | None:
    """Path and both values of the first difference of two JSON values; None if they are equal."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in [*expected, *(k for k in got if k not in expected)]:
            found = first_difference(expected.get(key), got.get(key), f"{where}.{key}" if where else str(key))
            if found is not None:
                return found
        return None
    return None if expected == got else (where, expected, got)
