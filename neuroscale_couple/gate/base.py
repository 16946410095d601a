"""The contract of a gate stage: it may refuse points before or after the surrogate has answered."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.artifact import Card
from neuroscale_couple.values import F64, U8, Audit, Bool, Points, Prediction


def refuse(reason: U8, rows: Bool, why: Reason) -> None:
    """Write a reason where `rows` (bool [n]) holds and nobody has refused yet. reason: uint8 [n], in/out."""
    np.copyto(reason, np.uint8(why), where=rows & (reason == 0))


class GateStage(ABC):  # noqa: B024 - every method has a default: a stage overrides what it needs
    """One reason to refuse. A stage only ever adds refusals: it writes to `reason` where that is still 0.

    All arrays are per row; a decision for a row depends on that row (and on past audits) alone.
    A stage of your own is named `package.module:Class` in `gate.stages` and built as `Class(settings, problem)`
    with the gate section of the configuration and the micro problem.
    """

    def __init__(self, settings: schema.Gate, problem: MicroProblem) -> None:  # noqa: B027
        """Take the gate section of the configuration and the micro problem."""

    @property
    def message(self) -> str | None:
        """What the user should know about this stage, e.g. why it accepts nothing; None: nothing to say."""
        return None

    def attach(self, points: Points, card: Card | None) -> None:  # noqa: B027
        """Take the points of this rank and the card of the current surrogate (None: no surrogate)."""

    def admit(self, inputs: F64, reason: U8) -> None:  # noqa: B027
        """Before the surrogate: refuse inputs. inputs: float64 [n, n_in]; reason: uint8 [n], in/out."""

    def accept(self, rung: Source, inputs: F64, prediction: Prediction, error: F64, reason: U8) -> None:  # noqa: B027
        """After the surrogate: refuse answers of one rung.

        inputs, prediction, error, reason: rows of the prediction. error: float64 [m], in/out, the estimated
        relative error at the configured confidence.
        """

    def learn(self, audit: Audit) -> None:  # noqa: B027
        """Take the audits of a converged window (all ranks' audits, the same on every rank)."""

    def get_state(self) -> Mapping[str, Any]:
        """What a checkpoint must keep: name -> array or number."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `get_state` gave."""
