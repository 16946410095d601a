"""Micro solves that a micro problem with history needs: all fine, similarity adaptivity, learned from a cold start.

Points on a plate, each with a grain that takes up a substance by nonlinear diffusion; what a grain has taken up is
hidden in it. A front and a passing warm spot drive them, smoothly in space and time. Each method answers the same
inputs, and its outputs (uptake, conductivity) are compared with those of grains that are all solved in every window.

- `similarity`: the published algorithm of the preCICE Micro Manager's adaptivity (distances of inputs and outputs that
  fade with time, coarsening and refining constants, states copied to simulations that are switched on), written here
  from its description, over a sweep of its constants.
- `learned`: our loop without a model at the start, at several tolerances. Solves count the replays that bring a point
  up to date, and the audits.

    python benchmarks/opaque.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple import parallel
from neuroscale_couple.config import schema
from neuroscale_couple.fine import share_answers
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.gate import make_gate
from neuroscale_couple.learning import make_learner
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.values import F64, I64, Batch, FieldSpec, FineAnswer, Points

DT = 0.01
SHELLS, SUBSTEPS = 10, 4
TOLERANCES = (0.02, 0.05, 0.1)
SWEEP = ((0.5, 0.1), (0.3, 0.05), (0.2, 0.02), (0.2, 0.01), (0.2, 0.005), (0.1, 0.002))
"""Coarsening and refining constants of the similarity adaptivity."""
FADE = (0.5, 10.0)
"""Its history parameters."""
GOAL = 3.0


class Grains:
    """Concentration in shells of equal thickness, implicit Euler with the diffusivity of the last substep."""

    def __init__(self) -> None:
        edge = np.arange(SHELLS + 1) / SHELLS
        self.area = edge**2
        self.volume = (edge[1:] ** 3 - edge[:-1] ** 3) / 3.0
        self.share = self.volume / self.volume.sum()

    def start(self, n: int) -> F64:
        """State float64 [n, shells]."""
        return np.full((n, SHELLS), 0.1)

    def step(self, state: F64, inputs: F64) -> tuple[F64, F64]:
        """State and outputs (uptake, conductivity) [n, 2] after inputs (temperature, concentration) [n, 2]."""
        warm, outside = inputs[:, 0], inputs[:, 1]
        before, state = state @ self.share, state.copy()
        for _ in range(SUBSTEPS):
            self._substep(state, np.exp(3.0 * (warm - 1.0))[:, None] * (0.2 + state), outside)
        after = state @ self.share
        return state, np.column_stack([(after - before) / DT, (0.5 + after) ** 1.5 * np.sqrt(warm)])

    def _substep(self, u: F64, d: F64, outside: F64) -> None:
        """A tridiagonal solve for all grains at once, in place."""
        flow = np.zeros((len(u), SHELLS + 1))
        flow[:, 1:-1] = 0.5 * (d[:, 1:] + d[:, :-1]) * self.area[1:-1] * SHELLS
        flow[:, -1] = d[:, -1] * self.area[-1] * 2.0 * SHELLS
        k = DT / SUBSTEPS
        lower, upper = -k * flow[:, 1:-1] / self.volume[1:], -k * flow[:, 1:-1] / self.volume[:-1]
        middle = 1.0 + k * (flow[:, 1:] + flow[:, :-1]) / self.volume
        u[:, -1] += k * flow[:, -1] / self.volume[-1] * outside
        for i in range(1, SHELLS):
            factor = lower[:, i - 1] / middle[:, i - 1]
            middle[:, i] -= factor * upper[:, i - 1]
            u[:, i] -= factor * u[:, i - 1]
        u[:, -1] /= middle[:, -1]
        for i in range(SHELLS - 2, -1, -1):
            u[:, i] = (u[:, i] - upper[:, i] * u[:, i + 1]) / middle[:, i]


def plate(nx: int, ny: int, windows: int) -> tuple[Points, F64]:
    """Points, and inputs float64 [windows, n, 2] that are smooth in space and time."""
    x, y = (a.ravel() for a in np.meshgrid((np.arange(nx) + 0.5) / nx, (np.arange(ny) + 0.5) / ny))
    given = np.empty((windows, nx * ny, 2))
    for w in range(windows):
        t = (w + 1) / windows
        front = 0.5 * (1.0 + np.tanh((1.4 * t - 0.2 - x + 0.1 * np.sin(3.0 * y)) / 0.12))
        spot = np.sin(np.pi * y) * np.sin(2.0 * np.pi * t) * np.exp(-(((x - 0.5) / 0.4) ** 2))
        given[w] = np.column_stack([1.0 + 0.25 * spot + 0.1 * t, 0.1 + 0.8 * front * (1.0 - 0.3 * y * t)])
    return Points(np.arange(nx * ny), np.column_stack([x, y]), np.ones(nx * ny)), given


def all_fine(given: F64) -> F64:
    """Outputs float64 [windows, n, 2] of grains that are all solved in every window."""
    grains, outputs = Grains(), []
    state = grains.start(given.shape[1])
    for inputs in given:
        state, answer = grains.step(state, inputs)
        outputs.append(answer)
    return np.array(outputs)


def similarity(given: F64, coarsen: float, refine: float, fade: float) -> tuple[F64, int]:
    """Outputs and micro solves of similarity adaptivity with relative distances; it looks at all pairs of points."""
    n = given.shape[1]
    grains, distance = Grains(), np.zeros((n, n))
    state, active, of = grains.start(n), np.ones(n, dtype=bool), np.arange(n)
    last, outputs, solves = np.zeros((n, 2)), [], 0
    for inputs in given:
        distance *= np.exp(-fade * DT)
        for column in np.column_stack([inputs, last]).T:
            size = np.maximum(np.abs(column)[:, None], np.abs(column)[None])
            distance += DT * np.abs(column[:, None] - column[None]) / np.maximum(size, 1e-15)
        _switch(distance, active, of, state, (coarsen, refine))
        on, off = np.flatnonzero(active), np.flatnonzero(~active)
        of[off] = on[np.argmin(distance[np.ix_(off, on)], axis=1)]
        state[on], answer = grains.step(state[on], inputs[on])
        last = np.empty((n, 2))
        last[on] = answer
        last[off] = last[of[off]]
        solves += len(on)
        outputs.append(last)
    return np.array(outputs), solves


def _switch(distance: F64, active: Any, of: I64, state: F64, constants: tuple[float, float]) -> None:
    """Switch simulations off that are like an active one, and on that are like none; in place."""
    far = constants[1] * distance.max()
    near = constants[0] * far
    off_now = np.zeros_like(active)
    for i in np.flatnonzero(active):
        others = active.copy()
        others[i] = False
        if (distance[i, others] <= near).any():
            active[i], off_now[i] = False, True
    for i in np.flatnonzero(~active):
        if not active.any() or distance[i, active].min() > far:
            active[i] = True
            if not off_now[i]:
                state[i] = state[of[i]]


class Replayed(FineSolver):
    """Grains that are brought up to date by replaying their inputs; counts every micro solve."""

    def __init__(self, problem: OpaqueProblem) -> None:
        self.grains, self.solves = Grains(), 0

    def attach(self, points: Points) -> None:
        """All grains start alike."""
        self.state, self.at = self.grains.start(len(points)), np.zeros(len(points), dtype=np.int64)
        self.past: list[F64] = []
        self.trial: list[tuple[I64, F64]] = []
        self.now: F64 = np.zeros((len(points), 2))

    def begin(self, batch: Batch) -> None:
        """Keep the inputs of all points."""
        self.now, self.trial = batch.inputs, []

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        """Replay what the rows have missed, then solve."""
        state, at, work = self.state[rows].copy(), self.at[rows], np.ones(len(rows), dtype=np.int64)
        for window in range(int(at.min(initial=len(self.past))), len(self.past)):
            behind = np.flatnonzero(at <= window)
            state[behind], _ = self.grains.step(state[behind], self.past[window][rows[behind]])
            work[behind] += 1
        new, outputs = self.grains.step(state, inputs)
        self.solves += int(work.sum())
        self.trial.append((rows, new))
        m = len(rows)
        return FineAnswer(rows, outputs, np.empty((m, 2, 0)), np.ones(m, dtype=bool), work, np.zeros(m))

    def commit(self) -> None:
        """The solved grains go on."""
        self.past.append(self.now.copy())
        for rows, new in self.trial:
            self.state[rows], self.at[rows] = new, len(self.past)
        self.trial = []

    def rollback(self) -> None:
        """Nothing was committed."""
        self.trial = []

    def diagnosis(self, row: int) -> str:
        """Grains never fail."""
        return ""

    def get_state(self) -> dict[str, Any]:
        """State, its window, and the inputs since the start."""
        return {"state": self.state, "at": self.at, "past": np.array(self.past).swapaxes(0, 1)}

    def set_state(self, state: Any) -> None:
        """Restore what `get_state` gave."""
        self.state, self.at = np.array(state["state"]), np.array(state["at"])
        self.past = list(np.array(state["past"]).swapaxes(0, 1))


def make_problem(truth: F64) -> OpaqueProblem:
    """The grains as an opaque micro problem; floors: a tenth of the root mean square, as in the comparison."""
    inputs = (FieldSpec("temperature", ("",), "1"), FieldSpec("concentration", ("",), "1"))
    outputs = (FieldSpec("uptake", ("",), "1/s"), FieldSpec("conductivity", ("",), "1"))
    return OpaqueProblem(inputs, outputs, floors=floors(truth))


def floors(truth: F64) -> list[float]:
    """Size below which an output's error counts against it, by output."""
    return [float(size) for size in 0.1 * np.sqrt((truth**2).mean(axis=(0, 1)))]


