"""Losses: relative, smooth at zero, and minimal at the truth."""

from __future__ import annotations

import torch

from neuroscale_couple.training.losses import SMOOTH, data_loss, relative_energy, soft_relative


def test_soft_relative_is_zero_at_the_truth_and_relative_far_away() -> None:
    wanted = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.1]])
    got = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.2]])
    loss = soft_relative(got, wanted, 0.5)
    assert float(loss[0]) == 0.0
    torch.testing.assert_close(loss[1:], torch.tensor([1.0, 0.2]), atol=SMOOTH, rtol=0.0)


def test_soft_relative_has_a_gradient_at_the_truth() -> None:
    got = torch.tensor([[1.0, 2.0]], requires_grad=True)
    soft_relative(got, torch.tensor([[1.0, 2.0]]), 0.1).sum().backward()
    assert got.grad is not None
    assert float(got.grad.abs().max()) == 0.0


def test_tangents_count_with_their_weight() -> None:
    flux, tangent = torch.ones(2, 3, 2), torch.ones(2, 3, 2, 2)
    wanted_flux, wanted_tangent = torch.ones(2, 2), 2.0 * torch.ones(2, 2, 2)
    light = data_loss(flux, tangent, wanted_flux, wanted_tangent, 0.1, 0.1)
    heavy = data_loss(flux, tangent, wanted_flux, wanted_tangent, 0.1, 1.0)
    assert light.shape == (2, 3)
    torch.testing.assert_close(heavy, 10.0 * light)


def test_relative_energy_is_a_pure_number() -> None:
    energy, work = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0])
    torch.testing.assert_close(relative_energy(energy, work), relative_energy(1e3 * energy, 1e3 * work))
