"""What passes between the fine solver `micro_manager` and its worker processes."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field

import numpy as np

from neuroscale_couple.values import F64, I64

NONE: I64 = np.zeros(0, dtype=np.int64)


def _nothing() -> I64:
    return NONE


def _no_steps() -> F64:
    return np.zeros(0)


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker loads, and the fields that pass.

    module: where the class MicroSimulation is, importable from one of `folders`
    inputs, outputs: (name, size) of each field; size 0: a scalar
    points: of the board that they share (`fine.board`)
    """

    module: str
    folders: tuple[str, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    points: int = 0

    @property
    def columns(self) -> tuple[int, int]:
        """Of the inputs and of the outputs on the board."""
        return sum(max(size, 1) for _, size in self.inputs), sum(max(size, 1) for _, size in self.outputs)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker found in the module. restorable: there are get_state and set_state; outputs: there is output."""

    name: str
    restorable: bool
    outputs: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One time step of some points of a worker, in this order: build, load, restore, replay, save, solve.

    rows: int64 [m] local points, whose inputs are on the board; dt: of the step, s
    The others are places in `rows`, int64:
    build [b]: to be constructed, with global ids `ids` [b], and initialised with `first` float64 [b, n_in]
    load [l]: set to `states` [l], pickled, which an earlier process has kept
    restore [k]: set back to their saved state
    replay [r]: brought up to date first, from steps `starts` [r] on; history float64 [steps, r, n_in] and dts [steps]
        begin at step `base`; a state is saved when step `keep` is reached
    save [k]: state saved before the solve
    """

    rows: I64
    dt: float
    build: I64
    ids: I64
    first: F64
    restore: I64
    save: I64
    load: I64 = field(default_factory=_nothing)
    states: tuple[bytes, ...] = ()
    replay: I64 = field(default_factory=_nothing)
    starts: I64 = field(default_factory=_nothing)
    history: F64 = field(default_factory=_no_steps)
    dts: F64 = field(default_factory=_no_steps)
    base: int = 0
    keep: int = -1


@dataclass(frozen=True, slots=True)
class Again:
    """Solve the points of the worker's last job once more, for what is on the board now. dt: of the step, s."""

    dt: float


@dataclass(frozen=True, slots=True)
class Output:
    """Call `output` of these points. rows: int64 [m]."""

    rows: I64


@dataclass(frozen=True, slots=True)
class Keep:
    """Hand over the pickled states of these points. rows: int64 [m]."""

    rows: I64


Task = Job | Again | Output | Keep


@dataclass(frozen=True, slots=True)
class Done:
    """A task is done; the outputs of a job are on the board.

    failed: place in its `rows` -> why; states: of `Keep`, empty bytes where it failed
    """

    failed: dict[int, str]
    states: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that has ended or hangs, with all its micro simulations. place: in the job's rows; said: why."""

    place: int
    said: str


STEP = struct.Struct("d")
"""`Again` as it is sent, in a message of its own size: almost all are this one, and a `Done` without failures."""


def packed_task(task: Task) -> bytes:
    """A task as the bytes of a message."""
    return STEP.pack(task.dt) if isinstance(task, Again) else pickle.dumps(task, pickle.HIGHEST_PROTOCOL)


def unpacked_task(message: bytes) -> Task:
    """What `packed_task` was given."""
    if len(message) == STEP.size:
        return Again(*STEP.unpack(message))
    task: Task = pickle.loads(message)
    return task


def packed_done(done: Done) -> bytes:
    """A result as the bytes of a message: none where there is nothing to tell."""
    return pickle.dumps(done, pickle.HIGHEST_PROTOCOL) if done.failed or done.states else b""


def unpacked_done(message: bytes) -> Done:
    """What `packed_done` was given."""
    done: Done = pickle.loads(message) if message else Done({})
    return done
