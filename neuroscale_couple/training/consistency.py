"""Inter-scale consistency: the fine head's answers at loads without fine data, where its residual is small.

The fine head's fields obey the physics up to a residual that it knows. At random loads of the whole range it tells the
coarse head what its own coarse-graining is, so that both rungs of the ladder agree, also between and beyond the data.
"""

from __future__ import annotations

import numpy as np
import torch

from neuroscale_couple.operator.neuroscale import NeuroScale
from neuroscale_couple.physics.base import CellProblem
from neuroscale_couple.training.dataset import Dataset, load_paths
from neuroscale_couple.values import F64, I64

KEPT = 0.9
"""Share of the answers that are kept, those with the smallest residuals."""
LOADS, LOADS_EXPECTED = 2, 4
"""Load states of a micro structure, drawn from the whole range and from expected loads."""
CHUNK = 32


def consistency_data(
    model: NeuroScale,
    problem: CellProblem,
    data: Dataset,
    structures: I64,
    ranges: F64,
    seed: int,
    expected: F64 | None = None,
) -> Dataset:
    """Answers of the fine head on `structures` of a data set, at some random load states each.

    structures: int64 [k], rows of data.phase; ranges: float64 [n_in, 2], of the inputs, where loads are drawn unless
    expected: float64 [m, n_in], a pool of loads, is given
    """
    rng = np.random.default_rng([seed, 1])
    if expected is None:
        states = load_paths(ranges, problem, LOADS, rng, len(structures))
    else:
        states = expected[rng.integers(len(expected), size=(LOADS_EXPECTED, len(structures)))]
    kept: list[tuple[I64, F64, F64, F64, F64]] = []
    with torch.no_grad():
        for first in range(0, len(structures), CHUNK):
            chosen = structures[first : first + CHUNK]
            phase = torch.from_numpy(data.phase[chosen]).float()
            modes = model.modes(phase)
            for state in states:
                inputs = state[first : first + CHUNK]
                outputs, tangent, score = model.fine(modes, phase, torch.from_numpy(inputs).float())
                kept.append(
                    (chosen, inputs, outputs.double().numpy(), tangent.double().numpy(), score.double().numpy())
                )
    structure, loads_, stress, stiffness, residual = (np.concatenate(column) for column in zip(*kept, strict=True))
    residual = np.where(np.isfinite(residual), residual, np.inf)
    good = np.flatnonzero(residual <= np.quantile(residual, KEPT))
    return Dataset(data.phase, structure[good], loads_[good], stress[good], stiffness[good])
