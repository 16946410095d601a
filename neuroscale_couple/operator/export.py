"""The operator as TorchScript, and its weights as tensors."""

from __future__ import annotations

import io

import torch

from neuroscale_couple.operator.neuroscale import NeuroScale


def to_torchscript(model: NeuroScale, extra: dict[str, str]) -> bytes:
    """TorchScript archive of the operator on the CPU; extra: text files inside the archive, by name."""
    was_training = model.training
    model.eval().cpu()
    scripted = torch.jit.script(model)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={name: text.encode() for name, text in extra.items()})
    model.train(was_training)
    return buffer.getvalue()
