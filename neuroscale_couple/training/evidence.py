"""What a card says of a model: calibration pairs, metrics and the domain it was trained on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from neuroscale_couple.operator.neuroscale import NeuroScale
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.training.dataset import Dataset
from neuroscale_couple.values import F64, I64, relative_error

PAIRS = 4000
"""Calibration pairs of the coarse rung at most."""
CHUNK = 32
HUGE = 1e30
"""Stands for an error that is not finite, which JSON cannot say."""
DISTANCE_SLACK = 1.02


def answers(model: NeuroScale, data: Dataset, rows: I64, fine: bool) -> tuple[F64, F64]:
    """Outputs float64 [r, d] and scores float64 [r] of one rung for some samples."""
    order = rows[np.argsort(data.structure[rows], kind="stable")]
    outputs = np.empty((len(data), data.outputs.shape[1]))
    score = np.empty(len(data))
    structures = np.unique(data.structure[order])
    with torch.no_grad():
        for first in range(0, len(structures), CHUNK):
            chosen = structures[first : first + CHUNK]
            low, high = np.searchsorted(data.structure[order], [chosen[0], chosen[-1] + 1])
            part = order[low:high]
            at = torch.from_numpy(np.searchsorted(chosen, data.structure[part]))
            phase = torch.from_numpy(data.phase[chosen]).float()
            x = torch.from_numpy(data.inputs[part]).float()
            got = _fine(model, phase, at, x) if fine else _coarse(model, phase, at, x)
            outputs[part], score[part] = got[0].double().numpy(), got[1].double().numpy()
    return outputs[rows], score[rows]


def fit_score(model: NeuroScale, held: Dataset, floor: float) -> None:
    """Fit the error model of the coarse rung to errors on held-out micro structures."""
    rows = np.arange(len(held), dtype=np.int64)
    outputs, _ = answers(model, held, rows, False)
    error = relative_error(outputs, held.outputs, floor)
    phase, structure = torch.from_numpy(held.phase), torch.from_numpy(held.structure)
    with torch.no_grad():
        encoded = [model.encode(part.float()) for part in phase.split(CHUNK)]
        base, code = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        evidence = model.evidence(base[structure], code[structure], torch.from_numpy(held.inputs).float())
    good = torch.isfinite(evidence).all(dim=1) & torch.from_numpy(np.isfinite(error))
    model.error_model.fit(evidence[good], torch.from_numpy(error)[good])


def _coarse(
    model: NeuroScale, phase: torch.Tensor, at: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    base, code = model.encode(phase)
    outputs, _, score = model.coarse(base[at], code[at], x)
    return outputs, score


def _fine(
    model: NeuroScale, phase: torch.Tensor, at: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    modes = model.modes(phase)
    parts = [model.fine(modes[i], phase[i], v) for i, v in zip(at.split(CHUNK), x.split(CHUNK), strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[2] for p in parts])


def calibrate(
    model: NeuroScale, held: Dataset, floor: float, fine_pairs: int, rng: np.random.Generator
) -> tuple[dict[str, Calibration], dict[str, float]]:
    """Pairs (score, error) of both rungs on held-out structures, and their quantiles.

    fine_pairs: pairs of the fine rung at most, which cost about a millisecond each
    """
    calibration, metrics = {}, {}
    for rung, cap in (("surrogate_coarse", PAIRS), ("surrogate_fine", fine_pairs)):
        rows = np.sort(rng.permutation(len(held))[:cap])
        outputs, score = answers(model, held, rows, rung == "surrogate_fine")
        error = relative_error(outputs, held.outputs[rows], floor)
        error = np.where(np.isfinite(error), error, HUGE)
        known = np.isfinite(score)
        calibration[rung] = Calibration(score=_short(score[known]), error=_short(error[known]))
        for name, q in (("p50", 0.5), ("p95", 0.95), ("max", 1.0)):
            metrics[f"{rung}.{name}"] = float(f"{np.quantile(error, q):.4g}")
    return calibration, metrics


def _short(values: F64) -> list[float]:
    """Six digits are plenty, and keep the card small."""
    return [float(f"{v:.6g}") for v in values]


def describe_domain(inputs: F64, ranges: F64, phase: Any) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """`input_range` and `domain` of a card: the box of loads, the Mahalanobis ellipsoid around them, inclusion shares.

    inputs: float64 [m, n_in] training loads; ranges: float64 [n_in, 2] the box they were drawn from
    """
    mean = inputs.mean(axis=0)
    spread = np.maximum(inputs.std(axis=0), 1e-12 * np.abs(ranges).max())
    scaled = (inputs - mean) / spread
    covariance = scaled.T @ scaled / len(inputs) + 1e-3 * np.eye(len(mean))
    inverse = np.linalg.inv(covariance) / np.outer(spread, spread)
    distance = np.sqrt(np.einsum("ni,ij,nj->n", inputs - mean, inverse, inputs - mean).max())
    share = np.asarray(phase, dtype=np.float64).mean(axis=(1, 2))
    domain = {
        "inputs_mean": mean.tolist(),
        "inputs_cov_inv": inverse.tolist(),
        "inputs_max_distance": float(distance) * DISTANCE_SLACK,
        "phase_mean_range": [float(share.min()), float(share.max())],
    }
    return [(float(low), float(high)) for low, high in ranges], domain


def make_card(
    problem: CellProblem,
    data: Dataset,
    loads: tuple[F64, F64],
    evidence: tuple[dict[str, Calibration], dict[str, float]],
    parent: str | None,
) -> Card:
    """The card of a trained model; loads: inputs trained on, float64 [m, n_in], and their ranges [n_in, 2]."""
    input_range, domain = describe_domain(*loads, data.phase)
    return Card(
        problem=problem.signature,
        input_range=input_range,
        output_floor=problem.output_floor(),
        domain=domain,
        calibration=evidence[0],
        metrics=evidence[1],
        versions=versions(),
        data_sha256=data.sha256,
        parent=parent,
    )


def versions() -> dict[str, str]:
    """Versions that a card names."""
    return {"neuroscale_couple": _own_version(), "torch": torch.__version__, "numpy": np.__version__}


def _own_version() -> str:
    try:
        return version("neuroscale-couple")
    except PackageNotFoundError:
        return "from source"
