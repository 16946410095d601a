"""How long each stage of a window takes."""

from __future__ import annotations

import time
from types import TracebackType


class _Stage:
    """One stage's stopwatch; entering it stops the one around it."""

    __slots__ = ("seconds", "timers")

    def __init__(self, timers: Timers) -> None:
        self.timers = timers
        self.seconds = 0.0

    def __enter__(self) -> None:
        timers, now = self.timers, time.perf_counter()
        timers.running[-1].seconds += now - timers.mark
        timers.running.append(self)
        timers.mark = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timers, now = self.timers, time.perf_counter()
        timers.running.pop()
        self.seconds += now - timers.mark
        timers.mark = now


class Timers:
    """Seconds per stage, exclusive: time in an inner stage does not count for the outer one.

    with timers("fine"): ...
    """

    def __init__(self) -> None:
        self.stages: dict[str, _Stage] = {}
        self.outside = _Stage(self)
        self.running = [self.outside]
        self.mark = self.start = time.perf_counter()

    def __call__(self, stage: str) -> _Stage:
        try:
            return self.stages[stage]
        except KeyError:
            return self.stages.setdefault(stage, _Stage(self))

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call, and `total`, the time that has passed; starts again from zero."""
        now = time.perf_counter()
        self.running[-1].seconds += now - self.mark
        seconds = {name: stage.seconds for name, stage in self.stages.items()}
        seconds["total"] = now - self.start
        for stage in (*self.stages.values(), self.outside):
            stage.seconds = 0.0
        self.mark = self.start = now
        return seconds
