r"""Restores balances over all points by the smallest change, weighted with each answer's variance.

For each output column with a prescribed total B, over all points and over groups of them:

    minimise  sum_i d_i^2 / v_i   subject to  sum_i V_i (y_i + d_i) = B,   lower <= y_i + d_i <= upper
    =>  d_i = V_i v_i (B - sum_j V_j y_j) / sum_j V_j^2 v_j   without bounds

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

    The total `OUTPUT` is over all points, `OUTPUT@GROUP` over those of a group; points of groups with totals of their
    own meet these, and all others make up the rest of the whole.
    The tangent is left as it is: the change couples all points, the macro solver's tangent is local.

    defect: what is left of each balance after the last `apply`, by total, relative to sum |V y| + |total|
    change: largest change of the last `apply` in units of the answer's estimated error, by total
    """

    def __init__(
        self, balances: tuple[schema.Conserve, ...], problem: MicroProblem, comm: Any = None,
        groups: tuple[schema.Group, ...] = (),
    ) -> None:  # fmt: skip
        columns = problem.outputs.columns
        for balance in balances:
            if balance.output not in columns:
                raise ConfigError(f"correction.conserve: unknown output {balance.output!r}; one of {list(columns)}")
            if balance.lower is not None and balance.upper is not None and not balance.lower < balance.upper:
                raise ConfigError(
                    f"correction.conserve: the bounds of {balance.output!r} are {balance.lower:g} and "
                    f"{balance.upper:g}; lower must be below upper"
                )
        self._columns = {balance.output: columns.index(balance.output) for balance in balances}
        self._groups = {group.name: number for number, group in enumerate(groups)}
        if len(self._groups) < len(groups):
            raise ConfigError(f"correction.groups: a name is there twice in {[group.name for group in groups]}")
        self._boxes = [np.asarray(group.box, dtype=np.float64) for group in groups]
        self._limits = np.tile([[-np.inf], [np.inf]], (1, len(columns)))
        for balance in balances:
            sides = (balance.lower, balance.upper)
            self._limits[:, columns.index(balance.output)] = [
                free if side is None else side for side, free in zip(sides, (-np.inf, np.inf), strict=True)
            ]
        self._bounds: tuple[F64, F64] | None = None
        self._floor = float(problem.output_floor())
        self._comm = comm
        self._volumes: F64 = np.zeros(0)
        self._plan = Plan.of(0)
        self._said: set[tuple[str, str]] = set()
        self.defect: dict[str, float] = {}
        self.change: dict[str, float] = {}

    def attach(self, points: Points) -> None:
        """Keep the volumes of this rank's points, and their groups. Raises: ConfigError."""
        self._volumes = np.ascontiguousarray(points.volumes, dtype=np.float64)
        rest = len(self._boxes)
        number = np.full(len(points), rest, dtype=np.int64)
        for group, box in reversed(list(enumerate(self._boxes))):
            if len(points) and box.shape != (points.coordinates.shape[1], 2):
                raise ConfigError(
                    f"correction.groups[{group}].box: got {len(box)} ranges, expected {points.coordinates.shape[1]}, "
                    "one for each coordinate of the points"
                )
            inside = ((points.coordinates >= box[:, 0]) & (points.coordinates <= box[:, 1])).all(axis=1)
            number[inside] = group
        self._plan = Plan.of(len(points), number, rest + 1) if rest else Plan.of(len(points))
        self._bounds = None
        if np.isfinite(self._limits).any():
            lower, upper = (np.tile(limit, (len(points), 1)) for limit in self._limits)
            self._bounds = lower, upper

    def apply(self, batch: Batch, outputs: F64, tangent: F64, error: F64, source: U8) -> None:
        """Restore the balances whose totals the batch carries. Collective: yes."""
        wanted = {name: name.partition("@")[::2] for name in batch.totals if name.partition("@")[0] in self._columns}
        self.defect, self.change = {}, {}
        if not wanted:
            return
        names = [name for name in self._columns if any(column == name for column, _ in wanted.values())]
        totals, whole = np.full((len(self._boxes) + 1, len(names)), np.nan), np.full(len(names), np.nan)
        for name, (column, group) in wanted.items():
            if group and group not in self._groups:
                raise ConfigError(f"unknown group in the total {name!r}; correction.groups has {list(self._groups)}")
            row = totals[self._groups[group]] if group else whole
            row[names.index(column)] = float(batch.totals[name])
        at = np.array([self._columns[name] for name in names], dtype=np.int64)
        variance = self._variance(outputs, error, source)
        balance = Balance(self._plan, outputs, at, self._volumes, variance, *(self._bounds or (None, None)))
        grouped = bool(self._boxes)
        done = conserve(balance, totals if grouped else whole[None], whole if grouped else None, self._combine)
        rest = np.isnan(totals)
        for name, (column, group) in wanted.items():
            k = names.index(column)
            segment: Any = self._groups[group] if group else -1
            size = done.size[segment, k] if group else done.size[:, k].sum()
            total, defect = float(batch.totals[name]), float(done.defect[segment, k])
            self.defect[name] = float(abs(defect) / max(size + abs(total), np.finfo(float).tiny))
            self.change[name] = float(done.change[segment, k] if group else done.change[rest[:, k], k].max())
            self._warn(batch, name, total, defect)

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
                "counts as exact or is at a bound; check the total, the volumes and the bounds",
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
