"""A service behind a socket, in one of several characters: service.py SOCKET CHARACTER [RANKS]."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.errors import ConfigError
from neuroscale_couple.transport.base import ServiceFactory
from neuroscale_couple.transport.socket_server import serve_one_run
from neuroscale_couple.values import Batch, Points, Reply
from tests.contract.transport_contract import Echo


class Remembering(Echo):
    """Keeps the solver's state, and was resumed after two windows with what FILE of the environment holds."""

    def commit(self, macro_state: Any) -> None:
        np.savez(os.environ["NSC_TEST_STATE"], **{name.replace("/", "|"): a for name, a in (macro_state or {}).items()})

    def resumed(self) -> Any:
        path = Path(os.environ["NSC_TEST_STATE"])
        if not path.exists():
            return None
        with np.load(path) as arrays:
            return 2, {name.replace("|", "/"): arrays[name] for name in arrays}


class Attentive(Echo):
    """Looks at the batch that it answered once more when the window ends, as a loop that learns does."""

    def evaluate(self, batch: Batch) -> Reply:
        self.batch, self.first = batch, batch.inputs.copy()
        return super().evaluate(batch)

    def commit(self, macro_state: Any) -> None:
        np.testing.assert_array_equal(self.batch.inputs, self.first)


class Failing(Echo):
    """Cannot answer."""

    def evaluate(self, batch: Batch) -> Reply:
        raise ArithmeticError("the fine solver divided by zero at point 7")


class Dying(Echo):
    """Is killed while it answers."""

    def evaluate(self, batch: Batch) -> Reply:
        os.kill(os.getpid(), 9)
        raise AssertionError


class Slow(Echo):
    """Takes longer than anybody waits; says on its output that it has begun."""

    def evaluate(self, batch: Batch) -> Reply:
        print("busy", flush=True)
        time.sleep(600)
        raise AssertionError


class NotANumber(Echo):
    """Sends what no service may."""

    def evaluate(self, batch: Batch) -> Reply:
        reply = super().evaluate(batch)
        reply.outputs[-1, -1] = np.nan
        return reply


class WithoutTangent(Echo):
    """An opaque micro problem."""

    def evaluate(self, batch: Batch) -> Reply:
        reply = super().evaluate(batch)
        return Reply(reply.outputs, reply.tangent[:, :, :0], reply.source, reply.reason, reply.error)


CHARACTERS: dict[str, Any] = {
    "echo": Echo,
    "remembering": Remembering,
    "attentive": Attentive,
    "failing": Failing,
    "dying": Dying,
    "slow": Slow,
    "nan": NotANumber,
    "opaque": WithoutTangent,
}


def prepare(character: str, path: Path) -> tuple[Path, str, ServiceFactory]:
    """What `serve_one_run` asks for; the test's folder stands for the configuration."""
    if character == "refusing":
        raise ConfigError("case.yaml: neuroscale.gate: unknown key 'tolerence'; did you mean tolerance?")

    def factory(points: Points, comm: Any) -> Any:
        return CHARACTERS[character](points, comm)

    return path.parent, "", factory


def main() -> None:
    path, character = Path(sys.argv[1]), sys.argv[2]
    ranks = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    serve_one_run(path, ranks, 60.0, lambda: prepare(character, path))


if __name__ == "__main__":
    main()
