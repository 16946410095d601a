"""A case of the preCICE Micro Manager run by it and by us: overhead, wall time, micro solves, error.

Two parts, each with the same macro solver, preCICE configuration and micro simulation for all:

- overhead: 10 000 points, a micro simulation that does nothing. The macro solver measures its time windows, of which a
  part is preCICE's (of a peer that only reads and writes the same arrays, through its Python package or our binding as
  the program does) and a part is the user's own (`solve` in a plain loop, in as many processes, see `bare`). The rest:
  overhead = window of the program - window of the peer - bare calls, divided by the number of points.
- grains: every point a cell with a dissolving grain, its conductivity by a solve on a grid. Theirs without and with
  adaptivity (several refining constants), ours with the gate closed and open. Error: of the conductivity and porosity
  that the macro solver got, against the run in which every point was solved.

    python benchmarks/micro_manager.py [--quick] [--json FILE] [--part overhead|grains]

Needs preCICE; parts of the Micro Manager are left out, and said, where the package micro_manager is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.transport import precice_binding as binding

MESH, READ, WRITE = "Macro-Mesh", "Concentration", ("Conductivity", "Porosity")
ACTIVE = ("Active-State", "Active-Steps")
"""What the Micro Manager writes beside the data where its adaptivity is on."""
LIMIT = 3000.0
"""Seconds after which a run is given up."""
NOOP = """
class MicroSimulation:
    def __init__(self, sim_id):
        pass
    def initialize(self):
        pass
    def solve(self, data, dt):
        c = data["Concentration"]
        return {"Conductivity": c, "Porosity": c}
    def get_state(self):
        return None
    def set_state(self, state):
        pass
    def get_global_id(self):
        return 0
    def set_global_id(self, global_id):
        pass
"""
GRAINS = """
import atexit, os
import numpy as np

solves = 0
atexit.register(lambda: open(f"solves-{os.getpid()}.txt", "w").write(str(solves)))
X = (np.arange(24) + 0.5) / 24 - 0.5
R = np.hypot(*np.meshgrid(X, X))

class MicroSimulation:
    def __init__(self, sim_id):
        self.sim_id, self.radius = sim_id, 0.38
    def initialize(self):
        return None
    def solve(self, data, dt):
        global solves
        solves += 1
        rate = 0.05 * (float(data["Concentration"]) - 0.5)
        self.radius = min(max(self.radius + dt * rate / self.radius, 0.1), 0.45)
        k = 0.1 + 0.45 * (1.0 + np.tanh((R - self.radius) / 0.03))
        return {"Conductivity": conductivity(k), "Porosity": 1.0 - np.pi * self.radius**2}
    def get_state(self):
        return self.radius
    def set_state(self, state):
        self.radius = state
    def get_global_id(self):
        return self.sim_id
    def set_global_id(self, global_id):
        self.sim_id = global_id

def conductivity(k):
    faces = {d: 2 * k * np.roll(k, -1, d) / (k + np.roll(k, -1, d)) for d in (0, 1)}
    total = sum(faces[d] + np.roll(faces[d], 1, d) for d in (0, 1))
    u = np.zeros_like(k)
    for _ in range(60):
        flux = {0: faces[0] * (np.roll(u, -1, 0) - u), 1: faces[1] * (np.roll(u, -1, 1) - u + 1 / 24)}
        u = u + 0.8 * sum(flux[d] - np.roll(flux[d], 1, d) for d in (0, 1)) / total
    return float(24 * np.mean(faces[1] * (np.roll(u, -1, 1) - u + 1 / 24)))
"""


def xml(windows: int) -> str:
    """The preCICE configuration."""
    names = [READ, *WRITE, *ACTIVE]
    data = "".join(f'<data:scalar name="{n}" />' for n in names)
    uses = "".join(f'<use-data name="{n}" />' for n in names)

    def lines(tag: str, fields: Sequence[str]) -> str:
        return "".join(f'<{tag} name="{n}" mesh="{MESH}" />' for n in fields)

    exchange = f'<exchange data="{READ}" mesh="{MESH}" from="Macro" to="Micro-Manager" />'
    exchange += "".join(f'<exchange data="{n}" mesh="{MESH}" from="Micro-Manager" to="Macro" />' for n in WRITE)
    return f"""<precice-configuration>
