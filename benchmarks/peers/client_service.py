"""The service that benchmarks/client.py measures against: it answers with what it was sent, and does nothing else.

Takes the arguments of `neuroscale-couple serve CASE.yaml --socket PATH ...` or `... --client`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.malloc import keep_freed_memory
from neuroscale_couple.transport.base import ServiceFactory
from neuroscale_couple.values import Batch, FieldSpec, Layout, Points, Reply


class NoOp:
    """flux = gradient."""

    inputs = Layout((FieldSpec("gradient", tuple("abcdefghi"), "1"),))
    outputs = Layout((FieldSpec("flux", tuple("abcdefghi"), "1"),))
    model_version = -1

    def __init__(self, points: Points, comm: Any) -> None:
        n = len(points)
        self._rest = np.empty((n, 9, 0)), np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n)

    def evaluate(self, batch: Batch) -> Reply:
        return Reply(batch.inputs, *self._rest)

    def resumed(self) -> None:
        return None

    def commit(self, macro_state: Any) -> None:
        pass

    rollback = repeat = next_step = close = lambda self: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command")
    parser.add_argument("config", type=Path)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--client", action="store_true")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--wait", type=float)
    args = parser.parse_args()
    keep_freed_memory()

    def prepare() -> tuple[Path, str, ServiceFactory]:
        return args.config, "", NoOp  # type: ignore[return-value]

    if args.client:
        from neuroscale_couple.transport.spawned import serve_parent

        serve_parent(prepare)
    else:
        from neuroscale_couple.transport.socket_server import serve_one_run

        serve_one_run(args.socket, args.ranks, args.wait, prepare)


if __name__ == "__main__":
    main()
