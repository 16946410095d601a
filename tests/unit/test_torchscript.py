"""The TorchScript surrogate: chunks, the memory of field modes, and the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroscale_couple.errors import MicrostructureError
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate import torchscript
from neuroscale_couple.surrogate.torchscript import ModesCache, TorchScriptSurrogate
from neuroscale_couple.values import Points
from tests import small_models


def surrogate() -> TorchScriptSurrogate:
    return TorchScriptSurrogate(small_models.artifact("composite"), small_models.problem("composite"), "cpu")


def points() -> Points:
    phase = small_models.data("composite").phase
    n = len(phase)
    return Points(np.arange(n), np.zeros((n, 2)), np.ones(n), {"phase": phase})


@pytest.mark.parametrize("rung", [Source.SURROGATE_COARSE, Source.SURROGATE_FINE])
def test_the_size_of_chunks_does_not_change_answers(rung: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_models.data("composite")
    whole = surrogate()
    whole.attach(points())
    expected = whole.predict(rung, data.structure, data.inputs)
    monkeypatch.setattr(torchscript, "COARSE_CHUNK", 7)
    monkeypatch.setattr(torchscript, "CHUNK_PIXELS", 16 * 16 * 5)
    chunked = surrogate()
    chunked.attach(points())
    got = chunked.predict(rung, data.structure, data.inputs)
    np.testing.assert_allclose(got.outputs, expected.outputs, atol=2e-5 * np.abs(expected.outputs).max())
    np.testing.assert_allclose(got.score, expected.score, atol=1e-4)


def test_modes_beyond_the_memory_are_computed_again() -> None:
    calls: list[int] = []

    def compute(positions: torch.Tensor) -> torch.Tensor:
        calls.append(len(positions))
        return positions[:, None].float().expand(-1, 2**18)  # one MB each

    cache = ModesCache(5, 3.0)
    index = torch.arange(5)
    first = cache.get(index, compute)
    second = cache.get(index, lambda positions: compute(index[positions]))
    torch.testing.assert_close(first[:, 0], torch.arange(5.0))
    torch.testing.assert_close(second, first)
    assert calls == [5, 2]


def test_the_same_point_twice_in_one_call() -> None:
    cache = ModesCache(5, 1.0)
    index = torch.tensor([4, 4, 2])
    got = cache.get(index, lambda positions: index[positions, None].float())
    torch.testing.assert_close(got[:, 0], torch.tensor([4.0, 4.0, 2.0]))
    again = cache.get(torch.tensor([2, 4]), lambda positions: torch.full((len(positions), 1), -1.0))
    torch.testing.assert_close(again[:, 0], torch.tensor([2.0, 4.0]))


def test_attaching_again_forgets_the_old_points() -> None:
    data = small_models.data("composite")
    made = surrogate()
    made.attach(points())
    before = made.predict(Source.SURROGATE_FINE, np.array([0]), data.inputs[:1])
    made.attach(points().take(np.array([5, 6])))
    after = made.predict(Source.SURROGATE_FINE, np.array([0]), data.inputs[:1])
    assert np.abs(after.outputs - before.outputs).max() > 1e-3 * np.abs(before.outputs).max()


def test_the_same_points_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promoted surrogate is attached by the learner, to see whether it can be, and then by the loop."""
    made, mine = surrogate(), points()
    made.attach(mine)
    monkeypatch.setattr(made, "_workers", None)
    made.attach(mine)
    with pytest.raises(AttributeError):
        made.attach(points())


def test_predicting_before_attaching_is_refused() -> None:
    with pytest.raises(RuntimeError, match="attach the surrogate to its points"):
        surrogate().predict(Source.SURROGATE_COARSE, np.array([0]), np.zeros((1, 3)))


def test_a_micro_structure_of_another_size_is_refused() -> None:
    phase = np.zeros((2, 8, 8), dtype=np.uint8)
    with pytest.raises(MicrostructureError, match="'phase' has shape"):
        surrogate().attach(Points(np.arange(2), np.zeros((2, 2)), np.ones(2), {"phase": phase}))
