"""One function per kernel, the same on NumPy arrays and torch tensors, compiled or reference."""

from neuroscale_couple.kernels.backend import has_compiled, has_cuda
from neuroscale_couple.kernels.coarsen_pyramid import coarsen_pyramid

__all__ = ["coarsen_pyramid", "has_compiled", "has_cuda"]
