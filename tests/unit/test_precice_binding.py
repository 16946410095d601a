"""Our binding of preCICE where it was built, its Python package else."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.transport.precice_binding import OURS, direct, participant, vertex_ids


class Theirs:
    def __init__(self, *told: Any) -> None:
        self.told = told


class Ours(Theirs):
    pass


Ours.__module__ = OURS


@pytest.mark.parametrize(("built", "kind", "ids"), [(SimpleNamespace(Participant=Ours), Ours, np.ndarray),
                                                    (None, Theirs, list)])  # fmt: skip
def test_the_package_is_used_where_our_binding_is_not_built(
    built: Any, kind: type[Any], ids: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, OURS, built)
    made = participant(SimpleNamespace(Participant=Theirs), "Macro", "x.xml", 1, 2)
    assert type(made) is kind and made.told == ("Macro", "x.xml", 1, 2)
    given = vertex_ids(np.array([3, 1, 2])[::-1], direct(made))
    assert type(given) is ids and list(given) == [2, 1, 3]
    if ids is np.ndarray:
        assert given.dtype == np.int32 and given.flags.c_contiguous
