"""Records what a macro solver asked, and plays it again: a scripted macro solver for tests and benchmarks.

neuroscale:
  record: calls.npz          # a run with any transport writes its calls down
  transport: replay          # another run answers them again, without the macro solver
  replay: calls.npz
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroscale_couple.errors import ConfigError
from neuroscale_couple.parallel import agree, rank
from neuroscale_couple.transport.base import Closure, Inputs, State, Totals
from neuroscale_couple.values import F64, Outputs, Points

FORMAT = 2
KINDS = ("evaluate", "commit", "rollback", "repeat", "next_step")


@dataclass(frozen=True)
class Call:
    """One call of the macro solver. kind: a method of `Closure`; the rest belongs to evaluate."""

    kind: str
    inputs: Mapping[str, F64] = field(default_factory=dict)
    t: float = 0.0
    dt: float = 0.0
    totals: Mapping[str, float] = field(default_factory=dict)
    blank: bool = False


@dataclass(frozen=True)
class Script:
    """A macro solver's points and calls, in order."""

    points: Points
    calls: tuple[Call, ...]

    def part(self, place: int, ranks: int) -> Script:
        """The share of one of `ranks` macro ranks: a block of consecutive points."""
        rows = np.array_split(np.arange(len(self.points)), ranks)[place]
        calls = tuple(replace(c, inputs={name: v[rows] for name, v in c.inputs.items()}) for c in self.calls)
        return Script(self.points.take(rows), calls)

    def save(self, path: Path) -> None:
        """Write the script as .npz; the file is there whole or not at all."""
        described = [(c.kind, sorted(c.inputs), c.t, c.dt, dict(c.totals), c.blank) for c in self.calls]
        arrays: dict[str, Any] = {
            "script": np.frombuffer(json.dumps([FORMAT, described]).encode(), dtype=np.uint8),
            "ids": self.points.ids,
            "coordinates": self.points.coordinates,
            "volumes": self.points.volumes,
        }
        arrays |= {f"parameter/{name}": values for name, values in self.points.parameters.items()}
        arrays |= {f"call/{i}/{name}": v for i, call in enumerate(self.calls) for name, v in call.inputs.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read a script. Raises: ConfigError if there is none, or it is damaged."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls._from(path, dict(arrays))
        except FileNotFoundError:
            raise ConfigError(
                f"neuroscale.replay: no file {path}; record one with `record: {path.name}` in a run of the macro solver"
            ) from None
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
            raise ConfigError(f"neuroscale.replay: {path} is not a recorded run ({error}); record it again") from None

    @classmethod
    def _from(cls, path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> Script:
        form, described = json.loads(bytes(arrays["script"]))
        if form != FORMAT:
            raise ConfigError(f"neuroscale.replay: {path} has format {form}, expected {FORMAT}; record it again")
        parameters = {name[10:]: values for name, values in arrays.items() if name.startswith("parameter/")}
        points = Points(arrays["ids"], arrays["coordinates"], arrays["volumes"], parameters)
        calls = tuple(
            Call(kind, {name: arrays[f"call/{i}/{name}"] for name in names}, t, dt, totals, blank)
            for i, (kind, names, t, dt, totals, blank) in enumerate(described)
        )
        if unknown := sorted({call.kind for call in calls} - set(KINDS)):
            raise ValueError(f"it holds the unknown call {unknown[0]!r}")
        return cls(points, calls)


def play(script: Script, closure: Closure, heard: Callable[[int, Outputs], None] | None = None) -> None:
    """Make a script's calls; windows that a resumed run has committed already are left out.

    heard: called with (number of the call, answer) after each evaluate
    Collective: yes
    """
    resumed = closure.resumed()
    to_skip = 0 if resumed is None else resumed[0]
    for number, call in enumerate(script.calls):
        if to_skip > 0:
            to_skip -= call.kind == "commit"
        elif call.kind == "evaluate":
            outputs = closure.evaluate(call.inputs, call.t, call.dt, call.totals, call.blank)
            if heard is not None:
                heard(number, outputs)
        else:
            getattr(closure, call.kind)()


class Recorder(Closure):
    """Passes all calls on to another closure and writes those that succeeded to a file when it is closed."""

    def __init__(self, closure: Closure, points: Points, path: Path, comm: Any = None) -> None:
        """comm: communicator of the macro ranks; rank 0 writes the points of all."""
        self._closure, self._points, self._path, self._comm = closure, points, path, comm
        self.inputs, self.outputs = closure.inputs, closure.outputs
        self._calls: list[Call] = []
        self._saved = False

    def evaluate(self, inputs: Inputs, t: float, dt: float, totals: Totals = None, blank: bool = False) -> Outputs:
        """See `Closure.evaluate`."""
        outputs = self._closure.evaluate(inputs, t, dt, totals, blank)
        kept = {name: np.array(values, dtype=np.float64) for name, values in inputs.items()}
        all_totals = {name: float(value) for name, value in (totals or {}).items()}
        self._calls.append(Call("evaluate", kept, float(t), float(dt), all_totals, blank))
        return outputs

    def commit(self, macro_state: State | None = None) -> None:
        """See `Closure.commit`."""
        self._closure.commit(macro_state)
        self._calls.append(Call("commit"))

    def rollback(self) -> None:
        """See `Closure.rollback`."""
        self._closure.rollback()
        self._calls.append(Call("rollback"))

    def repeat(self) -> None:
        """See `Closure.repeat`."""
        self._closure.repeat()
        self._calls.append(Call("repeat"))

    def next_step(self) -> None:
        """See `Closure.next_step`."""
        self._closure.next_step()
        self._calls.append(Call("next_step"))

    @property
    def model_version(self) -> int:
        """See `Closure.model_version`."""
        return self._closure.model_version

    def resumed(self) -> tuple[int, State] | None:
        """See `Closure.resumed`."""
        return self._closure.resumed()

    def close(self) -> None:
        """See `Closure.close`; the recording is written first."""
        if not self._saved:
            self._saved = True
            self._save()
        self._closure.close()

    def abandon(self, error: BaseException) -> None:
        """See `Closure.abandon`; the recording of a failed run is not written."""
        self._saved = True
        self._closure.abandon(error)

    def _save(self) -> None:
        mine = Script(self._points, tuple(self._calls))
        parts = [mine] if self._comm is None else self._comm.gather(mine, root=0)
        error: Exception | None = None
        if rank(self._comm) == 0:
            try:
                _join([part for part in parts if len(part.points)] or parts[:1]).save(self._path)
            except OSError as found:
                error = found
        agree(self._comm, error, f"writing {self._path}")


def _join(parts: list[Script]) -> Script:
    """One script out of those of the macro ranks."""
    first = parts[0]
    names = first.points.parameters
    points = Points(
        np.concatenate([p.points.ids for p in parts]),
        np.concatenate([p.points.coordinates for p in parts]),
        np.concatenate([p.points.volumes for p in parts]),
        {name: np.concatenate([p.points.parameters[name] for p in parts]) for name in names},
    )
    calls = tuple(
        replace(call, inputs={name: np.concatenate([p.calls[i].inputs[name] for p in parts]) for name in call.inputs})
        for i, call in enumerate(first.calls)
    )
    return Script(points, calls)
