"""One function per kernel, the same on NumPy arrays and torch tensors, compiled or reference."""

from neuroscale_couple.kernels.admissible import admissible
from neuroscale_couple.kernels.backend import has_compiled, has_cuda
from neuroscale_couple.kernels.coarsen_cells import CellMap, coarsen_cells, refine_cells
from neuroscale_couple.kernels.coarsen_pyramid import Moments, coarsen_moments, coarsen_pyramid
from neuroscale_couple.kernels.conserve import Balance, Conserved, Plan, combine_sums, conserve
from neuroscale_couple.kernels.gate_select import gate_select
from neuroscale_couple.kernels.meter import seconds_spent

__all__ = [
    "Balance",
    "CellMap",
    "Conserved",
    "Moments",
    "Plan",
    "admissible",
    "coarsen_cells",
    "coarsen_moments",
    "coarsen_pyramid",
    "combine_sums",
    "conserve",
    "gate_select",
    "has_compiled",
    "has_cuda",
    "refine_cells",
    "seconds_spent",
]
