"""Cost of the preCICE transport: a scripted macro solver, a service that answers at once, everything else real.

One mesh, 9 components each way (as scalars, or as 3 vectors), a parallel-implicit scheme of 5 iterations a window.
Reported per iteration of our participant, medians: reading, the transport's own work (packing, checks, dealing),
writing, and preCICE's `advance`, which includes waiting for the macro solver.

    python benchmarks/precice_transport.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ITERATIONS = 5
COMPONENTS = ("xx", "xy", "xz", "yx", "yy", "yz", "zx", "zy", "zz")
DATA = {
    "scalars": [f"-{c.upper()}" for c in COMPONENTS],
    "vectors": ["-1", "-2", "-3"],
}
NOTES_MS = (14.0, 15.0)
"""The cost of a plain participant at 10 000 vertices x 9 scalars, measured before this transport was written."""


def xml(form: str, windows: int) -> str:
    """The preCICE configuration."""
    kind = form.removesuffix("s")
    there, back = [f"Gradient{s}" for s in DATA[form]], [f"Flux{s}" for s in DATA[form]]
    data = "".join(f'<data:{kind} name="{n}" />' for n in there + back)
    uses = "".join(f'<use-data name="{n}" />' for n in there + back)

    def lines(tag: str, names: list[str]) -> str:
        return "".join(f'<{tag} name="{n}" mesh="Macro-Mesh" />' for n in names)

    exchange = "".join(f'<exchange data="{n}" mesh="Macro-Mesh" from="Macro" to="NeuroScale" />' for n in there)
    exchange += "".join(f'<exchange data="{n}" mesh="Macro-Mesh" from="NeuroScale" to="Macro" />' for n in back)
    return f"""<precice-configuration>
<log><sink type="stream" output="stdout" filter="%Severity% > error" enabled="true" /></log>
{data}<mesh name="Macro-Mesh" dimensions="3">{uses}</mesh>
<participant name="Macro"><provide-mesh name="Macro-Mesh" />{lines("write-data", there)}{lines("read-data", back)}
</participant>
<participant name="NeuroScale"><receive-mesh name="Macro-Mesh" from="Macro" api-access="true" />
{lines("read-data", there)}{lines("write-data", back)}</participant>
<m2n:sockets acceptor="Macro" connector="NeuroScale" />
<coupling-scheme:parallel-implicit><participants first="Macro" second="NeuroScale" />
<max-time-windows value="{windows}" /><time-window-size value="1" />{exchange}
<max-iterations value="{ITERATIONS}" />
<absolute-convergence-measure limit="1e-10" data="{there[0]}" mesh="Macro-Mesh" strict="false" />
<acceleration:constant><relaxation value="0.5" /></acceleration:constant>
</coupling-scheme:parallel-implicit></precice-configuration>"""


def macro(path: str, form: str, points: int) -> None:
    """The macro solver: other values in every iteration, and nothing else."""
    import precice

    participant = precice.Participant("Macro", path, 0, 1)
    coordinates = np.random.default_rng(1).random((points, 3))
    ids = participant.set_mesh_vertices("Macro-Mesh", coordinates).tolist()
    participant.initialize()
    values = np.random.default_rng(2).random((points, 3) if form == "vectors" else points)
    count = 0
    while participant.is_coupling_ongoing():
        participant.requires_writing_checkpoint()
        count += 1
        for suffix in DATA[form]:
            participant.read_data("Macro-Mesh", f"Flux{suffix}", ids, 1.0)
            participant.write_data("Macro-Mesh", f"Gradient{suffix}", ids, values * count)
        participant.advance(participant.get_max_time_step_size())
        participant.requires_reading_checkpoint()
    participant.finalize()


class Instant:
    """A service that gives a prepared answer."""

    model_version = 0

    def __init__(self, layouts: tuple[Any, Any], points: int) -> None:
        from neuroscale_couple.values import Reply

        self.inputs, self.outputs = layouts
        none = np.zeros(points, dtype=np.uint8)
        self.reply = Reply(np.ones((points, 9)), np.zeros((points, 9, 9)), none, none, np.zeros(points))

    def evaluate(self, batch: Any) -> Any:
        return self.reply

    def commit(self, macro_state: Any = None) -> None:
        return None

    def rollback(self) -> None:
        return None

    repeat = next_step = close = resumed = rollback


class Timed:
    """A preCICE participant whose calls are timed: seconds of each call by name."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds.setdefault(name, []).append(time.perf_counter() - start)

        return timed


