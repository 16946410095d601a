"""Fits the surrogate of an opaque micro problem: lengths of correlation, floors, and the evidence for calibration.

Made for few samples, each of which was expensive: none is only held out. Samples come in blocks whose answers go
together: the fine answers of one window where a micro problem remembers, all of them where it does not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroscale_couple.operator.export import archive
from neuroscale_couple.operator.kriging import Kriging, correlation, cover
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate import artifact
from neuroscale_couple.training.evidence import versions
from neuroscale_couple.values import F64, I64

BASIS = 300
"""Answers that an artifact keeps at most; the work of an answer grows with their square."""
TUNE = 250
"""Samples of a block that the lengths of correlation are found from."""
STEPS = 40
"""Optimiser steps for the lengths, with a start; three times as many without."""
FLOOR_SHARE = 0.1
"""Floor of an output field whose floor is not configured: this share of its root mean square in the answers."""
OPEN = 1e300
"""A range that holds everything."""
SLACK = 1e-6
"""Round-off of an input, as a share of its size: a question that has not varied yet may vary by so much."""
RETUNE = 1.3
"""Growth of the samples after which the lengths are found again, where nothing is remembered."""
PRIOR = 0.1
"""Weight of the prior of the lengths: that they are near `USUAL` standard deviations of their feature."""
USUAL = 3.0
NOISE = (1e-9, 1e-1)
LENGTH = (0.05, 200.0)
NESTED = (10, 20, 40, 80, 160)
"""Numbers of leaders that evidence is drawn from in a block."""
FEW = (5,)
"""And in one of a window: few leaders give the large scores that later windows may need."""
DRAWN = 200
"""Pairs drawn for each of them at most."""
TUNED = 3
"""Last blocks that the lengths are found from."""
ONE_BY_ONE = 200
"""Blocks up to this size are evidence by leaving out one sample at a time; larger ones were solved in full."""
FEWEST = 10


@dataclass(frozen=True, slots=True)
class Block:
    """Fine answers that go together. question: float64 [n, q]; outputs: float64 [n, m]."""

    question: F64
    outputs: F64

    def tensors(self, most: int) -> tuple[Tensor, Tensor]:
        """Questions [n, q] and outputs [n, m] of at most so many samples, spread over the block."""
        rows = np.linspace(0, len(self.question) - 1, min(most, len(self.question))).astype(np.int64)
        return torch.from_numpy(self.question[rows]), torch.from_numpy(self.outputs[rows])


@dataclass(frozen=True, slots=True)
class Lengths:
    """Logarithms of the lengths of correlation of the standardised questions, [q], and of the noise.

    samples: that were there when they were found
    """

    length: Tensor
    noise: Tensor
    samples: int

    def text(self, scale: Tensor) -> dict[str, Any]:
        """For the card, the lengths in the units of the question; scale: [q], one over the standard deviations."""
        length = torch.where(scale > 0.0, self.length - scale.clamp(min=1e-300).log(), self.length)
        return {"length": length.tolist(), "noise": float(self.noise), "samples": self.samples}


def floors_of(problem: OpaqueProblem, outputs: F64) -> F64:
    """Floor of each output field, float64 [fields]: the configured one, or a share of its size in the answers."""
    found = []
    for field, floor in zip(problem.outputs.fields, problem.floors, strict=True):
        size = float(np.sqrt(np.mean(np.sum(outputs[:, problem.outputs.slice_of(field.name)] ** 2, axis=1))))
        found.append(floor if floor > 0.0 else max(FLOOR_SHARE * size, 1e-12))
    return np.asarray(found)


def fit(
    problem: OpaqueProblem,
    blocks: Sequence[Block],
    out: Path,
    seen: F64,
    start: Mapping[str, Any] | None = None,
    parent: str | None = None,
) -> Kriging:
    """Find the lengths, keep the answers of the last block, and write the artifact.

    blocks: in the order of time, the last ones are fitted to, all are evidence
    seen: float64 [k, 2], score and error of answers of earlier surrogates before their fine answer was known
    start: `card.domain["lengths"]` of an earlier fit
    Raises: ValueError if there are too few samples.
    """
    every, blocks = blocks, blocks[-TUNED:]
    count = sum(len(block.question) for block in blocks)
    if count < FEWEST:
        raise ValueError(f"{count} samples are too few, at least {FEWEST} are needed")
    floors = floors_of(problem, np.concatenate([block.outputs for block in blocks]))
    problem.take_floors(floors)
    question = np.concatenate([block.question for block in blocks])
    shift, scale = torch.from_numpy(question.mean(axis=0)), torch.from_numpy(_scale(question))
    lengths = _tune(problem, blocks, (shift, scale), start)
    kriging = _module(problem, blocks[-1], (shift, scale), lengths, floors)
    with torch.no_grad():
        evidence = _evidence(problem, kriging, every, seen)
        rows = basis_of(kriging, blocks[-1])
        last = blocks[-1]
        kriging.keep(kriging.condition(torch.from_numpy(last.question[rows]), torch.from_numpy(last.outputs[rows])))
    card = _card(problem, blocks, evidence, parent)
    card.domain.update({"floors": floors.tolist(), "lengths": lengths.text(scale)})
    artifact.write(out, archive(torch.jit.script(kriging), {artifact.CARD: card.model_dump_json()}))
    return kriging


def basis_of(kriging: Kriging, block: Block) -> I64:
    """Rows int64 [M] of the block that explain it best, at most `BASIS`."""
    z = kriging.place(torch.from_numpy(block.question))
    one = torch.ones(len(z), dtype=z.dtype)
    return np.asarray(cover(z, torch.zeros(0, dtype=torch.int64), one, one, 1e-4, 1, BASIS).numpy())


@torch.no_grad()
def nested_evidence(problem: OpaqueProblem, kriging: Any, block: Block, sizes: Sequence[int] = NESTED) -> F64:
    """Score and error, float64 [k, 2], of the block's samples answered from few, more and many of the others.

    kriging: a `Kriging`, or one loaded from an artifact
    """
    question, outputs = torch.from_numpy(block.question), torch.from_numpy(block.outputs)
    z = kriging.place(question)
    one = torch.ones(len(z), dtype=z.dtype)
    pairs = []
    for size in (size for size in sizes if 2 * size <= len(z)):
        rows = cover(z, torch.zeros(0, dtype=torch.int64), one, one, 0.0, size, size)
        rest = np.setdiff1d(np.arange(len(z)), rows.numpy())
        rest = rest[np.linspace(0, len(rest) - 1, min(DRAWN, len(rest))).astype(np.int64)]
        answer, score = kriging.answer(question[rest], kriging.condition(question[rows], outputs[rows]))
        pairs.append(np.column_stack([score.numpy(), problem.relative_error(answer.numpy(), block.outputs[rest])]))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2))


def _evidence(problem: OpaqueProblem, kriging: Kriging, blocks: Sequence[Block], seen: F64) -> F64:
    """Pairs for calibration: of samples left out of their block, and those that were seen in the run."""
    if not problem.remembers:
        nested = nested_evidence(problem, kriging, blocks[-1])
        return np.concatenate([nested[-len(seen) :], seen]) if len(seen) else nested
    pairs = [nested_evidence(problem, kriging, block, FEW + NESTED) for block in blocks]
    for block in (block for block in blocks if len(block.question) <= ONE_BY_ONE):
        question, outputs = torch.from_numpy(block.question), torch.from_numpy(block.outputs)
        answer, score = kriging.left_out(kriging.condition(question, outputs))
        pairs.append(np.column_stack([score.numpy(), problem.relative_error(answer.numpy(), block.outputs)]))
    return np.concatenate([*pairs, seen])


def _scale(question: F64) -> F64:
    """One over the standard deviation of each column, 0 where it does not vary beyond round-off."""
    spread = question.std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(question).max(axis=0), 1e-300)
    return np.asarray(np.where(varies, 1.0 / np.where(varies, spread, 1.0), 0.0))


def _module(
    problem: OpaqueProblem, block: Block, scaling: tuple[Tensor, Tensor], lengths: Lengths, floors: F64
) -> Kriging:
    shift, scale = scaling
    question, outputs = block.tensors(TUNE)
    z = (question - shift) * scale / lengths.length.exp()
    features = torch.diag(scale / lengths.length.exp())
    fields = [i for i, f in enumerate(problem.outputs.fields) for _ in f.components]
    amplitude = _amplitude(z, outputs - outputs.mean(dim=0), lengths.noise.exp())[1]
    noise = lengths.noise.exp()[None]
    return Kriging(shift, features, noise, amplitude, torch.tensor(fields), torch.from_numpy(floors)).eval()


def _tune(
    problem: OpaqueProblem, blocks: Sequence[Block], scaling: tuple[Tensor, Tensor], start: Mapping[str, Any] | None
) -> Lengths:
    """Lengths and noise of the highest likelihood of the blocks, started from those of an earlier fit."""
    shift, scale = scaling
    count = sum(len(block.question) for block in blocks)
    length = torch.full(shift.shape, math.log(USUAL), dtype=torch.float64)
    noise = torch.tensor(math.log(1e-5), dtype=torch.float64)
    known = start is not None and len(start["length"]) == len(length)
    if start is not None and known:
        length, noise = (torch.tensor(start[name], dtype=torch.float64) for name in ("length", "noise"))
        length = torch.where(scale > 0.0, length + scale.clamp(min=1e-300).log(), length)
        length = length.clamp(math.log(LENGTH[0]), math.log(LENGTH[1]))
        if not problem.remembers and count < RETUNE * start["samples"]:
            return Lengths(length, noise, start["samples"])
    ready = []
    for question, outputs in (block.tensors(TUNE) for block in blocks):
        spread = torch.clamp(outputs.std(dim=0), min=1e-300)
        ready.append(((question - shift) * scale, (outputs - outputs.mean(dim=0)) / spread))
    return _most_likely(ready, Lengths(length, noise, count), STEPS if known else 3 * STEPS)


def _most_likely(blocks: Sequence[tuple[Tensor, Tensor]], start: Lengths, steps: int) -> Lengths:
    """The best of so many steps of Adam on the mean negative log likelihood of the blocks and the prior."""
    length, noise = start.length.clone().requires_grad_(True), start.noise.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([length, noise], lr=0.1)
    best, kept = math.inf, start
    for _ in range(steps):
        optimiser.zero_grad()
        loss = PRIOR * ((length - math.log(USUAL)) ** 2).mean()
        for z, r in blocks:
            loss = loss + _amplitude(z / length.exp(), r, noise.exp())[0] / len(blocks)
        if loss.item() < best:
            best, kept = loss.item(), Lengths(length.detach().clone(), noise.detach().clone(), start.samples)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            length.clamp_(math.log(LENGTH[0]), math.log(LENGTH[1]))
            noise.clamp_(math.log(NOISE[0]), math.log(NOISE[1]))
    return kept


def _amplitude(z: Tensor, r: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log likelihood per value of residuals r [n, m], and each column's amplitude [m], in closed form."""
    n = len(z)
    matrix = correlation(z, z) + (noise + 1e-10) * torch.eye(n, dtype=z.dtype)
    factor = torch.linalg.cholesky(matrix)
    half = torch.linalg.solve_triangular(factor, r, upper=False)
    square = torch.clamp((half * half).sum(dim=0) / n, min=1e-30)
    return factor.diagonal().log().sum() / n + 0.5 * square.log().mean(), square.sqrt()