def learned(where: Points, given: F64, truth: F64, tolerance: float, folder: Path) -> tuple[F64, int]:
    """Outputs and micro solves of our loop from a cold start, through the embedded transport."""
    problem = make_problem(truth)
    gate = schema.Gate(tolerance=tolerance)
    grains = Replayed(problem)
    parts = Parts(
        problem=problem,
        fine=share_answers(grains, schema.Fine(), problem, gate),
        gate=make_gate(gate, problem),
        learner=make_learner(schema.Learning(mode="online"), schema.Training(), problem, folder, None, gate),
    )
    outputs = []
    with EmbeddedClosure(lambda points, comm: Loop(parts, points, comm), None, where) as closure:
        for w, inputs in enumerate(given):
            fields = {"temperature": inputs[:, 0], "concentration": inputs[:, 1]}
            answer = closure.evaluate(fields, w * DT, DT)
            outputs.append(np.column_stack([answer["uptake"], answer["conductivity"]]))
            closure.commit()
    return np.array(outputs), grains.solves


def measure(method: str, setting: dict[str, float], outputs: F64, solves: int, truth: F64) -> dict[str, Any]:
    """A row of the table: solves per point and window, and the error against all fine."""
    error = (np.abs(outputs - truth) / np.maximum(np.abs(truth), floors(truth))).max(axis=2)
    p95, largest = (float(np.quantile(error, q)) for q in (0.95, 1.0))
    size = truth.shape[0] * truth.shape[1]
    return {
        "method": method,
        **setting,
        "solves": solves / size,
        "mean": float(error.mean()),
        "p95": p95,
        "max": largest,
    }


