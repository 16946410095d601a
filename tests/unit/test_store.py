"""The sample store: what goes in comes out, of all ranks, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuroscale_couple.learning.store import SPILL, SampleStore, set_aside
from neuroscale_couple.values import F64, I64, FineAnswer, Points


def points(ids: I64) -> Points:
    phase = (ids[:, None, None] + np.arange(16).reshape(4, 4)) % 2
    return Points(ids, np.zeros((len(ids), 2)), np.ones(len(ids)), {"phase": phase.astype(np.uint8)})


def answer(rows: I64, value: float, converged: bool = True) -> FineAnswer:
    m = len(rows)
    outputs = np.full((m, 3), value) + rows[:, None]
    return FineAnswer(
        rows, outputs, np.full((m, 3, 3), value), np.full(m, converged), np.ones(m, np.int64), np.zeros(m)
    )


def inputs_of(rows: I64, value: float) -> F64:
    return np.full((len(rows), 3), 10 * value) + rows[:, None]


def store(folder: Path, rank: int = 0, ids: I64 | None = None) -> SampleStore:
    made = SampleStore(folder, rank)
    made.attach(points(np.arange(100, 110) if ids is None else ids))
    made.begin()
    return made


def fill(made: SampleStore, window: int, rows: I64, value: float) -> None:
    made.append(window, inputs_of(rows, value), answer(rows, value))
    made.flush(window)


def test_samples_come_back_with_their_micro_structures(tmp_path: Path) -> None:
    made = store(tmp_path)
    fill(made, 0, np.array([1, 4]), 1.0)
    fill(made, 1, np.array([4, 7]), 2.0)
    samples = made.read()
    assert samples is not None and len(samples) == 4
    assert samples.ids.tolist() == [101, 104, 104, 107] and samples.window.tolist() == [0, 0, 1, 1]
    assert samples.inputs[:, 0].tolist() == [11.0, 14.0, 24.0, 27.0]
    assert samples.outputs[:, 0].tolist() == [2.0, 5.0, 6.0, 9.0]
    assert samples.tangent[:, 1, 2].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert samples.point_ids.tolist() == [101, 104, 107]
    assert np.array_equal(samples.parameters["phase"][samples.structure], points(samples.ids).parameters["phase"])


def test_micro_structures_are_written_once_also_after_a_resume(tmp_path: Path) -> None:
    made = store(tmp_path)
    fill(made, 0, np.array([1, 4]), 1.0)
    fill(made, 1, np.array([1, 4]), 2.0)
    again = store(tmp_path)
    fill(again, 2, np.array([1, 4, 5]), 3.0)
    assert len(list(tmp_path.glob("*_parameters_*"))) == 2
    samples = again.read()
    assert samples is not None and samples.point_ids.tolist() == [101, 104, 105] and len(samples) == 7


def test_all_ranks_are_read(tmp_path: Path) -> None:
    fill(store(tmp_path, 0, np.arange(0, 5)), 3, np.array([0, 2]), 1.0)
    fill(store(tmp_path, 1, np.arange(5, 10)), 2, np.array([0, 1]), 2.0)
    samples = SampleStore(tmp_path).read()
    assert samples is not None and samples.ids.tolist() == [5, 6, 0, 2]
    assert np.array_equal(samples.parameters["phase"][samples.structure], points(samples.ids).parameters["phase"])


def test_a_repeated_window_replaces_its_shard(tmp_path: Path) -> None:
    fill(store(tmp_path), 5, np.array([1, 2, 3]), 1.0)
    fill(store(tmp_path), 5, np.array([1, 2, 3]), 1.0)
    samples = SampleStore(tmp_path).read()
    assert samples is not None and len(samples) == 3


def test_nothing_is_written_before_the_window_is_committed(tmp_path: Path) -> None:
    made = store(tmp_path / "s")
    made.append(0, inputs_of(np.array([1]), 1.0), answer(np.array([1]), 1.0))
    assert not (tmp_path / "s").exists() and made.read() is None


def test_a_large_window_is_written_in_parts(tmp_path: Path) -> None:
    n = SPILL // (16 * 8) // 3
    made = store(tmp_path, ids=np.arange(n))
    rows = np.arange(n)
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        made.append(0, inputs_of(rows, value), answer(rows, value))
    made.flush(0)
    assert [p.name for p in sorted(tmp_path.glob("*window*"))] == [
        "rank_0_window_000000_000.safetensors",
        "rank_0_window_000000_001.safetensors",
    ]
    samples = made.read()
    assert samples is not None and len(samples) == 5 * n


def test_answers_that_did_not_converge_are_not_stored(tmp_path: Path) -> None:
    made = store(tmp_path)
    mixed = answer(np.array([1, 2, 3]), 1.0)
    mixed.converged[1] = False
    assert made.append(0, inputs_of(mixed.rows, 1.0), mixed) == 2
    assert made.append(0, inputs_of(mixed.rows, 1.0), answer(mixed.rows, 2.0, converged=False)) == 0
    made.flush(0)
    samples = made.read()
    assert samples is not None and samples.ids.tolist() == [101, 103]


def test_stored_arrays_do_not_follow_those_of_the_solver(tmp_path: Path) -> None:
    made = store(tmp_path)
    rows, inputs = np.array([1, 2]), np.ones((2, 3))
    given = answer(rows, 1.0)
    made.append(0, inputs, given)
    inputs[:], given.outputs[:] = -1.0, -1.0
    made.flush(0)
    samples = made.read()
    assert samples is not None and (samples.inputs == 1.0).all() and (samples.outputs > 0.0).all()


def test_taking_samples_takes_the_micro_structures_that_they_need(tmp_path: Path) -> None:
    made = store(tmp_path)
    fill(made, 0, np.arange(10), 1.0)
    samples = made.read()
    assert samples is not None
    some = samples.take(np.array([7, 2, 7]))
    assert some.ids.tolist() == [107, 102, 107] and some.point_ids.tolist() == [102, 107]
    assert np.array_equal(some.point_ids[some.structure], some.ids)


def test_samples_of_an_earlier_run_are_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    assert set_aside(folder) is None
    for number in (0, 1):
        fill(store(folder), 0, np.array([1]), 1.0)
        assert set_aside(folder) == tmp_path / f"samples_before_{number:03d}"
        assert not folder.exists()
    assert len(list(tmp_path.glob("samples_before_*/*window*"))) == 2