def _card(problem: OpaqueProblem, blocks: Sequence[Block], evidence: F64, parent: str | None) -> artifact.Card:
    question = np.concatenate([block.question for block in blocks])
    low, high = question.min(axis=0), question.max(axis=0)
    slack = np.full(len(low), OPEN)  # the score tells how far a question is from the known
    for j in np.flatnonzero(_scale(question)[: problem.inputs.size] == 0.0):  # but not in an input that did not vary
        slack[j] = SLACK * max(abs(low[j]), abs(high[j]))
    name = Source.SURROGATE_COARSE.name.lower()
    errors = evidence[:, 1] if len(evidence) else np.zeros(1)
    p50, p95 = (float(np.quantile(errors, q)) for q in (0.5, 0.95))
    digest = hashlib.sha256(b"".join(b.question.tobytes() + b.outputs.tobytes() for b in blocks))
    return artifact.Card(
        problem=problem.signature,
        input_range=[(float(a), float(b)) for a, b in zip(low - slack, high + slack, strict=True)],
        output_floor=problem.output_floor(),
        domain={},
        calibration={
            name: artifact.Calibration(score=evidence[:, 0].tolist(), error=evidence[:, 1].tolist()),
        },
        metrics={f"{name}_p50": p50, f"{name}_p95": p95, f"{name}_max": float(errors.max())},
        versions=versions(),
        data_sha256=digest.hexdigest(),
        parent=parent,
    )