def measure(form: str, points: int, windows: int, folder: Path) -> dict[str, Any]:
    """Couple once and return medians per iteration, ms."""
    from neuroscale_couple.config.precice_fields import find_interfaces
    from neuroscale_couple.config.schema import Config
    from neuroscale_couple.transport.precice import PreciceDriver
    from neuroscale_couple.values import FieldSpec, Layout

    path = folder / "precice-config.xml"
    path.write_text(xml(form, windows))
    layouts = (Layout((FieldSpec("gradient", COMPONENTS, "1"),)), Layout((FieldSpec("flux", COMPONENTS, "1"),)))
    config = Config.model_validate(configuration(form, path))
    file, interfaces = find_interfaces(config, folder, *layouts)
    command = [sys.executable, __file__, "--macro", str(path), form, str(points)]
    other = subprocess.Popen(command, cwd=folder)
    try:
        driver = PreciceDriver(config, file, interfaces, layouts, folder)
        timed = driver.participant = Timed(driver.participant)
        steps: list[float] = []
        one_step = driver._one_step

        def step(closure: Any) -> None:
            start = time.perf_counter()
            one_step(closure)
            steps.append(time.perf_counter() - start)

        driver._one_step = step  # type: ignore[method-assign]
        driver.run(lambda owned, comm: Instant(layouts, len(owned)))
        other.wait(60)
    finally:
        other.kill()
    return {"points": points, "form": form} | parts(timed.seconds, steps, len(DATA[form]))


def configuration(form: str, path: Path) -> dict[str, Any]:
    """Ours; vectors say what they hold."""
    rules = []
    if form == "vectors":
        for k in range(3):
            three = COMPONENTS[3 * k : 3 * k + 3]
            rules += [
                {"name": f"{field.capitalize()}-{k + 1}", "holds": [f"{field}.{c}" for c in three]}
                for field in ("gradient", "flux")
            ]
    names = {field: [{"name": f"{field}{suffix}"} for suffix in DATA[form]] for field in ("Gradient", "Flux")}
    return {
        "precice_config_file_path": path.name,
        "interfaces": [{"mesh_name": "Macro-Mesh", "read_data": names["Gradient"], "write_data": names["Flux"]}],
        "neuroscale": {
            "transport": "precice",
            "problem": {"name": "composite"},
            "precice": {"data": rules, "unconverged": "continue", "timeout": 60},
        },
    }


def parts(seconds: dict[str, list[float]], steps: list[float], fields: int) -> dict[str, float]:
    """Medians per iteration, ms; the first window is left out."""
    skip = ITERATIONS

    def per_step(name: str) -> list[float]:
        calls = np.array(seconds[name]).reshape(len(steps), -1).sum(axis=1)
        return [float(value) for value in calls[skip:]]

    read, write, advance = per_step("read_data"), per_step("write_data"), per_step("advance")
    known = [a + b + c for a, b, c in zip(read, write, advance, strict=True)]
    own = [step - rest for step, rest in zip(steps[skip:], known, strict=True)]
    named = {"read": read, "own": own, "write": write, "advance": advance, "total": steps[skip:]}
    return {f"{name}_ms": 1e3 * statistics.median(values) for name, values in named.items()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 points and few windows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--macro", nargs=3, metavar=("XML", "FORM", "POINTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.macro:
        macro(args.macro[0], args.macro[1], int(args.macro[2]))
        return 0
    if importlib.util.find_spec("precice") is None:
        print("skipped: the Python package precice is not installed")
        return 0
    sizes, windows = ([1000], 4) if args.quick else ([1000, 10000], 25)
    rows = []
    head = ("read", "own", "write", "advance", "total")
    print(f"{'points':>8} {'form':>8} " + " ".join(f"{name:>9}" for name in head) + "  ms per iteration")
    for points in sizes:
        for form in DATA:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(form, points, windows, Path(folder))
            rows.append(row)
            print(f"{points:>8} {form:>8} " + " ".join(f"{row[f'{name}_ms']:9.2f}" for name in head), flush=True)
    print(f"a plain participant, 10 000 points x 9 scalars: {NOTES_MS[0]:g}-{NOTES_MS[1]:g} ms")
    if args.json:
        record = {"machine": platform.platform(), "iterations": ITERATIONS, "windows": windows, "rows": rows}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
