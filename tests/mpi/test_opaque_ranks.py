"""Opaque micro problems learn on two ranks: one surrogate, leaders of each rank, errors within the tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.mpi.launch import launch


def test_two_ranks_learn_one_surrogate_and_keep_the_tolerance(tmp_path: Path) -> None:
    launch((2, "opaque.py", {"out": str(tmp_path)}), timeout=100).expect(0)
    found = [dict(np.load(tmp_path / f"rank_{rank}.npz")) for rank in range(2)]
    np.testing.assert_array_equal(found[0]["versions"], found[1]["versions"])
    assert found[0]["versions"][-1] >= 1
    errors = np.hstack([part["errors"] for part in found])
    assert np.mean(errors > 0.05) < 0.05
    assert sum(int(part["solves"]) for part in found) < 0.8 * errors.size
