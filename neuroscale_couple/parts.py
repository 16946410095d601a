"""What a run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from neuroscale_couple.checkpoint import Checkpoint
from neuroscale_couple.correction.base import Correction
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.gate.chain import Gate
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.ledger import Ledger
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.surrogate.base import Surrogate


@dataclass(frozen=True)
class Parts:
    """What a run is made of; `assemble.build` makes them from the configuration."""

    problem: MicroProblem
    fine: FineSolver
    gate: Gate
    surrogate: Surrogate | None = None
    corrections: tuple[Correction, ...] = ()
    learner: Learner | None = None
    ledger: Ledger | None = None
    checkpoint: Checkpoint | None = None
    on_failure: str = "stop"
