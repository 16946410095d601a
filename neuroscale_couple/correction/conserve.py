r"""Restores balances over all points by the smallest change, weighted with each answer's variance.

For each output column with a prescribed total B:

    minimise  sum_i d_i^2 / v_i   subject to  sum_i V_i (y_i + d_i) = B
    =>  d_i = V_i v_i (B - sum_j V_j y_j) / sum_j V_j^2 v_j

V_i is the volume of a point and v_i = (e_i max(|y_i|, floor))^2 the variance of its answer, from its estimated
relative error e_i. Fine answers have v = 0 and stay as they are to the bit.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.correction.base import Correction
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.kernels import Balance, Plan, combine_sums, conserve
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.values import F64, U8, Batch, Points

LARGE = 5.0
"""A change of more than this many estimated errors is worth a warning."""
ROUND_OFF = 1e-12

log = logging.getLogger("neuroscale_couple.correction")


class Conserve(Correction):
    """Restores `sum volume * output = total` for the configured output columns over the points of all ranks.

    The tangent is left as it is: the change couples all points, the macro solver's tangent is local.

    defect: what is left of each balance after the last `apply`, by column, relative to sum |V y| + |total|
    change: largest change of the last `apply` in units of the answer's estimated error, by column
    """

    def __init__(self, balances: tuple[schema.Conserve, ...], problem: MicroProblem, comm: Any = None) -> None:
        columns = problem.outputs.columns
        for balance in balances:
            if balance.output not in columns:
                raise ConfigError(f"correction.conserve: unknown output {balance.output!r}; one of {list(columns)}")
        self._columns = {balance.output: columns.index(balance.output) for balance in balances}
        self._floor = float(problem.output_floor())
        self._comm = comm
        self._volumes: F64 = np.zeros(0)
        self._plan = Plan.of(0)
        self._said: set[tuple[str, str]] = set()
        self.defect: dict[str, float] = {}
        self.change: dict[str, float] = {}

    def attach(self, points: Points) -> None:
        """Keep the volumes of this rank's points."""
        self._volumes = np.ascontiguousarray(points.volumes, dtype=np.float64)
        self._plan = Plan.of(len(points))

    def apply(self, batch: Batch, outputs: F64, tangent: F64, error: F64, source: U8) -> None:
        """Restore the balances whose totals the batch carries. Collective: yes."""
        names = [name for name in self._columns if name in batch.totals]
        self.defect, self.change = {}, {}
        if not names:
            return
        at = np.array([self._columns[name] for name in names])
        totals = np.array([float(batch.totals[name]) for name in names])
        variance = self._variance(outputs, error, source)
        balance = Balance(self._plan, outputs, at.astype(np.int64), self._volumes, variance)
        done = conserve(balance, totals[None], combine=self._combine)
        defect, change = done.defect[0], done.change[0]
        relative = np.abs(defect) / np.maximum(done.size[0] + np.abs(totals), np.finfo(float).tiny)
        for k, name in enumerate(names):
            self.defect[name], self.change[name] = float(relative[k]), float(change[k])
            self._warn(batch, name, totals[k], defect[k])

    def _variance(self, outputs: F64, error: F64, source: U8) -> F64:
        """v: float64 [n]; an estimate that is not finite counts as 100 %."""
        size = np.maximum(np.sqrt(np.einsum("ni,ni->n", outputs, outputs)), self._floor)
        relative = np.where(np.isfinite(error), error, 1.0)
        relative[source == Source.FINE] = 0.0
        size *= relative
        size *= size
        return np.asarray(size)

    def _combine(self, sums: F64) -> F64:
        """The sums over all ranks."""
        if self._comm is not None and self._comm.size > 1:
            return combine_sums(self._comm.allgather(sums))
        return sums

    def _warn(self, batch: Batch, name: str, total: float, residual: float) -> None:
        where = f"window {batch.window}, iteration {batch.iteration}: the balance of {name!r}"
        if self.defect[name] > ROUND_OFF:
            self._once(
                name, "defect",
                f"{where} misses its total {total:g} by {residual:g} and cannot be restored, because every answer "
                "counts as exact; check the total and the volumes",
            )  # fmt: skip
        elif self.change[name] > LARGE:
            self._once(
                name, "large",
                f"{where} is restored, but some answers change by {self.change[name]:.1f} times their estimated error; "
                f"check the total {total:g}, the volumes, or the surrogate",
            )  # fmt: skip

    def _once(self, name: str, kind: str, text: str) -> None:
        if (name, kind) not in self._said and (self._comm is None or self._comm.rank == 0):
            log.warning("%s", text)
        self._said.add((name, kind))
