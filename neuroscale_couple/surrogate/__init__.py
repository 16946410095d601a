"""Surrogates: the fast answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from neuroscale_couple.physics.base import MicroProblem
    from neuroscale_couple.surrogate.base import Surrogate


def load(path: Path, problem: MicroProblem, device: str = "auto") -> Surrogate:
    """The surrogate of an artifact, checked against the micro problem.

    device: auto | cpu | cuda; auto takes the GPU of the node-local rank where there is one
    Raises: ArtifactError if the file is missing, damaged, not an artifact or made for another problem.
    """
    from neuroscale_couple.physics.opaque import OpaqueProblem

    if isinstance(problem, OpaqueProblem):
        from neuroscale_couple.surrogate.opaque import OpaqueSurrogate

        return OpaqueSurrogate(path, problem)
    from neuroscale_couple.surrogate.torchscript import TorchScriptSurrogate

    return TorchScriptSurrogate(path, problem, device)


__all__ = ["load"]
