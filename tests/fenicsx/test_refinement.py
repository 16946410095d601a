"""The two-scale solution converges under macro refinement with the order of its elements."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.needs("fenicsx")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fenicsx_refinement.py"


def test_orders_in_l2_and_h1(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fenicsx_refinement", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = benchmark.study(tmp_path, (4, 8))
    for row in rows[1::2]:
        assert row["order_l2"] > row["degree"] + 0.9
        assert row["order_h1"] > row["degree"] - 0.1
        residuals = np.array(row["newton_residuals"])
        assert residuals[-1] < 1e-9 * residuals[0]
