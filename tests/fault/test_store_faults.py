"""Faults while samples are stored: the run goes on, nothing whole is lost, everything torn is skipped and said."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.config import schema
from neuroscale_couple.learning import make_learner
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.learning.store import SampleStore
from neuroscale_couple.physics import make_problem
from neuroscale_couple.values import I64, FineAnswer, Points

N = 6


def points() -> Points:
    return Points(np.arange(N), np.zeros((N, 2)), np.ones(N), {"phase": np.ones((N, 4, 4), dtype=np.uint8)})


def answer(rows: I64) -> FineAnswer:
    m = len(rows)
    return FineAnswer(rows, np.ones((m, 3)), np.ones((m, 3, 3)), np.ones(m, bool), np.ones(m, np.int64), np.zeros(m))


def fill(store: SampleStore, window: int) -> None:
    store.append(window, np.full((N, 3), float(window)), answer(np.arange(N)))
    store.flush(window)


def filled(folder: Path) -> SampleStore:
    store = SampleStore(folder)
    store.attach(points())
    store.begin()
    for window in (0, 1, 2):
        fill(store, window)
    return store


def learner(folder: Path) -> Learner:
    problem = make_problem(schema.Problem(name="composite", grid=4))
    made = make_learner(schema.Learning(mode="store"), schema.Training(), problem, folder)
    assert made is not None
    made.attach(points())
    return made


def window_of(made: Learner, window: int) -> None:
    made.observe(window, np.full((N, 3), float(window)), answer(np.arange(N)))
    assert made.propose(window, None) is None


def test_a_shard_cut_anywhere_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = filled(tmp_path)
    path = tmp_path / "rank_0_window_000001_000.safetensors"
    data = path.read_bytes()
    for length in [*range(0, 400, 13), *range(400, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            samples = store.read()
        assert samples is not None and samples.window.tolist() == [0] * N + [2] * N
        assert caplog.text.count("samples: a shard is skipped") == 1 and str(path) in caplog.text


def test_a_foreign_file_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.numpy import save_file

    store = filled(tmp_path)
    path = tmp_path / "rank_7_window_000009_000.safetensors"
    save_file({"ids": np.arange(3)}, path)
    with caplog.at_level(logging.WARNING):
        samples = store.read()
    assert samples is not None and len(samples) == 3 * N and str(path) in caplog.text


def test_samples_whose_micro_structures_are_lost_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    other = SampleStore(tmp_path, rank=1)
    other.attach(Points(np.arange(50, 52), np.zeros((2, 2)), np.ones(2), {"phase": np.ones((2, 4, 4), np.uint8)}))
    other.begin()
    other.append(0, np.zeros((2, 3)), answer(np.arange(2)))
    other.flush(0)
    (tmp_path / "rank_1_parameters_000.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        samples = other.read()
    assert samples is not None and len(samples) == 3 * N and samples.ids.max() < N
    assert "2 samples are left out: their micro structures are lost" in caplog.text


def test_a_full_disk_stops_learning_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = learner(tmp_path)
    window_of(made, 0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "fsync", full)
        for window in (1, 2):
            window_of(made, window)
    window_of(made, 3)
    samples = SampleStore(tmp_path / "samples").read()
    assert samples is not None and samples.window.tolist() == [0] * N
    assert [r.message for r in caplog.records] == [
        f"learning: rank 0: fine answers cannot be stored in {tmp_path / 'samples'} "
        "([Errno 28] No space left on device); learning stops, the run goes on"
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_size_limit_of_the_system_stops_learning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real refused write: the kernel allows files of 4 kB only."""
    made = learner(tmp_path)
    caplog.set_level(logging.WARNING)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        for window in range(3):
            for _ in range(10):
                made.observe(window, np.zeros((N, 3)), answer(np.arange(N)))
            assert made.propose(window, None) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caplog.text.count("File too large") == 1 and "learning stops, the run goes on" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_made_stops_learning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    made = learner(tmp_path)
    with caplog.at_level(logging.WARNING):
        window_of(made, 0)
        window_of(made, 1)
    assert caplog.text.count("learning stops, the run goes on") == 1


WRITER = """
import sys, numpy as np
from pathlib import Path
from neuroscale_couple.learning.store import SampleStore
from neuroscale_couple.values import FineAnswer, Points
n = 2000
store = SampleStore(Path(sys.argv[1]))
store.attach(Points(np.arange(n), np.zeros((n, 2)), np.ones(n), {"phase": np.ones((n, 4, 4), np.uint8)}))
store.begin()
for window in range(10**6):
    rows = np.arange(n)
    answer = FineAnswer(rows, np.full((n, 3), window + .5), np.zeros((n, 3, 3)), np.ones(n, bool), rows, np.zeros(n))
    store.append(window, np.full((n, 3), float(window)), answer)
    store.flush(window)
    print(window, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_no_committed_window(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(6)
    for trial in range(6):
        folder = tmp_path / str(trial)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0.0, 0.15)))
        process.send_signal(signal.SIGKILL)
        committed = max([0, *(int(line) for line in process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        samples = SampleStore(folder).read()
        assert samples is not None and set(range(committed + 1)) <= set(samples.window.tolist())
        assert np.array_equal(samples.outputs[:, 0], samples.window + 0.5)
        shutil.rmtree(folder)
    assert not caplog.records
