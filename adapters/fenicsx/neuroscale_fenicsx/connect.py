"""The closure of the configured transport: the same call wherever the service runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neuroscale_couple
from neuroscale_couple import Points
from neuroscale_couple.config.load import load


def connect(config: str | Path, comm: Any, points: Points) -> Any:
    """Connect the points of this rank. Raises: see `neuroscale_couple.connect`. Collective: yes, over comm"""
    loaded = load(Path(config), neuroscale_couple.assemble.run_options.overrides)
    if loaded.config.neuroscale.transport != "precice":
        return neuroscale_couple.connect(config, comm, points)
    from neuroscale_fenicsx.precice import PreciceClosure

    return PreciceClosure(loaded, comm, points)
