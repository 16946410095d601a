"""What an exchange of the C++ client costs beside a raw MPI round trip of the same bytes plus one copy.

The service is a Python program that answers with what it was sent, so that the transport alone is measured; 9 float64
a row each way, no tangent. Every channel is run next to a raw one, and they are compared as ratios.

    python benchmarks/client.py [--rows 10000 1000000] [--repeats N] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "client"
SERVICE = ROOT / "benchmarks" / "peers" / "client_service.py"


def build() -> None:
    """Build the client and its benchmark program."""
    cmake = shutil.which("cmake") or "cmake"
    options = ["-DNEUROSCALE_CLIENT_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (
        [cmake, "-S", str(ROOT / "csrc" / "client"), "-B", str(FOLDER), *options],
        [cmake, "--build", str(FOLDER), "--parallel", "2"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def launcher() -> tuple[list[str], dict[str, str]]:
    """The mpirun of the client's MPI, and the environment in which mpi4py uses the same MPI."""
    lines = (FOLDER / "CMakeCache.txt").read_text().splitlines()
    mpirun = next(line.partition("=")[2] for line in lines if line.startswith("MPIEXEC_EXECUTABLE:"))
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    variables = {
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    if "Open MPI" in said or "OpenRTE" in said:
        variables["MPI4PY_MPIABI"] = "openmpi"
    return [mpirun], os.environ | variables


def measure(rows: list[int], repeats: int) -> list[dict[str, Any]]:
    """One row per channel and size; a raw round trip before and after each channel."""
    mpirun, variables = launcher()
    program = str(FOLDER / "client_bench")
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder) / "service"
        service.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(SERVICE))} "$@"\n')
        service.chmod(0o700)
        variables["NEUROSCALE_COUPLE"] = str(service)

        def run(ranks: int, channel: str, n: int) -> list[float]:
            start = [*mpirun, "-n", str(ranks)] if ranks else []
            times = max(5, min(repeats, repeats * 10000 // n))
            command = [*start, program, channel, folder, str(n), str(times)]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
            if done.returncode != 0:
                raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            return [float(text) for text in done.stdout.split()[-2:]]

        table = []
        for n in rows:
            for channel, ranks in (("socket", 0), ("mpi", 1)):
                before, got, after = run(2, "raw", n), run(ranks, channel, n), run(2, "raw", n)
                raw = min(before[0], after[0])
                table.append(
                    {"channel": channel, "rows": n, "ms": 1e3 * got[0], "raw_ms": 1e3 * raw, "ratio": got[0] / raw}
                )
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=1000, help="exchanges of 10 000 rows; fewer of more rows")
    parser.add_argument("--quick", action="store_true", help="few exchanges: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    build()
    if not (FOLDER / "client_bench").exists():
        print("benchmarks/client.py: no MPI with a C++ compiler was found; nothing to compare with")
        return
    table = measure(args.rows, 20 if args.quick else args.repeats)
    print(f"{'channel':<8} {'rows':>8} {'ms':>9} {'raw + copy, ms':>15} {'ratio':>6}")
    for row in table:
        print(f"{row['channel']:<8} {row['rows']:>8} {row['ms']:>9.3f} {row['raw_ms']:>15.3f} {row['ratio']:>6.2f}")
    if args.json:
        mpirun, _ = launcher()
        version = subprocess.run([*mpirun, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        machine = {
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "mpi": re.sub(r"^mpi\w+ \((.*)\)", r"\1", version).strip(),
            "quick": args.quick,
        }
        args.json.write_text(json.dumps({"client": table, **machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
