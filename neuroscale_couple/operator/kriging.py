r"""Kriging: answers and their uncertainty from tens of samples, by their correlation with the question.

    z = (q - shift) W,   y(q) = mean + k(z) A,   k_i(z) = (1 + r + r^2/3) exp(-r),  r = sqrt(5) |z - z_i|
    v(q) = 1 - |B k(z)^T|^2 + noise

q is the question, W scales its features by their lengths of correlation, z_i are the basis points; mean, A and B come
from answers that are stored in the artifact, or from fresh ones (`condition`). B is the inverse of the Cholesky factor
of the basis' correlations: with B^T B multiplied out, round-off of the size of 1e-7 would drown small variances.
The score of an answer is its standard deviation relative to its size, max over fields of
sqrt(v sum_c a_c^2) / max(|y_f|, floor_f).
Source: Cressie 1993 (ordinary kriging); Matern 5/2 correlation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

JITTER = 1e-10
PRIOR = 10.0
"""Weight of the fitted amplitude beside fresh answers, as a number of them."""


class Given(NamedTuple):
    """What answers [M, m] at basis [M, k] say: mean [m]; weights [M, m]; whitening (B) [M, M]; amplitude [m]."""

    basis: Tensor
    answers: Tensor
    mean: Tensor
    weights: Tensor
    whitening: Tensor
    amplitude: Tensor


class Kriging(nn.Module):
    """Scriptable, float64. shift: [q]; features: [q, k]; noise: [1]; fields: int64 [m], each output column's field.

    floors: [fields]; amplitude: [m], standard deviation of the answers about their mean; the rest is a `Given`
    """

    def __init__(
        self, shift: Tensor, features: Tensor, noise: Tensor, amplitude: Tensor, fields: Tensor, floors: Tensor
    ) -> None:
        super().__init__()
        self.shift: Tensor
        self.features: Tensor
        self.noise: Tensor
        self.prior: Tensor
        self.fields: Tensor
        self.floors: Tensor
        self.basis: Tensor
        self.answers: Tensor
        self.mean: Tensor
        self.weights: Tensor
        self.whitening: Tensor
        self.amplitude: Tensor
        m, k = amplitude.shape[0], features.shape[1]
        empty = features.new_zeros
        fitted = {"shift": shift, "features": features, "noise": noise, "prior": amplitude}
        layout = {"fields": fields, "floors": floors}
        given = Given(empty((0, k)), empty((0, m)), empty(m), empty((0, m)), empty((0, 0)), amplitude)
        for name, tensor in {**fitted, **layout, **given._asdict()}.items():
            self.register_buffer(name, tensor)

    def keep(self, given: Given) -> None:
        """Answer from these from now on, also when loaded from an artifact."""
        for name, tensor in given._asdict().items():
            setattr(self, name, tensor)

    def forward(self, question: Tensor) -> tuple[Tensor, Tensor]:
        """question: float64 [n, q] -> outputs [n, m], score [n], from the stored answers."""
        return self.answer(question, self.stored())

    @torch.jit.export
    def stored(self) -> Given:
        """What the artifact brings."""
        return Given(self.basis, self.answers, self.mean, self.weights, self.whitening, self.amplitude)

    @torch.jit.export
    def place(self, question: Tensor) -> Tensor:
        """z: float64 [n, k], positions in units of the lengths of correlation."""
        return (question - self.shift) @ self.features

    @torch.jit.export
    def condition(self, question: Tensor, outputs: Tensor) -> Given:
        """What these answers say: question [M, q], outputs [M, m]."""
        return self.know(self.place(question), outputs)

    @torch.jit.export
    def extend(self, given: Given, question: Tensor, outputs: Tensor) -> Given:
        """What these answers say beside those that are known already: question [n, q], outputs [n, m]."""
        places = torch.cat([given.basis, self.place(question)])
        return self.know(places, torch.cat([given.answers, outputs]))

    @torch.jit.export
    def know(self, z: Tensor, outputs: Tensor) -> Given:
        """What the answers outputs [M, m] at the places z [M, k] say."""
        count = z.shape[0]
        eye = torch.eye(count, dtype=z.dtype)
        factor = torch.linalg.cholesky(correlation(z, z) + (self.noise + 1e-10) * eye)
        whitening = torch.linalg.solve_triangular(factor, eye, upper=False)
        total = whitening.sum(dim=1) @ whitening
        mean = (total @ outputs) / total.sum()
        residual = outputs - mean
        weights = torch.cholesky_solve(residual, factor)
        square = (residual * weights).sum(dim=0) + 10.0 * self.prior * self.prior
        return Given(z, outputs, mean, weights, whitening, (square / (count + 10.0)).sqrt())

    @torch.jit.export
    def answer(self, question: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """question: float64 [n, q] -> outputs [n, m], score [n]."""
        k = correlation(self.place(question), given.basis)
        outputs = given.mean + k @ given.weights
        variance = torch.clamp(1.0 - torch.sum((k @ given.whitening.T) ** 2, dim=1), min=0.0) + self.noise
        return outputs, variance.sqrt() * self.relative(outputs, given.amplitude)

    @torch.jit.export
    def left_out(self, given: Given) -> tuple[Tensor, Tensor]:
        """Each basis point's answer [M, m] and score [M] from all the others, in closed form.

        Source: Dubrule 1983.
        """
        spread = 1.0 / torch.sum(given.whitening**2, dim=0)
        outputs = given.mean + correlation(given.basis, given.basis) @ given.weights
        outputs = outputs + self.noise * given.weights - given.weights * spread[:, None]
        return outputs, spread.sqrt() * self.relative(outputs, given.amplitude)

    @torch.jit.export
    def relative(self, outputs: Tensor, amplitude: Tensor) -> Tensor:
        """Amplitude relative to the size of the outputs, the largest of the fields: [n]."""
        count = self.floors.shape[0]
        size = sum_by_field(outputs * outputs, self.fields, count).sqrt()
        deviation = sum_by_field((amplitude * amplitude)[None], self.fields, count).sqrt()
        return torch.amax(deviation / torch.maximum(size, self.floors), dim=1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Matern 5/2 correlation of the rows of a [n, k] with those of b [M, k]: float64 [n, M]."""
    square = torch.sum(a * a, dim=1)[:, None] + torch.sum(b * b, dim=1)[None] - 2.0 * (a @ b.T)
    r = 2.23606797749979 * torch.clamp(square, min=1e-20).sqrt()
    return (1.0 + r + r * r / 3.0) * torch.exp(-r)


