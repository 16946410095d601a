"""Our participant, with every call of its service counted: `calls-<rank>.json` holds them in order.

A wavering surrogate stands in where the configuration names the model `wavering`; with `learning: {mode: online}` a
better one follows it after every window.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import assemble, learning, loop, parallel
from neuroscale_couple.config import schema
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import Prediction
from tests.stand_ins import CoarseOnly, card


def count_calls(calls: list[dict[str, Any]]) -> None:
    """Write down every call of the loop."""
    for name in ("evaluate", "commit", "repeat", "next_step", "rollback"):
        wrap(name, calls)


def wrap(name: str, calls: list[dict[str, Any]]) -> None:
    """Write down one method's calls, and what `evaluate` was asked and said."""
    inner = getattr(loop.Loop, name)

    def counted(self: Any, *arguments: Any) -> Any:
        result = inner(self, *arguments)
        call: dict[str, Any] = {"call": name, "version": self.model_version}
        if name == "evaluate":
            batch = arguments[0]
            call |= {"window": batch.window, "t": batch.time, "dt": batch.dt, "blank": batch.blank}
            call |= {"source": result.source.tolist(), "error": result.error.tolist()}
            call |= {"largest": float(np.abs(batch.inputs).max()), "ids": self.points.ids.tolist()}
        calls.append(call)
        return result

    setattr(loop.Loop, name, counted)


class Wavering(CoarseOnly):
    """The fine solver's answer, unsure of another third of the points each time, but never of points 0, 4 ..."""

    version = 4

    def __init__(self, problem: Any) -> None:
        self.fine = make_fine_solver(schema.Fine(tolerance=1e-9), problem)
        self.asked = 0
        score = np.linspace(0, 0.05, 2000)
        self.card = card(problem.signature, score, score, floor=problem.output_floor())

    def attach(self, points: Any) -> None:
        self.fine.attach(points)

    def predict(self, rung: Source, rows: Any, inputs: Any) -> Prediction:
        answer = self.fine.solve(rows, inputs)
        self.asked += 1
        score = np.where(((rows + self.asked) % 3 == 0) & (rows % 4 > 0), 1.0, 1e-4)
        return Prediction(rows, answer.outputs, answer.tangent, score)


class Promoting(Learner):
    """Proposes a successor of the running surrogate whenever it is asked."""

    def __init__(self, problem: Any) -> None:
        self.problem = problem

    def attach(self, points: Any) -> None: ...

    def observe(self, window: int, inputs: Any, answer: Any) -> None: ...

    def propose(self, window: int, current: Any) -> Wavering:
        better = Wavering(self.problem)
        better.version = current.version + 1
        return better

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: Any) -> None: ...


def stand_in() -> None:
    """Where the configuration names the model `wavering`."""
    load = assemble._surrogate

    def surrogate(path: Path, *rest: Any) -> Any:
        if path.name != "wavering":
            return load(path, *rest)
        learning.make_learner = lambda settings, *more: Promoting(more[1]) if settings.mode == "online" else None
        return Wavering(rest[0])

    assemble._surrogate = surrogate


def main() -> None:
    """Take part in the coupling."""
    calls: list[dict[str, Any]] = []
    count_calls(calls)
    stand_in()
    with parallel.abort_on_error():
        assemble.participate(sys.argv[1])
    world = parallel.launched_size()
    rank = assemble.split_world("macro").local.Get_rank() if world > 1 else 0
    Path(f"calls-{rank}.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    main()
