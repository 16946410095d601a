"""The real loop on any transport: run.py '{"role": "macro" | "service", "transport": ..., "config": ...}'."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import Points, assemble, connect, parallel, serve, split_world

N = 40


def strain_of(ids: Any, window: int, iteration: int) -> Any:
    """The macro solver's values, a function of id, window and iteration."""
    return 0.01 * np.stack([np.sin(ids + window), np.cos(ids + iteration), np.sin(3 * ids)], axis=1)


def run(asked: dict[str, Any], comm: Any) -> None:
    """Windows of two iterations; the answers of this rank's points go to a file."""
    ids = np.random.default_rng(asked.get("order", 0)).permutation(N).astype(np.int64)
    mine = np.array_split(ids, parallel.size(comm))[parallel.rank(comm)]
    points = Points(mine, np.stack([mine, mine], axis=1) * 0.1, np.ones(len(mine)))
    answers = []
    with connect(asked["config"], comm, points) as closure:
        done, state = closure.resumed() or (0, {})
        if done:
            np.testing.assert_array_equal(state["ids"], mine)
            assert state["window"] == done - 1, (state, done)
        for window in range(done, asked.get("windows", 2)):
            for iteration in range(2):
                strain = strain_of(mine, window, iteration)
                got = closure.evaluate({"strain": strain}, float(window), 1.0, asked.get("totals"))
                answers.append(np.concatenate([got["stress"], got.tangent.reshape(len(mine), -1)], axis=1))
            closure.commit({"window": np.array(window), "ids": mine})
    np.savez(Path(asked["out"]) / f"macro{parallel.rank(comm)}.npz", ids=mine, answers=np.stack(answers))


def main() -> None:
    asked = json.loads(sys.argv[1])
    overrides = {"transport": asked["transport"], "output.folder": asked["out"], **asked.get("overrides", {})}
    assemble.run_options = assemble.RunOptions(overrides, resume=asked.get("resume", False))
    with parallel.abort_on_error():
        if asked["role"] == "service":
            serve(asked["config"])
        elif asked["role"] == "replay":
            assemble.replay(asked["config"])
        else:
            run(asked, split_world("macro").local)


if __name__ == "__main__":
    main()