<log><sink type="stream" output="stdout" filter="%Severity% > error" enabled="true" /></log>
{data}<mesh name="{MESH}" dimensions="2">{uses}</mesh>
<participant name="Macro"><provide-mesh name="{MESH}" />{lines("write-data", [READ])}{lines("read-data", WRITE)}
</participant>
<participant name="Micro-Manager"><receive-mesh name="{MESH}" from="Macro" api-access="true" />
{lines("read-data", [READ])}{lines("write-data", [*WRITE, *ACTIVE])}</participant>
<m2n:sockets acceptor="Macro" connector="Micro-Manager" />
<coupling-scheme:serial-explicit><participants first="Macro" second="Micro-Manager" />
<max-time-windows value="{windows}" /><time-window-size value="0.1" />{exchange}
</coupling-scheme:serial-explicit></precice-configuration>"""


def theirs(refining: float | None = None) -> dict[str, Any]:
    """The Micro Manager's configuration; refining: constant of its adaptivity, None: off."""
    simulation: dict[str, Any] = {
        "micro_dt": 0.1, "macro_domain_bounds": [-0.1, 1.1, -0.1, 1.1], "decomposition": [1, 1],
        "adaptivity": refining is not None,
    }  # fmt: skip
    if refining is not None:
        simulation["adaptivity_settings"] = {
            "type": "local", "data": [READ, *WRITE], "history_param": 0.1, "coarsening_constant": 0.3,
            "refining_constant": refining, "similarity_measure": "L2rel", "output_n": 1_000_000,
        }  # fmt: skip
    return {
        "participant_name": "Micro-Manager",
        "precice_config_file_path": "precice-config.xml",
        "interfaces": [{"mesh_name": MESH, "read_data": [{"name": READ}], "write_data": [{"name": n} for n in WRITE]}],
        "micro_manager": {"micro_file_names": ["micro"], "simulation_params": simulation},
    }


# -- the programs --------------------------------------------------------------------------------------------------


def concentration(points: Any, t: float) -> Any:
    """What the macro solver sends, float64 [n]: a front of low concentration that passes, then slow ripples."""
    x, y = points.T
    front = np.exp(-((x + 0.2 * y - 0.25 * t) ** 2) / 0.05)
    return 0.6 - 0.5 * front + 0.15 * np.sin(2.0 * t + 3.0 * y) * x


def macro(count: float) -> None:
    """The macro solver: concentrations in, conductivity and porosity back, and how long every window took."""
    import precice

    side = int(np.ceil(np.sqrt(count)))
    grid = (np.indices((side, side)).reshape(2, -1).T[: int(count)] + 0.5) / side
    participant = precice.Participant("Macro", "precice-config.xml", 0, 1)
    ids = participant.set_mesh_vertices(MESH, grid).tolist()
    participant.initialize()
    seconds, got, t, begin = [], [], 0.0, time.perf_counter()
    while participant.is_coupling_ongoing():
        dt = participant.get_max_time_step_size()
        participant.write_data(MESH, READ, ids, concentration(grid, t + dt))
        start = time.perf_counter()
        participant.advance(dt)
        seconds.append(time.perf_counter() - start)
        t += dt
        got.append([participant.read_data(MESH, name, ids, 0.0) for name in WRITE])
    wall = time.perf_counter() - begin
    participant.finalize()
    np.savez("heard.npz", seconds=seconds, wall=wall, got=np.array(got))


def echo(own: bool = False) -> None:
    """A peer that reads and writes arrays, and nothing else. own: through our binding, not preCICE's Python package"""
    import precice

    told = "Micro-Manager", "precice-config.xml", 0, 1
    participant = binding.participant(precice, *told) if own else precice.Participant(*told)
    participant.set_mesh_access_region(MESH, [-1.0, 2.0, -1.0, 2.0])
    participant.initialize()
    ids = binding.vertex_ids(participant.get_mesh_vertex_ids_and_coordinates(MESH)[0], binding.direct(participant))
    while participant.is_coupling_ongoing():
        dt = participant.get_max_time_step_size()
        values = participant.read_data(MESH, READ, ids, dt)
        for name in WRITE:
            participant.write_data(MESH, name, ids, values)
        participant.advance(dt)
    participant.finalize()


def bare(count: int, processes: int) -> float:
    """Seconds that a window of bare calls takes: a plain loop over the objects, shared by so many processes at once.

    They sleep between rounds, as while the others of a coupling work, and the slowest one counts: waking them is the
    programs' overhead. The least of all rounds, so that noise makes overheads larger, never smaller.
    """
    shares = [len(part) for part in np.array_split(np.arange(count), processes)]
    first = time.time() + 2.0
    command = [sys.executable, __file__, "--be", "bare", str(first)]
    peers = [subprocess.Popen([*command, str(share)], stdout=subprocess.PIPE, text=True) for share in shares]
    rounds = [json.loads(peer.communicate(timeout=LIMIT)[0]) for peer in peers]
    return float(np.min(np.max(rounds, axis=0)))


