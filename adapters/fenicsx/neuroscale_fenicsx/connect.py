"""The closure of the configured transport: the same call wherever the service runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neuroscale_couple
from neuroscale_couple import Points


def connect(config: str | Path, comm: Any, points: Points) -> Any:
    """Connect the points of this rank. Raises: see `neuroscale_couple.connect`. Collective: yes, over comm"""
    return neuroscale_couple.connect(config, comm, points)
