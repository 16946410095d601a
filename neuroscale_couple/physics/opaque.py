r"""Micro problems of which nothing is known but what goes in and what comes out: a user's own simulation.

There are no fields, no residual, no bounds and no tangent. What a simulation remembers is hidden in it. What made it
remember is known exactly: its inputs. A surrogate is asked with

    question = (x, x - h_1, ..., x - h_4, m),   h_k' = (x - h_k) / tau_k,   m = 1/t int_0^t x

the inputs x, how they differ from what they were lately, h_k, with memories tau_k of `MEMORIES` time steps, and their
mean since the start: what a simulation has gathered (a dissolved amount, a damage) fades in no memory. Last answers are
no part of the question: a surrogate that is asked with its own answers lets errors pile up, which audits see too late.
Where nothing is remembered (`history=False`) the question is the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from neuroscale_couple.config.schema import Positive, Problem
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.physics.cell import Settings, read_settings
from neuroscale_couple.values import F64, FieldSpec, Layout

MEMORIES = (1.5, 4.0, 12.0, 40.0)
"""Lengths of the memories of inputs, in time steps (of the first step's size)."""
CHANGE = "change of "
"""How the names of fields begin that the question has beside the inputs."""
MEAN = "mean of "
"""How the names of the fields begin that hold the means since the start."""
LOWEST_FLOOR = 1e-12
"""Floor of a field of which nothing is known yet."""


class OpaqueField(Settings):
    """One field of an opaque micro problem."""

    unit: str = Field("1", description="unit")
    components: tuple[str, ...] = Field(("",), min_length=1, description="component names; absent: a scalar")
    floor: Positive | None = Field(
        None, description="size of an output below which its error is measured against this; absent: from the answers"
    )


class OpaqueSettings(Settings):
    """Keys of `problem:` for `name: opaque`."""

    inputs: dict[str, OpaqueField] = Field(min_length=1, description="fields that the simulation takes")
    outputs: dict[str, OpaqueField] = Field(min_length=1, description="fields that the simulation gives")
    history: bool = Field(True, description="whether an answer depends on what the simulation did before")


class OpaqueProblem(MicroProblem):
    """Inputs and outputs of a simulation that shows nothing else.

    floors: per output field, the size below which its error counts against it; 0 means that it is not known yet:
    the first surrogate brings it (a share of what the field was in the answers)
    history: whether an answer depends on what the simulation did before
    """

    has_tangent = False

    def __init__(
        self,
        inputs: Sequence[FieldSpec],
        outputs: Sequence[FieldSpec],
        history: bool = True,
        floors: Sequence[float] | None = None,
        name: str = "opaque",
    ) -> None:
        if not inputs or not outputs:
            raise ConfigError("an opaque micro problem needs at least one input and one output")
        _refuse_same_names(inputs, outputs)
        self.name = name
        self.inputs, self.outputs, self.state = Layout(tuple(inputs)), Layout(tuple(outputs)), Layout(())
        self.remembers = history
        self.floors: F64 = np.zeros(len(outputs)) if floors is None else np.array(floors, dtype=np.float64)
        if self.floors.shape != (len(outputs),) or not (self.floors >= 0.0).all():
            raise ConfigError(f"{len(outputs)} output fields need as many floors >= 0, got {self.floors.tolist()}")

    @property
    def question(self) -> Layout:
        """What the surrogate is asked with, see the module's text."""
        if not self.remembers:
            return self.inputs
        changes = [
            FieldSpec(f"{CHANGE}{f.name} in {steps:g} steps", f.components, f.unit)
            for steps in MEMORIES
            for f in self.inputs.fields
        ]
        means = [FieldSpec(f"{MEAN}{f.name}", f.components, f.unit) for f in self.inputs.fields]
        return Layout((*self.inputs.fields, *changes, *means))

    @property
    def signature(self) -> dict[str, Any]:
        """See `MicroProblem.signature`."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        fields = {side: [[f.name, list(f.components), f.unit] for f in at.fields] for side, at in sides.items()}
        question = {"question": list(self.question.columns)} if self.remembers else {}
        return {"name": self.name, "opaque": True, "history": self.remembers, **fields, **question}

    def output_floor(self) -> float:
        """Smallest of the fields' floors; `relative_error` uses each field's own."""
        return float(np.maximum(self.floors, LOWEST_FLOOR).min())

    def take_floors(self, floors: F64) -> None:
        """Use these floors, float64 [fields], for the fields that have none yet."""
        self.floors = np.where(self.floors > 0.0, self.floors, floors)

    def relative_error(self, got: F64, reference: F64) -> F64:
        """The largest of the output fields' relative errors, float64 [n]; fields differ in unit and size.

        max_f |got_f - reference_f| / max(|reference_f|, floor_f)
        """
        worst = np.zeros(len(got))
        for field, floor in zip(self.outputs.fields, self.floors, strict=True):
            at = self.outputs.slice_of(field.name)
            size = np.maximum(np.linalg.norm(reference[:, at], axis=1), max(floor, LOWEST_FLOOR))
            np.maximum(worst, np.linalg.norm(got[:, at] - reference[:, at], axis=1) / size, out=worst)
        return worst

    def check_parameters(self, parameters: dict[str, Any]) -> None:
        """Whatever distinguishes the simulations is their own affair."""


def from_settings(settings: Problem) -> OpaqueProblem:
    """The problem that the config describes. Raises: ConfigError."""
    own = read_settings(OpaqueSettings, settings)
    inputs, outputs = (
        [FieldSpec(name, f.components, f.unit) for name, f in side.items()] for side in (own.inputs, own.outputs)
    )
    return OpaqueProblem(inputs, outputs, own.history, [f.floor or 0.0 for f in own.outputs.values()])


def _refuse_same_names(inputs: Sequence[FieldSpec], outputs: Sequence[FieldSpec]) -> None:
    for side, fields in (("inputs", inputs), ("outputs", outputs)):
        names = [f.name for f in fields]
        if len(set(names)) < len(names):
            raise ConfigError(f"problem.{side}: a name appears twice in {names}")
