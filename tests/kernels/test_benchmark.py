"""What benchmarks/kernels.py says that it measures is what it measures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import kernels as benchmark


@pytest.mark.parametrize("quick", [False, True])
def test_cases_keep_their_own_names(quick: bool) -> None:
    """The largest field once ran under the name of a later case, which a lambda looked up after the loop."""
    made: list[Any] = benchmark.cases(quick, memory=1e9)
    fields = {maker.args[0]: maker.args[1] for maker in made if maker.func is benchmark.pyramid}
    large = {name: shape for name, shape in fields.items() if name.endswith("GB")}
    assert large == ({} if quick else {"plane, 1.0 GB": (158, 3, 512, 512)})
    maps = [maker.args for maker in made if maker.func is benchmark.cells]
    assert [name for name, _, length, _ in maps if length == 10**5] == ["1e5 cells x 1 components"]


def test_a_row_says_whether_it_is_an_alternative() -> None:
    case = benchmark.Case("kernel", "case", 100, 10)
    seconds = {"copy": 1.0, "compiled": 2.0, "torch": 6.0, "reference": 0.5, benchmark.SUM: 0.1, benchmark.FILL: 0.1}
    rows = {row["variant"]: row for row in benchmark.rows_of(case, seconds)}
    assert [name for name, row in rows.items() if row["alternative"]] == ["torch"]
    assert (rows["compiled"]["times_copy"], rows["compiled"]["times_best"]) == (0.5, 3.0)