def sum_by_field(values: Tensor, fields: Tensor, count: int) -> Tensor:
    """Sums of the columns of each field: values [n, m], fields int64 [m] -> [n, count]."""
    zeros = torch.zeros(values.shape[0], count, dtype=values.dtype, device=values.device)
    return zeros.index_add(1, fields, values)


def cover(z: Tensor, first: Tensor, size: Tensor, prefer: Tensor, limit: float, least: int, most: int) -> Tensor:
    """Rows int64 [M] from which all others can be answered with sqrt(v) * size <= limit: greedy pivoted Cholesky.

    z: [n, k] places; first: int64, rows taken in any case; size: [n] score of a row that nothing is known about
    prefer: [n], a row with a larger value is taken first; least, most: number of rows
    O(n most^2). Source: Foster et al. 2009 (stable Gaussian process approximation).
    """
    n = len(z)
    left = torch.ones(n, dtype=z.dtype)
    columns = torch.zeros(n, min(most, n), dtype=z.dtype)
    chosen: list[int] = []

    def take(i: int) -> None:
        j = len(chosen)
        column = correlation(z, z[i : i + 1])[:, 0] - columns[:, :j] @ columns[i, :j]
        columns[:, j] = column / left[i].clamp(min=JITTER).sqrt()
        left.sub_(columns[:, j] ** 2).clamp_(min=0.0)
        left[i] = 0.0
        chosen.append(i)

    for i in first.tolist():
        if len(chosen) < columns.shape[1]:
            take(i)
    while len(chosen) < columns.shape[1]:
        score = left.sqrt() * size
        above = score > limit
        enough = not bool(above.any())
        if (enough and len(chosen) >= least) or not bool((left > JITTER).any()):
            break
        take(int(torch.argmax(score * prefer * (1.0 if enough else above))))
    return torch.tensor(sorted(chosen), dtype=torch.int64)
