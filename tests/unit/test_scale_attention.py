"""Scale attention: weights over the levels that adapt to the micro structure."""

from __future__ import annotations

import numpy as np
import torch

from neuroscale_couple.config.schema import Microstructure
from neuroscale_couple.operator.levels import Pyramid
from neuroscale_couple.operator.scale_attention import ScaleAttention
from neuroscale_couple.physics.microstructure import generate


def weights_of(size: float) -> torch.Tensor:
    settings = Microstructure(kind="blobs", volume_fraction=(0.3, 0.3), size=(size, size))
    phase = generate(settings, np.arange(8), 64, None)  # type: ignore[arg-type]
    torch.manual_seed(1)
    pyramid, attention = Pyramid(1, 8), ScaleAttention(2, 3, 17, 6)
    with torch.no_grad():
        levels = pyramid(torch.from_numpy(phase).float()[:, None])
        return attention.weights(pyramid.descriptors(levels))


def test_weights_are_shares_of_the_levels() -> None:
    weights = weights_of(0.2)
    assert weights.shape == (2, 8, 3, 5)  # members, structures, queries, levels 64 .. 4
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(2, 8, 3))
    assert float(weights.min()) > 0.0


def test_weights_change_with_the_characteristic_size() -> None:
    fine, coarse = weights_of(0.08), weights_of(0.5)
    between = (fine.mean(dim=1) - coarse.mean(dim=1)).abs().max()
    within = torch.maximum(fine.std(dim=1).max(), coarse.std(dim=1).max())
    assert float(between) > 1e-3
    assert float(between) > 0.5 * float(within)


def test_queries_look_at_different_levels() -> None:
    weights = weights_of(0.2)
    assert float((weights[:, :, 0] - weights[:, :, 1]).abs().max()) > 1e-3


def test_answer_is_the_weighted_mean_of_values() -> None:
    torch.manual_seed(4)
    attention = ScaleAttention(1, 2, 3, 4)
    same = torch.randn(5, 1, 3).expand(5, 6, 3)
    value = attention.value(same[:, 0][None])
    torch.testing.assert_close(attention(same), value[:, :, None].expand(1, 5, 2, 4))