def calls(first: float, count: float) -> None:
    """One process of `bare`: prints the seconds of its rounds. first: Unix time of the first; then every 10 ms."""
    space: dict[str, Any] = {}
    exec(NOOP, space)
    solves = [space["MicroSimulation"](i).solve for i in range(int(count))]
    seconds = []
    for i in range(100):
        time.sleep(max(0.0, first + 0.01 * i - time.time()))
        start = time.perf_counter()
        for solve in solves:
            solve({READ: 1.0}, 0.1)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


# -- one run -------------------------------------------------------------------------------------------------------


def couple(
    folder: Path, micro: str, points: int, windows: int, command: Sequence[str], refining: Any = None
) -> dict[str, Any]:
    """Run the macro solver and one participant; what the macro solver measured and got, and the micro solves."""
    folder.mkdir()
    (folder / "precice-config.xml").write_text(xml(windows))
    (folder / "micro.py").write_text(micro)
    (folder / "micro-manager-config.json").write_text(json.dumps(theirs(refining)))
    start = time.perf_counter()
    logs = [(folder / name).open("w") for name in ("macro.log", "micro.log")]
    first = [sys.executable, __file__, "--be", "macro", str(points)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    programs = [
        subprocess.Popen(line, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=env)
        for line, log in zip((first, command), logs, strict=True)
    ]
    try:
        status = [program.wait(LIMIT) for program in reversed(programs)]
    finally:
        for program in programs:
            program.kill()
    if any(status) or not (folder / "heard.npz").exists():
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'micro.log').read_text()[-3000:]}")
    heard = np.load(folder / "heard.npz")
    solves = sum(int(path.read_text() or 0) for path in folder.glob("solves-*.txt"))
    return {
        "seconds": heard["seconds"], "wall": float(heard["wall"]), "got": heard["got"], "solves": solves,
        "total": time.perf_counter() - start,
    }  # fmt: skip


def ours(*options: str) -> list[str]:
    """Our command line."""
    return [sys.executable, "-m", "neuroscale_couple.cli", "run", "micro-manager-config.json", *options]


def there() -> bool:
    """Whether the Micro Manager is installed."""
    return importlib.util.find_spec("micro_manager") is not None


THEIRS = [sys.executable, "-m", "micro_manager", "micro-manager-config.json"]


