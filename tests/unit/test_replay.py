"""Recording a macro solver and playing it again gives the same calls and the same answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.errors import ConfigError
from neuroscale_couple.transport import play_recorded
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.transport.replay import Recorder, Script, play
from neuroscale_couple.values import Points
from tests.contract.transport_contract import Echo, N, inputs, points


def record(path: Path) -> list[Any]:
    """Two windows of two steps, the first one repeated; returns the answers."""
    heard = []
    with Recorder(EmbeddedClosure(Echo, None, points()), points(), path) as closure:
        for number, end in enumerate((closure.repeat, closure.commit, closure.commit)):
            heard.append(closure.evaluate(inputs(1.0 + number), 0.5, 0.25, {"flux": 0.1}, blank=number == 0))
            closure.next_step()
            heard.append(closure.evaluate(inputs(1.1 + number), 0.5, 0.25, {"flux": 0.1}))
            end()
    return heard


def test_a_replay_equals_the_recorded_run(tmp_path: Path) -> None:
    first = record(tmp_path / "calls.npz")
    script = Script.load(tmp_path / "calls.npz")
    window = ["evaluate", "next_step", "evaluate"]
    assert [call.kind for call in script.calls] == [*window, "repeat", *window, "commit", *window, "commit"]
    again = []
    with EmbeddedClosure(Echo, None, script.points) as closure:
        play(script, closure, lambda _, outputs: again.append(outputs))
    assert len(again) == len(first) == 6
    for one, two in zip(first, again, strict=True):
        for name in ("outputs", "tangent", "source", "reason", "error"):
            np.testing.assert_array_equal(getattr(one.reply, name), getattr(two.reply, name))


def test_parts_of_a_script_cover_all_points(tmp_path: Path) -> None:
    record(tmp_path / "calls.npz")
    script = Script.load(tmp_path / "calls.npz")
    parts = [script.part(place, 3) for place in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.points.ids for part in parts]), script.points.ids)
    np.testing.assert_array_equal(
        np.concatenate([part.calls[0].inputs["y"] for part in parts]), script.calls[0].inputs["y"]
    )


def test_a_resumed_replay_leaves_out_the_committed_windows(tmp_path: Path) -> None:
    record(tmp_path / "calls.npz")

    class Resumed(Echo):
        def resumed(self) -> Any:
            return 1, {}

    heard = []
    script = Script.load(tmp_path / "calls.npz")
    with EmbeddedClosure(Resumed, None, script.points) as closure:
        play(script, closure, lambda number, outputs: heard.append(number))
    assert heard == [8, 10]


def test_a_failed_run_leaves_no_recording(tmp_path: Path) -> None:
    closure = Recorder(EmbeddedClosure(Echo, None, points()), points(), tmp_path / "calls.npz")
    with pytest.raises(ZeroDivisionError), closure:
        closure.evaluate(inputs(), 0.0, 0.0)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_missing_recording_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*calls\.npz; record one with `record: calls\.npz`"):
        Script.load(tmp_path / "calls.npz")


@pytest.mark.parametrize("damage", ["truncated", "text", "other"])
def test_a_damaged_recording_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "calls.npz"
    record(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("not an archive")
    else:
        np.savez(path, a=np.zeros(3))
    with pytest.raises(ConfigError, match=r"calls\.npz is not a recorded run .*record it again"):
        Script.load(path)


def config(folder: Path, replay: str | None) -> Any:
    """As much of a loaded configuration as the replay reads."""
    settings = SimpleNamespace(replay=replay)
    return SimpleNamespace(config=SimpleNamespace(neuroscale=settings), folder=folder, path=folder / "neuroscale.yaml")


def test_the_configuration_names_the_recording(tmp_path: Path) -> None:
    record(tmp_path / "calls.npz")
    connected: list[Points] = []

    def connect(given: Points) -> EmbeddedClosure:
        connected.append(given)
        return EmbeddedClosure(Echo, None, given)

    assert play_recorded(config(tmp_path, "calls.npz"), connect) == 12
    assert len(connected[0]) == N
    with pytest.raises(ConfigError, match=r"transport: replay needs neuroscale\.replay"):
        play_recorded(config(tmp_path, None), connect)
