"""The card of a surrogate artifact: what a model is, what it was trained on and how good it is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Calibration(BaseModel):
    """Held-out evidence for one rung: the surrogate's score and the true relative error of each sample."""

    model_config = ConfigDict(extra="forbid")
    score: list[float]
    error: list[float]


class Card(BaseModel):
    """What travels inside an artifact, as JSON."""

    model_config = ConfigDict(extra="forbid")
    format: int = 1
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
