"""Beside the loop: every fine answer is stored; between windows a better surrogate may be trained and promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from neuroscale_couple.config import schema
    from neuroscale_couple.learning.base import Learner
    from neuroscale_couple.physics.base import MicroProblem


def make_learner(
    settings: schema.Learning,
    training: schema.Training,
    problem: MicroProblem,
    folder: Path,
    comm: Any = None,
    gate: schema.Gate | None = None,
    device: str = "auto",
) -> Learner | None:
    """The learner of a run, or None for `mode: off`.

    folder: of the run; samples go to `samples/`, artifacts to `models/`
    gate: its tolerance and confidence decide whether a candidate is of use
    device: that surrogates run on, `fine.device`
    """
    if settings.mode == "off":
        return None
    from neuroscale_couple.config.schema import Gate
    from neuroscale_couple.physics.opaque import OpaqueProblem

    if isinstance(problem, OpaqueProblem):
        from neuroscale_couple.learning.opaque import OpaqueLearner

        return OpaqueLearner(settings, problem, folder, comm, gate or Gate())
    from neuroscale_couple.learning.train import OnlineLearner

    return OnlineLearner(settings, training, problem, folder, comm, gate or Gate(), device)


__all__ = ["make_learner"]
