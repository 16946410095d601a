"""Trains the operator: data, inter-scale consistency, and the energy of the fine head's fields."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuroscale_couple.operator.neuroscale import NeuroScale
from neuroscale_couple.physics.base import CellLaw
from neuroscale_couple.training.dataset import Dataset
from neuroscale_couple.training.losses import data_loss, relative_energy
from neuroscale_couple.training.model import features_of, in_parts

TANGENT_WEIGHT = 0.3
BATCH = 64
"""Micro structures per step."""
LOADS = 12
"""Load states of a micro structure per step, at most."""
PYRAMID = 0.1
"""Share of the budget in which the pyramid is trained too."""
DIVERSITY = 0.5
"""Members weigh each structure between 1 - d and 1 + d, so that they differ where data are thin."""


@dataclass
class Budget:
    """When training ends: after some steps or, if given, some seconds, whichever is first."""

    steps: int
    seconds: float | None = None

    def __post_init__(self) -> None:
        self.start = time.perf_counter()

    def fraction(self, step: int) -> float:
        """Share of the budget that is used, 0 .. 1."""
        if step >= self.steps or (self.seconds is not None and self.seconds <= 0.0):
            return 1.0
        used = step / self.steps
        if self.seconds is not None:
            used = max(used, (time.perf_counter() - self.start) / self.seconds)
        return min(used, 1.0)


class Table:
    """Training samples as float32 tensors, by micro structure: features once, samples padded to the same number.

    rows: int64 [s, l] samples of each structure (repeated where it has fewer than the most)
    """

    def __init__(self, model: NeuroScale, data: Dataset) -> None:
        self.forms, self.scalars, self.image = features_of(model, torch.from_numpy(data.phase))
        self.descriptors: Tensor | None = None
        self.inputs = torch.from_numpy(data.inputs).float()
        self.outputs = torch.from_numpy(data.outputs).float()
        d = data.outputs.shape[1]
        self.tangent = torch.from_numpy(data.tangent[:, :, :d]).float()
        order = np.argsort(data.structure, kind="stable")
        count = np.bincount(data.structure, minlength=len(data.phase))
        start = np.cumsum(count) - count
        used = np.flatnonzero(count)
        column = np.arange(count.max())[None] % count[used, None]
        self.rows = torch.from_numpy(order[start[used, None] + column])
        self.used = torch.from_numpy(used)

    def __len__(self) -> int:
        return len(self.used)

    def freeze_pyramid(self, model: NeuroScale) -> None:
        """Compute the pyramid's descriptors once; its weights then stay as they are."""
        parts = in_parts(len(self.image), lambda part: (model.describe(self.image[part].float()),))
        self.descriptors = parts[0]

    def encode(self, model: NeuroScale, structure: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the coarse head for some structures, with gradients. structure: int64 [m], rows."""
        if self.descriptors is None:
            descriptors = model.describe(self.image[structure].float())
        else:
            descriptors = self.descriptors[structure]
        base, code = model.parameters_of(self.forms[structure], self.scalars[structure], descriptors)
        return base, code


class CoarseTrainer:
    """Trains the encoder and the coarse head, all members at once; resumable.

    checkpoint: file for weights and optimiser state, or None; identity: of data and settings, a checkpoint of others is
    not gone on from
    """

    def __init__(
        self,
        model: NeuroScale,
        table: Table,
        seed: int,
        rate: float,
        checkpoint: Path | None = None,
        identity: str = "",
    ) -> None:
        self.model, self.table, self.checkpoint, self.identity = model, table, checkpoint, identity
        self.generator = torch.Generator().manual_seed(seed)
        self.rate = rate
        frozen = ("fine_head",) if table.descriptors is None else ("fine_head", "pyramid")
        parameters = [p for n, p in model.named_parameters() if not n.startswith(frozen)]
        self.optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
        self.step = 0
        m = model.coarse_head.members
        uniform = torch.rand(m, len(table), generator=self.generator)
        self.weight = 1.0 + DIVERSITY * (2.0 * uniform - 1.0)

    def run(self, budget: Budget, tick: Callable[[float], None] | None = None) -> None:
        """Train until the budget is used up; tick(share of the budget) after each pass over the data.

        The pyramid is trained in the first `PYRAMID` of the budget, then it is frozen: steps cost a quarter after that.
        """
        self._resume()
        saved = time.perf_counter()
        while budget.fraction(self.step) < 1.0:
            if self.table.descriptors is None and budget.fraction(self.step) >= PYRAMID:
                self.table.freeze_pyramid(self.model)
            order = torch.randperm(len(self.table), generator=self.generator)
            for chosen in order.split(min(BATCH, len(order))):
                share = budget.fraction(self.step)
                if share >= 1.0:
                    break
                self._step(chosen, share)
            if tick is not None:
                tick(budget.fraction(self.step))
            if self.checkpoint is not None and time.perf_counter() - saved > 20.0:
                self._save()
                saved = time.perf_counter()

    def _step(self, chosen: Tensor, share: float) -> None:
        warm = min(1.0, (self.step + 1) / 20.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-3 * self.rate
        loss = self._loss(chosen)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        self.step += 1

    def _loss(self, chosen: Tensor) -> Tensor:
        table, model = self.table, self.model
        structure, rows = table.used[chosen], table.rows[chosen]
        if rows.shape[1] > LOADS:
            columns = torch.randint(rows.shape[1], (len(chosen), LOADS), generator=self.generator)
            rows = torch.gather(rows, 1, columns)
        base, code = table.encode(model, structure)
        flux, tangent = model.members(base, code, table.inputs[rows])
        flux = torch.matmul(flux, model.to_grid) * model.flux_scale
        tangent = torch.matmul(model.to_grid.t(), torch.matmul(tangent, model.to_grid))
        tangent = tangent * (model.flux_scale / model.load_scale)
        loss = data_loss(flux, tangent, table.outputs[rows], table.tangent[rows], model.floor, TANGENT_WEIGHT)
        weight = self.weight[:, chosen].t()[:, None]
        return torch.mean(loss * weight) * model.coarse_head.members

    def _save(self) -> None:
        assert self.checkpoint is not None
        tensors = {f"model.{k}": v.detach().contiguous() for k, v in self.model.state_dict().items()}
        for i, state in enumerate(self.optimiser.state_dict()["state"].values()):
            tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
        temporary = self.checkpoint.with_name(self.checkpoint.name + ".tmp")
        save_file(tensors, temporary, metadata={"state": json.dumps({"step": self.step, "identity": self.identity})})
        os.replace(temporary, self.checkpoint)

    def _resume(self) -> None:
        """Continue from the checkpoint if it fits; a damaged one or one of other data is left alone."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
            if state["identity"] != self.identity:
                return
            tensors = load_file(self.checkpoint)
            self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
            return
        known = self.optimiser.state_dict()
        known["state"] = _optimiser_state(tensors)
        self.optimiser.load_state_dict(known)
        self.step = int(state["step"])


def _optimiser_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    return state


def train_fine_head(model: NeuroScale, data: Dataset, budget: Budget, seed: int, batch: int = 16) -> None:
    """Train decoder and blending of the fine head by the energy of their fields; no field data are needed.

    The energy is taken relative to the work of the fine answer, so it is a pure number.
    """
    law = cast(CellLaw, model.fine_head.law)
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.fine_head.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    phase, inputs = torch.from_numpy(data.phase), torch.from_numpy(data.inputs).float()
    structure, outputs = torch.from_numpy(data.structure), torch.from_numpy(data.outputs).float()
    step = 0
    while (share := budget.fraction(step)) < 1.0:
        rows = torch.randint(len(data), (batch,), generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (0.5 + 0.5 * math.cos(math.pi * share))
        images, x = phase[structure[rows]].float(), inputs[rows]
        condition = x[:, model.driving :]
        field = model.fine_head.field(model.modes(images), model.normalise(x)[0], model.load_scale)
        energy = law.energy(field, images, condition).mean(dim=(1, 2))
        work = torch.sum(x[:, : model.driving] * outputs[rows], dim=1)
        loss = relative_energy(energy, work)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
