"""The operator as TorchScript."""

from __future__ import annotations

import io
from typing import Any

import torch

from neuroscale_couple.operator.neuroscale import NeuroScale


def to_torchscript(model: NeuroScale) -> Any:
    """The scripted operator; it shares its weights with `model`, so it can be made before they are trained."""
    return torch.jit.script(model)


def archive(scripted: Any, extra: dict[str, str]) -> bytes:
    """TorchScript archive; extra: text files inside it, by name."""
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={name: text.encode() for name, text in extra.items()})
    return buffer.getvalue()
