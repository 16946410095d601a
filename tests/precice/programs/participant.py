"""Our participant, with every call of its service counted: `calls.json` holds them in order.

A surrogate stands in where `surrogate.json` lies beside the configuration: the fine solver's answer times
(1 + bias), sure of all points but those that the file names for an iteration.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import assemble, loop, parallel
from neuroscale_couple.transport import precice as transport


def count_calls(calls: list[dict[str, Any]]) -> None:
    """Write down every call of the loop."""
    for name in ("evaluate", "commit", "repeat", "next_step", "rollback"):
        wrap(name, calls)


def wrap(name: str, calls: list[dict[str, Any]]) -> None:
    """Write down one method's calls, and what `evaluate` was asked and said."""
    inner = getattr(loop.Loop, name)

    def counted(self: Any, *arguments: Any) -> Any:
        result = inner(self, *arguments)
        call: dict[str, Any] = {"call": name}
        if name == "evaluate":
            batch = arguments[0]
            call |= {"window": batch.window, "t": batch.time, "dt": batch.dt, "blank": batch.blank}
            call |= {"source": result.source.tolist(), "largest": float(np.abs(batch.inputs).max())}
            call |= {"ids": self.points.ids.tolist()}
        calls.append(call)
        return result

    setattr(loop.Loop, name, counted)


def main() -> None:
    """Take part in the coupling."""
    config, calls = Path(sys.argv[1]), []
    count_calls(calls)
    assert transport.PreciceDriver
    with parallel.abort_on_error():
        windows = assemble.participate(config)
    world = parallel.launched_size()
    rank = 0
    if world > 1:
        rank = assemble.split_world("macro").local.Get_rank()
    Path(f"calls-{rank}.json").write_text(json.dumps({"windows": windows, "calls": calls}))


if __name__ == "__main__":
    main()