def overhead(root: Path, quick: bool) -> dict[str, Any]:
    """Microseconds per point and window beside preCICE and the bare solves; the programs take turns."""
    points, windows, rounds = (10_000, 15, 1) if quick else (10_000, 60, 3)
    line = [sys.executable, __file__, "--be", "echo"]
    echoes = {"echo": line, "own": [*line, "1"]}
    programs = echoes | {"ours, gate closed": ours("--fine-only")}
    programs |= {"theirs, no adaptivity": THEIRS} if there() else {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(rounds):
        for name, command in programs.items():
            run = couple(root / f"overhead-{turn}-{name.split(',')[0]}", NOOP, points, windows, command)
            seconds[name] += run["seconds"][3:].tolist()
    alone, rows = {name: float(np.median(seconds.pop(name))) for name in echoes}, []
    for name, values in seconds.items():
        us = name.startswith("ours")  # their calls are made in one process
        peer, processes = (alone["own"], len(os.sched_getaffinity(0))) if us else (alone["echo"], 1)
        window, solves = float(np.median(values)), bare(points, processes)
        rows.append({
            "variant": name, "window_ms": 1e3 * window, "peer_ms": 1e3 * peer, "processes": processes,
            "beside_precice_us": 1e6 * (window - peer) / points, "bare_us": 1e6 * solves / points,
            "overhead_us": 1e6 * (window - peer - solves) / points,
        })  # fmt: skip
    return {
        "points": points, "windows": windows, "rounds": rounds, "echo_ms": 1e3 * alone["echo"], "rows": rows,
        "ratio": rows[1]["overhead_us"] / rows[0]["overhead_us"] if len(rows) > 1 else None,
    }  # fmt: skip


def grains(root: Path, quick: bool) -> dict[str, Any]:
    """Wall time, micro solves and error of all variants."""
    points, windows = (144, 20) if quick else (625, 60)
    constants = (0.3, 0.02) if quick else (0.5, 0.3, 0.1, 0.05, 0.02, 0.005, 0.0005)
    tolerances = (0.1, 0.02) if quick else (0.2, 0.1, 0.05, 0.02)
    variants: list[tuple[str, list[str], Any]] = [("ours, gate closed", ours("--fine-only"), None)]
    variants += [(f"ours, tolerance {t:g}", ours("--set", f"gate.tolerance={t}"), None) for t in tolerances]
    if there():
        variants.append(("theirs, no adaptivity", THEIRS, None))
        variants += [(f"theirs, refining {c:g}", THEIRS, c) for c in constants]
    rows, exact = [], None
    for name, command, refining in variants:
        run = couple(root / f"grains-{len(rows)}", GRAINS, points, windows, command, refining)
        exact = run["got"] if exact is None else exact
        error = np.abs(run["got"] - exact) / np.abs(exact)
        rows.append({
            "variant": name, "wall_s": run["wall"], "total_s": run["total"], "solves": run["solves"],
            "share": run["solves"] / (points * windows), "error_mean": float(error.mean()),
            "error_p95": float(np.quantile(error, 0.95)), "error_max": float(error.max()),
        })  # fmt: skip
        print_grain(rows[-1])
    return {"points": points, "windows": windows, "rows": rows, "fewer_solves": at_same_error(rows)}


def at_same_error(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times fewer micro solves than their adaptivity at the same mean error, where it errs as much.

    The solves of their adaptivity are interpolated between its settings, both axes logarithmic; where none errs as
    little, those of the one that errs least count, which are fewer than it would need.
    """
    known = sorted(
        (r["error_mean"], r["solves"]) for r in rows if r["variant"].startswith("theirs, r") and r["error_mean"] > 0
    )
    found = {}
    for row in rows:
        if not row["variant"].startswith("ours, t") or len(known) < 2 or row["error_mean"] <= 0:
            continue
        if row["error_mean"] <= known[-1][0]:
            errors, solves = np.log(np.array(known)).T
            found[row["variant"]] = float(np.exp(np.interp(np.log(row["error_mean"]), errors, solves)) / row["solves"])
    return found


def print_grain(row: dict[str, Any]) -> None:
    mean, p95, largest = (100 * row[f"error_{name}"] for name in ("mean", "p95", "max"))
    print(
        f"{row['variant']:<26} wall {row['wall_s']:8.2f} s  solves {row['solves']:>8} ({100 * row['share']:5.1f} %)  "
        f"error mean {mean:.3f} %  p95 {p95:.3f} %  max {largest:.2f} %"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="few windows, few variants")
    parser.add_argument("--part", choices=("overhead", "grains"), help="one part alone")
    parser.add_argument("--be", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        {"macro": macro, "echo": echo, "bare": calls}[options.be[0]](*map(float, options.be[1:]))
        return
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    record: dict[str, Any] = {"machine": machine, "quick": options.quick}
    if importlib.util.find_spec("precice") is None:
        print("skipped: the Python package precice is not installed")
        record["skipped"] = "precice"
    elif not there():
        print("the Micro Manager (PyPI: micro-manager-precice) is not installed: its runs are left out")
        record["skipped"] = "micro_manager"
    if record.get("skipped") != "precice":
        with tempfile.TemporaryDirectory() as name:
            record |= measure(Path(name), options.quick, options.part)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


def measure(root: Path, quick: bool, part: str | None) -> dict[str, Any]:
    """One part, or both, printed as they are measured."""
    record: dict[str, Any] = {}
    if part != "grains":
        print_overhead(record.setdefault("overhead", overhead(root, quick)))
    if part != "overhead":
        record["grains"] = grains(root, quick)
        for variant, times in record["grains"]["fewer_solves"].items():
            print(f"{variant}: {times:.1f} times fewer micro solves than their adaptivity at the same mean error")
    return record


def print_overhead(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        print(
            f"{row['variant']:<22} window {row['window_ms']:7.2f} ms, of its peer {row['peer_ms']:.2f} ms; per point: "
            f"beside preCICE {row['beside_precice_us']:.3f} µs, overhead {row['overhead_us']:.3f} µs; "
            f"bare calls {row['bare_us']:.3f} µs in {row['processes']} process(es)"
        )
    if record["ratio"] is not None:
        print(f"their overhead is {record['ratio']:.1f} times ours")


if __name__ == "__main__":
    main()
