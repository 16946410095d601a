"""The operator: exact physics in its first layer, any grid, and answers that do not move with the cell's origin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuroscale_couple.operator.levels import LippmannSchwinger, Pyramid
from neuroscale_couple.operator.neuroscale import NeuroScale, Sizes
from neuroscale_couple.operator.uncertainty import EnsembleLinear, ErrorModel, relative_spread
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.training.dataset import load_ranges
from neuroscale_couple.training.model import make_model, make_physics
from tests import small_models


def layer(name: str, steps: int) -> LippmannSchwinger:
    problem = small_models.problem(name)
    physics = make_physics(problem, load_ranges(problem, small_models.settings(name).training))
    return LippmannSchwinger(problem.green, physics.media, steps)


def structures(n: int, grid: int = 16) -> Tensor:
    settings = small_models.settings("composite").microstructure
    return torch.from_numpy(generate(settings, np.arange(n), grid, None)).float()  # type: ignore[arg-type]


def model(name: str) -> NeuroScale:
    problem = small_models.problem(name)
    physics = make_physics(problem, load_ranges(problem, small_models.settings(name).training))
    return make_model(physics, Sizes(members=2, width=8), 1)


@pytest.mark.parametrize("name", ["composite", "conduction"])
def test_bounds_fall_from_voigt_towards_the_exact_tensor(name: str) -> None:
    made = layer(name, 8)
    phase = structures(6)
    forms, split, _ = made(phase)
    voigt = made.media[:, 0] + phase.mean(dim=(1, 2))[:, None, None, None] * (made.media[:, 1] - made.media[:, 0])
    torch.testing.assert_close(forms[:, :, 0], voigt)
    drop = torch.diagonal(forms[:, :, :-1] - forms[:, :, 1:], dim1=-2, dim2=-1)
    assert float(drop.min()) > -1e-4
    assert float((forms[:, :, -1] - forms[:, :, -2]).norm() / forms[:, :, -1].norm()) < 1e-3
    torch.testing.assert_close(split.sum(dim=2), forms[:, :, -1])


def test_laminate_is_exact() -> None:
    """Arithmetic mean along the layers, harmonic mean across."""
    made = layer("conduction", 20)
    phase = torch.zeros(1, 16, 16)
    phase[:, :, :4] = 1.0
    forms, _, _ = made(phase)
    k = made.media[:, :, 0, 0]
    across = 1.0 / (0.25 / k[:, 1] + 0.75 / k[:, 0])
    along = 0.25 * k[:, 1] + 0.75 * k[:, 0]
    torch.testing.assert_close(forms[0, :, -1, 0, 0], across, rtol=2e-3, atol=0.0)
    torch.testing.assert_close(forms[0, :, -1, 1, 1], along, rtol=1e-4, atol=0.0)


def test_fields_are_compatible_with_the_unit_loads_as_means() -> None:
    made = layer("composite", 3)
    _, _, e = made(structures(3))
    torch.testing.assert_close(e.mean(dim=(4, 5)), torch.eye(3).expand(3, 2, 3, 3), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", ["composite", "conduction"])
def test_answers_do_not_move_with_the_origin_of_the_cell(name: str) -> None:
    made, phase = model(name), structures(4)
    inputs = torch.from_numpy(small_models.data(name).inputs[:4]).float()
    with torch.no_grad():
        one = made.coarse(*made.encode(phase), inputs)
        # shifts by whole coarsest pixels keep the blocks of the pyramid
        other = made.coarse(*made.encode(torch.roll(phase, (4, 8), dims=(1, 2))), inputs)
    torch.testing.assert_close(one[0], other[0], rtol=1e-3, atol=1e-4 * float(one[0].abs().max()))


@pytest.mark.parametrize("grid", [8, 12, 32, 48])
def test_one_set_of_weights_serves_any_grid(grid: int) -> None:
    made = model("composite")
    phase = structures(2, grid)
    inputs = torch.full((2, 3), 0.01)
    with torch.no_grad():
        outputs, tangent, score = made.coarse(*made.encode(phase), inputs)
        modes = made.modes(phase)
        fine, _, _ = made.fine(modes, phase, inputs)
    assert modes.shape[-2:] == (grid, grid)
    for value in (outputs, tangent, score, fine):
        assert bool(torch.isfinite(value).all())


def test_pyramid_coarse_grains_down_to_a_few_pixels() -> None:
    levels = Pyramid(1, 4)(torch.rand(2, 1, 32, 32))
    assert [level.shape[-1] for level in levels] == [32, 16, 8, 4]
    assert [level.shape[-1] for level in Pyramid(1, 4)(torch.rand(2, 1, 12, 12))] == [12, 6, 3]


def test_fine_head_agrees_with_the_fine_solver_and_knows_its_error() -> None:
    data = small_models.data("composite")
    made = model("composite")
    phase = torch.from_numpy(data.phase[data.structure]).float()
    with torch.no_grad():
        got, tangent, score = made.fine(made.modes(phase), phase, torch.from_numpy(data.inputs).float())
    error = np.linalg.norm(got.numpy() - data.outputs, axis=1) / np.linalg.norm(data.outputs, axis=1)
    assert np.median(error) < 0.01
    stiffness = np.linalg.norm(data.tangent, axis=(1, 2))
    assert np.median(np.linalg.norm(tangent.numpy() - data.tangent, axis=(1, 2)) / stiffness) < 0.02
    worst, best = np.argsort(score.numpy())[-20:], np.argsort(score.numpy())[:20]
    assert np.median(error[best]) < 0.3 * np.median(error[worst])


def test_scripted_model_equals_the_eager_one() -> None:
    made, phase = model("conduction"), structures(3)
    scripted = torch.jit.script(made)
    inputs = torch.tensor([[0.5, -0.2, 300.0], [0.1, 0.9, 260.0], [-0.3, 0.4, 340.0]])
    with torch.no_grad():
        for one, other in zip(
            made.coarse(*made.encode(phase), inputs), scripted.coarse(*scripted.encode(phase), inputs), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_members_are_independent() -> None:
    torch.manual_seed(5)
    linear = EnsembleLinear(3, 4, 2)
    x = torch.randn(3, 6, 4)
    moved = x.clone()
    moved[1] += 1.0
    difference = (linear(moved) - linear(x)).detach().abs().amax(dim=(1, 2))
    assert float(difference[1]) > 0.0
    assert float(difference[0]) == float(difference[2]) == 0.0


def test_score_is_the_spread_until_it_is_fitted_and_ranks_errors_after() -> None:
    torch.manual_seed(6)
    noise = torch.rand(400) * 0.1 + 1e-3
    x = torch.randn(400, 3)
    flux = x[:, None] * (1.0 + noise[:, None, None] * torch.randn(400, 4, 1))
    tangent = torch.eye(3) * (1.0 + noise[:, None, None, None] * torch.randn(400, 4, 1, 1))
    scores = ErrorModel()
    torch.testing.assert_close(scores(flux, tangent, x, 1e-6), relative_spread(flux, 1e-6))
    scores.fit(scores.evidence(flux, tangent, x, 1e-6), noise)
    fitted = scores(flux, tangent, x, 1e-6)
    rank = torch.stack([fitted.argsort().argsort(), noise.argsort().argsort()]).double()
    assert float(torch.corrcoef(rank)[0, 1]) > 0.8
    assert bool(torch.isnan(scores(flux * torch.nan, tangent, x, 1e-6)).all())


def test_spread_is_relative_to_the_mean_but_not_below_the_floor() -> None:
    members = torch.tensor([[[9.0, 0.0], [11.0, 0.0]], [[-0.1, 0.0], [0.1, 0.0]]])
    torch.testing.assert_close(relative_spread(members, 0.5), torch.tensor([0.1, 0.2]))
