"""Kriging: answers, variances and left-out answers against the textbook formulas in more digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroscale_couple.operator.kriging import Kriging, correlation

M, K = 30, 2
LONG = np.longdouble


def kriging(noise: float) -> Kriging:
    one, two = torch.ones(1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    made = Kriging(0.0 * two, torch.eye(K, dtype=torch.float64), noise * one, two, torch.tensor([0, 1]), 0.1 * two)
    return made.eval()


def matern(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r = np.sqrt(LONG(5)) * np.sqrt(((a[:, None].astype(LONG) - b[None]) ** 2).sum(axis=2))
    return (1 + r + r * r / 3) * np.exp(-r)


def solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Gauss without pivoting, for a positive definite matrix, in extended precision."""
    a, b = matrix.copy(), right.copy()
    for i in range(len(a)):
        factor = a[i + 1 :, i] / a[i, i]
        a[i + 1 :] -= factor[:, None] * a[i]
        b[i + 1 :] -= factor[:, None] * b[i]
    for i in reversed(range(len(a))):
        b[i] = (b[i] - a[i, i + 1 :] @ b[i + 1 :]) / a[i, i]
    return b


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long double has no more digits here")
def test_small_variances_are_not_drowned_by_round_off() -> None:
    """Long lengths of correlation: variances of 1e-9 of the prior's decide which answers are accepted."""
    rng = np.random.default_rng(0)
    basis, asked, noise = 0.1 * rng.random((M, K)), 0.1 * rng.random((200, K)), 1e-9
    outputs = np.column_stack([np.sin(20.0 * basis[:, 0]), basis[:, 1]])
    model = kriging(noise)
    with torch.no_grad():
        given = model.condition(torch.from_numpy(basis), torch.from_numpy(outputs))
        answer, score = model.answer(torch.from_numpy(asked), given)
        got = (score / model.relative(answer, given.amplitude)).numpy() ** 2 - noise
    matrix, k = matern(basis, basis) + LONG(noise + 1e-10) * np.eye(M, dtype=LONG), matern(basis, asked)
    exact = (1 - (k * solve(matrix, k)).sum(axis=0)).astype(np.float64)
    assert np.median(exact) < 1e-7
    np.testing.assert_allclose(got, exact, atol=1e-11)


def test_left_out_answers_are_those_of_all_the_others() -> None:
    rng = np.random.default_rng(1)
    basis = torch.from_numpy(rng.random((M, K)))
    outputs = torch.column_stack([torch.sin(4.0 * basis[:, 0]), basis.sum(dim=1)])
    model, rest = kriging(1e-4), torch.arange(M) != 7
    with torch.no_grad():
        given = model.condition(basis, outputs)
        others = model.condition(basis[rest], outputs[rest])
        left, deviation = model.left_out(given)
        matrix = correlation(basis[rest], basis[rest]) + (1e-4 + 1e-10) * torch.eye(M - 1, dtype=torch.float64)
        k = correlation(basis[7:8], basis[rest])
        expected = given.mean + k @ torch.linalg.solve(matrix, outputs[rest] - given.mean)
        variance = 1.0 + 1e-4 + 1e-10 - (k @ torch.linalg.solve(matrix, k.T)).squeeze()
        size = model.relative(left, given.amplitude)[7]
        near, _ = model.answer(basis[7:8], others)
    torch.testing.assert_close(left[7], expected[0])
    torch.testing.assert_close(deviation[7], variance.sqrt() * size)
    torch.testing.assert_close(near[0], left[7], rtol=0.05, atol=0.05)  # their means differ a little
