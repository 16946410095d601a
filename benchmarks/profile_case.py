"""Where the wall time of a real run goes: case 01 with many points, sampled while it runs.

A second thread looks at the main thread's stack every 20 ms and books the time since its last look on the innermost
two functions of this package or of the macro script; time in libraries (torch, SciPy, imports) counts for whoever
called them. Nothing is instrumented, so the run is as fast as without. Newton's tolerance is 1e-5 here: on so fine a
mesh the residual stalled at 1.4e-6, presumably the round-off of a surrogate in float32.

    python benchmarks/profile_case.py [--quick] [--case CASE.yaml] [--set KEY=VALUE ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import neuroscale_couple
from neuroscale_couple import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(neuroscale_couple.__file__).parent
CELLS = {True: [16, 16], False: [158, 160]}
"""Elements of the plate, quick or not; four points in each."""
EVERY = 0.02


class Sampler:
    """Wall time by place in the main thread's stack."""

    def __init__(self, folders: list[Path]) -> None:
        self.seconds: Counter[str] = Counter()
        self._folders = [str(folder) for folder in folders]
        self._main = threading.main_thread().ident or 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(EVERY):
            frame = sys._current_frames().get(self._main)
            now = time.perf_counter()
            self.seconds[self._place(frame)] += now - last  # type: ignore[assignment]
            last = now

    def _place(self, frame: FrameType | None) -> str:
        names: list[str] = []
        while frame is not None and len(names) < 2:
            code = frame.f_code
            folder = next((f for f in self._folders if code.co_filename.startswith(f)), None)
            if folder is not None:
                names.append(f"{os.path.relpath(code.co_filename, folder)}: {code.co_qualname}")
            frame = frame.f_back
        return " > ".join(reversed(names)) or "start and end"


def main() -> None:
    """Run the case and write down its profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, default=ROOT / "cases/01_fe2_plate/neuroscale.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config")
    parser.add_argument("--quick", action="store_true", help="1 024 points instead of 1e5")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    cells = CELLS[options.quick]
    overrides = [f"settings.cells={cells}", "settings.steps=3", "settings.newton_tolerance=1e-5", *options.set]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Sampler([PACKAGE, options.case.resolve().parent]) as sampler:
        arguments = ["run", str(options.case), "--out", folder, *(a for s in overrides for a in ("--set", s))]
        if status := cli.main(arguments):
            raise SystemExit(status)
    total = time.perf_counter() - start
    rows = [{"place": place, "seconds": seconds} for place, seconds in sampler.seconds.most_common()]
    for row in rows[:30]:
        print(f"{row['seconds']:9.2f} s  {row['seconds'] / total:6.1%}  {row['place']}")
    print(f"{total:9.2f} s in all")
    if options.json:
        machine: dict[str, Any] = {
            "cpu": platform.processor() or platform.machine(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        }
        record = {"machine": machine, "points": 4 * cells[0] * cells[1], "set": overrides, "total_s": total}
        options.json.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
