"""Training: data from the fine solver, losses, and calibrated artifacts. Imported when it is used: it needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroscale_couple.training.fitting import fit, train_case

__all__ = ["fit", "train_case"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.fitting"), name)
