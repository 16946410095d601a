"""Checkpoints: whole or not there, whatever happens to the process or the files."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.checkpoint import Checkpoint, DamagedFileError, pack_arrays, read_arrays, write_atomically
from neuroscale_couple.errors import CheckpointError


def parts(window: int) -> dict[str, dict[str, Any]]:
    return {
        "fine": {"field": np.random.default_rng(window).normal(size=(3, 4, 5)).transpose(2, 0, 1)},
        "gate": {"stage/key": np.arange(window), "closed": np.asarray(window % 2 == 0), "none": np.zeros((0, 3))},
        "macro": {},
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[p].keys() == other[p].keys() and all(np.array_equal(one[p][k], other[p][k]) for k in one[p]) for p in one
    )


def files_of(folder: Path, window: int) -> Path:
    return folder / f"window_{window:06d}" / "rank_0.safetensors"


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "c").load() is None
    assert Checkpoint(tmp_path / "c", digest="d").save(7, parts(7), {"window": 7, "model_path": "m"})
    loaded = Checkpoint(tmp_path / "c", digest="d").load()
    assert loaded is not None
    assert same(loaded[0], parts(7)) and loaded[1] == {"window": 7, "model_path": "m"}
    field = loaded[0]["fine"]["field"]
    assert field.dtype == np.float64 and field.shape == (5, 3, 4)


def test_the_last_two_windows_are_kept(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for window in range(1, 6):
        checkpoint.save(window, parts(window), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "window_000004", "window_000005"]


def test_saving_goes_on_after_a_resume(tmp_path: Path) -> None:
    first = Checkpoint(tmp_path)
    for window in (1, 2, 3):
        first.save(window, parts(window), {})
    second = Checkpoint(tmp_path)
    second.load()
    second.save(4, parts(4), {})
    names = [entry["window"] for entry in json.loads((tmp_path / "manifest.json").read_text())["windows"]]
    assert names == [4, 3]


def test_a_new_run_does_not_see_the_checkpoints_of_an_earlier_one(tmp_path: Path) -> None:
    Checkpoint(tmp_path).save(5, parts(5), {})
    fresh = Checkpoint(tmp_path)
    fresh.clear()
    assert Checkpoint(tmp_path).load() is None  # killed in its first window, it has nothing to go on from
    fresh.save(1, parts(1), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "window_000001"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "missing", "foreign"])
def test_a_damaged_window_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(1, parts(1), {"w": 1})
    checkpoint.save(2, parts(2), {"w": 2})
    path = files_of(tmp_path, 2)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        shutil.copyfile(files_of(tmp_path, 1), path)
    else:
        broken = {"cut": data[:-5], "flip": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "empty": b""}[damage]
        path.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        loaded = Checkpoint(tmp_path).load()
    assert loaded is not None and loaded[1] == {"w": 1} and same(loaded[0], parts(1))
    assert caplog.text.count("window 2 is damaged") == 1 and "going on from window 1 instead" in caplog.text


def test_if_nothing_can_be_read_it_is_an_error(tmp_path: Path) -> None:
    Checkpoint(tmp_path).save(1, parts(1), {})
    files_of(tmp_path, 1).write_bytes(b"x" * 100)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint can be read \(window 1 is damaged.*start without --resume"
    ):
        Checkpoint(tmp_path).load()


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, digest="a").save(3, parts(3), {})
    with pytest.raises(CheckpointError, match="the checkpoint of window 3 belongs to another configuration; undo"):
        Checkpoint(tmp_path, digest="b").load()


def test_a_checkpoint_of_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path).save(3, parts(3), {})

    class Two:
        def Get_size(self) -> int:
            return 2

        def Get_rank(self) -> int:
            return 0

    with pytest.raises(
        CheckpointError, match=r"written by 1 service rank\(s\), this run has 2; resume with the same number"
    ):
        Checkpoint(tmp_path, Two()).load()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ranks": 1}'])
def test_a_manifest_that_is_not_ours_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read \(.*start without --resume"):
        Checkpoint(tmp_path).load()


def test_a_full_disk_leaves_the_last_checkpoint_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.save(1, parts(1), {"w": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "fsync", full)
        assert not checkpoint.save(2, parts(2), {"w": 2})
        assert not checkpoint.save(3, parts(3), {"w": 3})
    assert [r.message for r in caplog.records] == [
        "checkpoint of window 2 could not be written (rank 0: [Errno 28] No space left on device); the run goes on, "
        "the last complete one is that of window 1"
    ]
    loaded = Checkpoint(tmp_path).load()
    assert loaded is not None and loaded[1] == {"w": 1}
    assert checkpoint.save(4, parts(4), {"w": 4})
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "f", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_bytes() == b"old"


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    data = pack_arrays({"x": np.arange(5.0), "y": np.zeros((0, 2), np.uint8)}, {"k": "v"})
    path = tmp_path / "f"
    path.write_bytes(data)
    arrays, metadata = read_arrays(path)
    assert np.array_equal(arrays["x"], np.arange(5.0)) and metadata["k"] == "v"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFileError):
            read_arrays(path)
    for at in range(len(data) - 40, len(data)):  # every byte of the array
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(DamagedFileError, match="wrong checksum"):
            read_arrays(path)


WRITER = """
import sys, numpy as np
from pathlib import Path
from neuroscale_couple.checkpoint import Checkpoint
checkpoint, window = Checkpoint(Path(sys.argv[1])), 0
while True:
    window += 1
    checkpoint.save(window, {"fine": {"field": np.full(20000, float(window))}}, {"window": window})
    print(window, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_its_last_window(tmp_path: Path) -> None:
    rng = random.Random(4)
    reached = []
    for trial in range(8):
        folder = tmp_path / str(trial)
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # the first window is complete
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        said = [1, *(int(line) for line in process.stdout.read().split())]
        process.wait()
        process.stdout.close()
        loaded = Checkpoint(folder).load()
        assert loaded is not None
        window = loaded[1]["window"]
        assert window in (said[-1], said[-1] + 1)  # the manifest may be there before the line is
        assert (loaded[0]["fine"]["field"] == window).all()
        reached.append(window)
    assert max(reached) > 2
