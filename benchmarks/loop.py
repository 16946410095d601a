"""Cost of the loop alone: no-op surrogate, no-op fine solver, everything else real.

One window is one `evaluate` and one `commit` through the embedded transport with the default gate (domain,
uncertainty, physical, audit) and the admissible correction, at 3 inputs, 3 outputs and a 3 x 3 tangent per point.
Two variants: `accepted` (the surrogate answers everything) and `closed` (the fine solver answers everything).

    python benchmarks/loop.py [--quick] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.config import schema
from neuroscale_couple.correction import make_corrections
from neuroscale_couple.fine.base import FineSolver
from neuroscale_couple.gate import make_gate
from neuroscale_couple.ledger import Ledger
from neuroscale_couple.loop import Loop, Parts
from neuroscale_couple.physics.base import MicroProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate.artifact import Calibration, Card
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.values import F64, I64, FieldSpec, FineAnswer, Layout, Points, Prediction

GOAL_US = 0.3
STRAIN = FieldSpec("strain", ("xx", "yy", "xy"), "-")
STRESS = FieldSpec("stress", ("xx", "yy", "xy"), "MPa")


class NoopProblem(MicroProblem):
    """Fields and units of a plane constitutive law, without any physics."""

    name = "noop"
    inputs, outputs, state = Layout((STRAIN,)), Layout((STRESS,)), Layout(())

    @property
    def signature(self) -> dict[str, Any]:
        return {"name": self.name}

    def output_floor(self) -> float:
        return 1.0

    def check_parameters(self, parameters: dict[str, Any]) -> None:
        return None


class Prepared:
    """Answers that lie ready, so that nothing but the loop is measured."""

    def __init__(self, n: int) -> None:
        self.outputs: F64 = np.ones((n, 3))
        self.tangent: F64 = np.broadcast_to(np.eye(3), (n, 3, 3)).copy()
        self.score: F64 = np.full(n, 1e-4)


class NoopSurrogate(Surrogate):
    """Gives prepared answers with a small score."""

    version = 0

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        score = np.linspace(0.0, 1e-2, 2000).tolist()
        self.card = Card(
            problem={"name": "noop"}, input_range=[(-1.0, 1.0)] * 3, output_floor=1.0, domain={},
            calibration={"surrogate_coarse": Calibration(score=score, error=score)},
            metrics={}, versions={}, data_sha256="",
        )  # fmt: skip

    @property
    def rungs(self) -> tuple[Source, ...]:
        return (Source.SURROGATE_COARSE,)

    def attach(self, points: Points) -> None:
        return None

    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        return Prediction(rows, self.prepared.outputs, self.prepared.tangent, self.prepared.score)

    def fields(self, rows: I64, inputs: F64) -> None:
        return None


class NoopFine(FineSolver):
    """Gives prepared answers."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def attach(self, points: Points) -> None:
        n = len(points)
        self.converged = np.ones(n, dtype=bool)
        self.iterations: I64 = np.zeros(n, dtype=np.int64)
        self.residual: F64 = np.zeros(n)

    def solve(self, rows: I64, inputs: F64, guess: Any = None) -> FineAnswer:
        m = len(rows)
        p = self.prepared
        return FineAnswer(
            rows, p.outputs[:m], p.tangent[:m], self.converged[:m], self.iterations[:m], self.residual[:m]
        )  # fmt: skip

    def commit(self) -> None:
        return None

    def rollback(self) -> None:
        return None

    def diagnosis(self, row: int) -> str:
        return ""

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: Any) -> None:
        return None


def measure(n: int, closed: bool, repeats: int) -> dict[str, Any]:
    """Median seconds of one window for n points."""
    prepared = Prepared(n)
    problem = NoopProblem()
    gate = schema.Gate(open=not closed, audit=0.0)
    rng = np.random.default_rng(1)
    points = Points(np.arange(n), rng.random((n, 2)), np.ones(n))
    inputs = rng.standard_normal((n, 3)) * 0.01
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def factory(owned: Points, comm: Any) -> Loop:
            ledger = Ledger(folder, comm, inputs=problem.inputs.columns)
            ledger.console.quiet = True
            parts = Parts(
                problem=problem,
                fine=NoopFine(prepared),
                gate=make_gate(gate, problem, comm),
                surrogate=None if closed else NoopSurrogate(prepared),
                corrections=make_corrections(schema.Correction(), problem, comm),
                ledger=ledger,
            )
            return Loop(parts, owned, comm)

        closure = EmbeddedClosure(factory, None, points)
        seconds = []
        for window in range(repeats + 2):
            start = time.perf_counter()
            outputs = closure.evaluate({"strain": inputs}, float(window), 1.0)
            middle = time.perf_counter()
            closure.commit()
            end = time.perf_counter()
            expected = Source.FINE if closed else Source.SURROGATE_COARSE
            assert (outputs.source == expected).all()
            if window >= 2:
                seconds.append((middle - start, end - middle))
        closure.close()
    evaluate, commit = (statistics.median(s) for s in zip(*seconds, strict=True))
    return {
        "points": n, "variant": "closed" if closed else "accepted", "evaluate_us_per_point": 1e6 * evaluate / n,
        "commit_us_per_point": 1e6 * commit / n, "us_per_point_and_window": 1e6 * (evaluate + commit) / n,
    }  # fmt: skip


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost per point and window against the number of points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for variant, colour in (("accepted", "#0072b2"), ("closed", "#d55e00")):
        chosen = [r for r in rows if r["variant"] == variant]
        axes.loglog(
            [r["points"] for r in chosen], [r["us_per_point_and_window"] for r in chosen], "o-", color=colour,
            label={"accepted": "all answered by the surrogate", "closed": "all answered by the fine solver"}[variant],
        )  # fmt: skip
    axes.axhline(GOAL_US, color="0.5", ls="--", label=f"goal at 1e5 points: {GOAL_US} µs")
    axes.set(
        xlabel="points", ylabel="µs per point and window", title="The loop alone (no-op surrogate and fine solver)"
    )
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="write the picture here")
    parser.add_argument("--quick", action="store_true", help="up to 1e5 points, few repeats")
    options = parser.parse_args()
    sizes = [1_000, 10_000, 100_000] if options.quick else [1_000, 10_000, 100_000, 1_000_000]
    rows = [measure(n, closed, 5 if options.quick else 15) for closed in (False, True) for n in sizes]
    print(f"{'points':>9} {'variant':>9} {'evaluate':>9} {'commit':>9} {'total':>9}   µs per point and window")
    for r in rows:
        print(
            f"{r['points']:>9} {r['variant']:>9} {r['evaluate_us_per_point']:9.4f} {r['commit_us_per_point']:9.4f} "
            f"{r['us_per_point_and_window']:9.4f}"
        )
    if options.json:
        record = {"machine": platform.processor() or platform.machine(), "goal_us": GOAL_US, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