def rows(nx: int, ny: int, windows: int, quick: bool) -> Iterator[dict[str, Any]]:
    """All methods on the same inputs."""
    where, given = plate(nx, ny, windows)
    truth = all_fine(given)
    for tolerance in TOLERANCES[1:2] if quick else TOLERANCES:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            answer = learned(where, given, truth, tolerance, Path(folder))
            seconds = time.perf_counter() - start
        yield measure("learned", {"tolerance": tolerance}, *answer, truth) | {"seconds": seconds}
    for coarsen, refine in SWEEP[1:4] if quick else SWEEP:
        for fade in FADE[1:] if quick else FADE:
            start = time.perf_counter()
            answer = similarity(given, coarsen, refine, fade)
            setting = {"coarsening": coarsen, "refining": refine, "history": fade}
            yield measure("similarity", setting, *answer, truth) | {"seconds": time.perf_counter() - start}


def verdicts(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each of ours: the least that similarity needs for the same mean error; all points where no setting has it."""
    found = []
    for ours in (row for row in table if row["method"] == "learned"):
        as_good = [row["solves"] for row in table if row["method"] == "similarity" and row["mean"] <= ours["mean"]]
        least = min(as_good, default=1.0)
        found.append({"tolerance": ours["tolerance"], "fewer": least / ours["solves"], "reached": bool(as_good)})
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer points, windows and settings")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    parallel.set_threads(None)
    size = (20, 12, 40) if options.quick else (40, 25, 100)
    table = []
    print(f"{size[0] * size[1]} points, {size[2]} windows; solves per point and window, error against all fine")
    for row in rows(*size, options.quick):
        table.append(row)
        setting = ", ".join(f"{k} {row[k]:g}" for k in ("tolerance", "coarsening", "refining", "history") if k in row)
        errors = f"error mean {row['mean']:.4f} p95 {row['p95']:.4f} max {row['max']:.3f}"
        print(
            f"{row['method']:10} {setting:48} solves {row['solves']:.3f}  {errors}  {row['seconds']:.1f} s", flush=True
        )
    for verdict in verdicts(table):
        how = "" if verdict["reached"] else " (no setting reaches this error: against all fine)"
        print(
            f"tolerance {verdict['tolerance']:g}: {verdict['fewer']:.1f} times fewer micro solves{how}; goal {GOAL:g}"
        )
    if options.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        result = {
            "points": size[0] * size[1],
            "windows": size[2],
            "rows": table,
            "verdicts": verdicts(table),
            **machine,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
