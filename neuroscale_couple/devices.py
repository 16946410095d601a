"""Which device torch computes on: the GPU of this process's place on its node, or the CPU."""

from __future__ import annotations

import os

import torch

from neuroscale_couple.errors import ConfigError

_LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU of the node-local rank where there is one, else the CPU. Raises: ConfigError."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ConfigError(f"fine.device: {name!r} is unknown; use auto, cpu or cuda")
    if not torch.cuda.is_available():
        raise ConfigError("fine.device: cuda was asked for, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda", _local_rank() % torch.cuda.device_count())


def _local_rank() -> int:
    """Rank among the processes of this node, as the launcher tells it; 0 without one."""
    return next((int(os.environ[name]) for name in _LOCAL_RANK_VARIABLES if name in os.environ), 0)
