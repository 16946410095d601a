"""The contract of `learning.base.Learner`; add your own to LEARNERS."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.learning import make_learner
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.physics import make_problem
from neuroscale_couple.values import I64, FineAnswer, Points

PROBLEM = make_problem(schema.Problem(name="composite", grid=4))
N = 8


def _made(mode: str, **settings: int) -> Callable[[Path], Learner]:
    def make(folder: Path) -> Learner:
        learner = make_learner(schema.Learning(mode=mode, **settings), schema.Training(), PROBLEM, folder)
        assert learner is not None
        return learner

    return make


LEARNERS: dict[str, Callable[[Path], Learner]] = {
    "store": _made("store"),
    "online, nothing to train": _made("online", max_trainings=0),
    "online, too few samples": _made("online", first_samples=10**6),
}
"""Every implementation; built for a run folder."""


@pytest.fixture(params=sorted(LEARNERS))
def make(request: pytest.FixtureRequest) -> Callable[[Path], Learner]:
    return LEARNERS[request.param]


def attached(learner: Learner) -> Learner:
    phase = np.ones((N, 4, 4), dtype=np.uint8)
    learner.attach(Points(np.arange(N), np.zeros((N, 2)), np.ones(N), {"phase": phase}))
    return learner


def answer(rows: I64) -> FineAnswer:
    m = len(rows)
    return FineAnswer(rows, np.ones((m, 3)), np.ones((m, 3, 3)), np.ones(m, bool), np.ones(m, np.int64), np.zeros(m))


def test_without_reason_to_change_the_surrogate_stays(make: Callable[[Path], Learner], tmp_path: Path) -> None:
    learner = attached(make(tmp_path))
    for window in range(3):
        learner.observe(window, np.ones((2, 3)), answer(np.array([1, 3])))
        assert learner.propose(window, None) is None


def test_windows_without_fine_answers_are_no_problem(make: Callable[[Path], Learner], tmp_path: Path) -> None:
    learner = attached(make(tmp_path))
    assert learner.propose(0, None) is None
    learner.observe(1, np.zeros((0, 3)), answer(np.zeros(0, dtype=np.int64)))
    assert learner.propose(1, None) is None


def test_state_can_be_kept_in_a_checkpoint(make: Callable[[Path], Learner], tmp_path: Path) -> None:
    learner = attached(make(tmp_path))
    learner.observe(0, np.ones((2, 3)), answer(np.array([1, 3])))
    learner.propose(0, None)
    state = {key: np.asarray(value) for key, value in learner.get_state().items()}
    assert all(array.dtype != object for array in state.values())
    again = attached(make(tmp_path))
    again.set_state(state)
    assert {k: np.asarray(v).tolist() for k, v in again.get_state().items()} == {
        k: v.tolist() for k, v in state.items()
    }
    again.observe(1, np.ones((2, 3)), answer(np.array([1, 3])))
    assert again.propose(1, None) is None


def test_a_full_disk_never_raises(
    make: Callable[[Path], Learner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    learner = attached(make(tmp_path))
    for window in range(2):
        learner.observe(window, np.ones((2, 3)), answer(np.array([1, 3])))
        assert learner.propose(window, None) is None
