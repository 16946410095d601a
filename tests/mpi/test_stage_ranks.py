"""Gate, corrections, checkpoint and learner: two ranks decide and answer as one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mpi.launch import launch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    found = {}
    for size in (1, 2):
        out = tmp_path_factory.mktemp(f"ranks_{size}")
        launch((size, "stages.py", {"out": str(out)}), timeout=100).expect(0)
        found[size] = [dict(np.load(out / f"rank_{rank}.npz")) | {"folder": out} for rank in range(size)]
    return found


def together(parts: list[dict[str, Any]], name: str) -> Any:
    order = np.argsort(np.concatenate([part["ids"] for part in parts]))
    return np.concatenate([part[name] for part in parts])[order]


def test_balances_run_over_all_ranks(ranks: dict[int, list[dict[str, Any]]]) -> None:
    np.testing.assert_allclose(together(ranks[2], "outputs"), ranks[1][0]["outputs"], rtol=1e-13)


def test_the_same_points_are_audited_and_all_ranks_draw_the_same_conclusion(
    ranks: dict[int, list[dict[str, Any]]],
) -> None:
    (one,), two = ranks[1], ranks[2]
    assert sorted(np.concatenate([part["audited"] for part in two])) == sorted(one["audited"])
    for part in two:
        assert len(part["record"]) > 3 and np.array_equal(part["record"], one["record"])
        assert part["closed"] and one["closed"]


def test_rank_0_trains_on_the_samples_of_all_and_all_take_its_surrogate(
    ranks: dict[int, list[dict[str, Any]]],
) -> None:
    for parts in ranks.values():
        assert [int(part["version"]) for part in parts] == [1] * len(parts)
    one, two = (json.loads((ranks[size][0]["folder"] / "models" / "history.jsonl").read_text()) for size in (1, 2))
    assert one["samples"] == two["samples"] > 0 and one["held_out"] == two["held_out"] > 0
    assert len(list(Path(ranks[2][0]["folder"], "samples").glob("rank_1_*"))) == 2


def test_a_file_damaged_on_one_rank_sends_all_ranks_to_the_window_before(
    ranks: dict[int, list[dict[str, Any]]],
) -> None:
    for parts in ranks.values():
        assert all(part["kept"].tolist() == [2, 1, 1] for part in parts)
