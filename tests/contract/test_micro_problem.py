"""Every micro problem keeps the contract of `physics.base`; add your own class to PROBLEMS."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from neuroscale_couple.config.schema import Fine, Microstructure, Problem
from neuroscale_couple.errors import MicrostructureError
from neuroscale_couple.fine import make_fine_solver
from neuroscale_couple.physics import make_problem
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.physics.microstructure import generate
from neuroscale_couple.values import F64, U8, Points

PROBLEMS = {
    "composite": {"name": "composite"},
    "composite, fourier": {"name": "composite", "scheme": "fourier"},
    "composite, by path": {"name": "neuroscale_couple.physics.composite:Composite"},
    "conduction": {"name": "conduction"},
    "conduction, fourier": {"name": "conduction", "scheme": "fourier"},
}
GRID, N = 12, 5


@pytest.fixture(params=PROBLEMS, scope="module")
def problem(request: pytest.FixtureRequest) -> CellProblem:
    made = make_problem(Problem(grid=GRID, **PROBLEMS[request.param]))
    assert isinstance(made, CellProblem)
    return made


@pytest.fixture(scope="module")
def phase(tmp_path_factory: pytest.TempPathFactory) -> U8:
    return generate(
        Microstructure(kind="blobs", volume_fraction=(0.2, 0.5)), np.arange(N), GRID, tmp_path_factory.getbasetemp()
    )


def inputs_of(problem: CellProblem, seed: int = 0) -> F64:
    """Random inputs of a usual size: strains of a per cent, gradients of 1, temperatures near 300."""
    size = {"strain": 0.01, "gradient": 1.0}
    values = np.random.default_rng(seed).standard_normal((N, problem.inputs.size))
    for field in problem.inputs.fields:
        columns = problem.inputs.slice_of(field.name)
        values[:, columns] = (
            300.0 + values[:, columns] if field.name == "temperature" else size[field.name] * values[:, columns]
        )
    return np.asarray(values)


def fields_of(problem: CellProblem, inputs: F64, grid: tuple[int, int]) -> torch.Tensor:
    """A random compatible total gradient field of the right mean."""
    generator = torch.Generator().manual_seed(1)
    c = problem.to_grid.shape[0]
    noise = torch.randn(len(inputs), c, *grid, dtype=torch.float64, generator=generator)
    fluctuation = problem.green(noise)
    mean = torch.from_numpy(inputs[:, problem.driving]) @ problem.to_grid.T
    size = mean.abs().max() / fluctuation.abs().max().clamp_min(1e-300)
    return mean[:, :, None, None] + 0.3 * size * fluctuation


def share_fields(problem: CellProblem, phase: U8) -> torch.Tensor:
    return torch.from_numpy(phase).to(torch.float64)


def solution(problem: CellProblem, phase: U8, inputs: F64) -> tuple[Any, torch.Tensor]:
    """Fine answer and the total gradient field it belongs to."""
    solver: Any = make_fine_solver(Fine(tolerance=1e-10, device="cpu"), problem)
    solver.attach(Points(np.arange(N), np.zeros((N, 2)), np.ones(N), {"phase": phase}))
    given = torch.from_numpy(inputs)
    mean = given[:, problem.driving] @ problem.to_grid.T
    field = solver.core.solve(share_fields(problem, phase), mean, given[:, problem.condition], None).field
    return solver.solve(np.arange(N), inputs), field


def test_the_signature_is_plain_json_and_names_what_matters(problem: CellProblem) -> None:
    assert json.loads(json.dumps(problem.signature)) == problem.signature
    assert problem.signature["name"] == problem.name
    again = make_problem(Problem(grid=GRID, **{"name": problem.name, "scheme": problem.signature["scheme"]}))
    assert again.signature == problem.signature


def test_driving_and_condition_columns_make_up_the_inputs(problem: CellProblem) -> None:
    columns = [*range(problem.inputs.size)]
    assert columns[problem.driving] + columns[problem.condition] == columns
    assert problem.to_grid.shape[1] == len(columns[problem.driving]) == problem.outputs.size
    assert problem.output_floor() > 0.0


def test_scales_halve_down_to_one_value_per_point(problem: CellProblem) -> None:
    assert problem.scales == ((12, 12), (6, 6), (3, 3), (1, 1))
    assert problem.scales[0] == problem.grid


def test_coarse_graining_keeps_the_mean_composes_and_passes_gradients(problem: CellProblem) -> None:
    field = torch.randn(N, 2, 3, *problem.grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for source in range(len(problem.scales)):
        for target in range(source, len(problem.scales)):
            fine = problem.coarsen(field, 0, source)
            coarse = problem.coarsen(fine, source, target)
            assert coarse.shape[-2:] == problem.scales[target]
            torch.testing.assert_close(coarse, problem.coarsen(field, 0, target), rtol=0, atol=1e-14)
            torch.testing.assert_close(coarse.mean(dim=(-2, -1)), field.mean(dim=(-2, -1)), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match=r"field of scale 1 has grid \(12, 12\), expected \(6, 6\)"):
        problem.coarsen(field, 1, 2)
    with pytest.raises(ValueError, match="scale 0 is not coarser than scale 1"):
        problem.coarsen(problem.coarsen(field, 0, 1), 1, 0)
    grad = field.clone().requires_grad_(True)
    problem.coarsen(grad, 0, 2).sum().backward()
    torch.testing.assert_close(grad.grad, torch.full_like(field, 1 / 16), rtol=0, atol=1e-15)


def test_the_residual_vanishes_at_the_solution_alone(problem: CellProblem, phase: U8) -> None:
    inputs = inputs_of(problem)
    _, field = solution(problem, phase, inputs)
    given, share = torch.from_numpy(inputs), share_fields(problem, phase)
    at = problem.residual(field, share, given, 0).abs().amax(dim=(1, 2, 3))
    off = problem.residual(fields_of(problem, inputs, problem.grid), share, given, 0).abs().amax(dim=(1, 2, 3))
    assert (at < 1e-8 * off).all()


def test_the_residual_exists_at_every_scale_and_vanishes_for_one_value_per_point(
    problem: CellProblem, phase: U8
) -> None:
    inputs = inputs_of(problem)
    field = fields_of(problem, inputs, problem.grid)
    share = share_fields(problem, phase)
    for scale, grid in enumerate(problem.scales):
        residual = problem.residual(
            problem.coarsen(field, 0, scale), problem.coarsen(share, 0, scale), torch.from_numpy(inputs), scale
        )
        assert residual.shape == (N, problem.to_grid.shape[0], *grid)
        assert bool(residual.abs().max() > 0.0) is (scale < len(problem.scales) - 1)
    with pytest.raises(ValueError, match=r"field of scale 1 has grid \(12, 12\), expected \(6, 6\)"):
        problem.residual(field, share, torch.from_numpy(inputs), 1)


def test_conserved_mean_gradient_is_the_input_and_mean_flux_the_output(problem: CellProblem, phase: U8) -> None:
    inputs = inputs_of(problem)
    answer, field = solution(problem, phase, inputs)
    given, share = torch.from_numpy(inputs), share_fields(problem, phase)
    kept = problem.conserved(field, share, given, 0)
    c = problem.to_grid.shape[0]
    assert kept.shape == (N, 2 * c + 1)
    np.testing.assert_allclose(kept[:, :c], inputs[:, problem.driving] @ problem.to_grid.numpy().T, atol=1e-15)
    np.testing.assert_allclose(
        kept[:, c : 2 * c].numpy() @ problem.to_grid.numpy(), answer.outputs, rtol=1e-8, atol=1e-9
    )
    np.testing.assert_allclose(problem.outputs_of(field, share, given), answer.outputs, rtol=1e-8, atol=1e-9)
    assert (kept[:, -1] > 0.0).all()


def test_no_compatible_field_has_less_energy_than_the_solution(problem: CellProblem, phase: U8) -> None:
    inputs = inputs_of(problem)
    _, field = solution(problem, phase, inputs)
    given, share = torch.from_numpy(inputs), share_fields(problem, phase)
    mean = field.mean(dim=(-2, -1), keepdim=True)
    best = problem.conserved(field, share, given, 0)[:, -1]
    for step in (-0.1, 0.1):
        other = field + step * (fields_of(problem, inputs, problem.grid) - mean)
        assert (problem.conserved(other, share, given, 0)[:, -1] > best).all()


def test_answers_keep_their_bounds(problem: CellProblem, phase: U8) -> None:
    inputs = inputs_of(problem)
    answer, _ = solution(problem, phase, inputs)
    energy = problem.effective_energy(inputs, answer.outputs)
    lower, upper = problem.bounds(inputs, phase)
    assert ((lower <= energy) & (energy <= upper)).all()
    low, high = problem.tangent_bounds(inputs, phase)
    block = answer.tangent[:, :, problem.driving]
    assert (np.linalg.eigvalsh(block - low) > 0.0).all() and (np.linalg.eigvalsh(high - block) > 0.0).all()
    share = phase.mean(axis=(1, 2))[:, None, None]
    for got, again in zip(
        (lower, upper, low, high), (*problem.bounds(inputs, share), *problem.tangent_bounds(inputs, share)), strict=True
    ):
        np.testing.assert_allclose(got, again, rtol=1e-12)


def test_parameters_that_cannot_be_used_are_refused(problem: CellProblem, phase: U8) -> None:
    problem.check_parameters({"phase": phase})
    with pytest.raises(MicrostructureError, match=r"micro structure 0 is not two-phase: it holds 3 values \(0, 1, 2\)"):
        problem.check_parameters({"phase": phase + phase * (np.arange(GRID) > 5)})
    with pytest.raises(MicrostructureError, match="no parameter 'phase'"):
        problem.check_parameters({})
