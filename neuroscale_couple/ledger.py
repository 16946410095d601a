"""What a run did, window by window: `ledger.csv`, `audits.csv`, and one line per window on the terminal.

Rows are appended when a window is committed (and fsynced where the run writes checkpoints), so that a killed run leaves
whole rows only (a torn last row is dropped on resume). Without checkpoints the row of a window of less than 0.1 s may
be written one window later, while the transport waits (`later`).
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from neuroscale_couple.later import later
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.values import F64, I64, U8, Audit, FineAnswer, Reply

SOURCES = tuple(source.name.lower() for source in Source)
REFUSALS = tuple(reason.name.lower() for reason in Reason if reason is not Reason.ACCEPTED)
REFUSED = tuple(f"refused_{name}" for name in REFUSALS)
STAGES = ("fine", "surrogate", "transport", "correction", "learning", "gate", "total")
SECONDS = tuple(f"seconds_{stage}" for stage in (*STAGES, "kernels"))
"""Columns; the kernels' seconds lie inside those of gate and correction."""
COLUMNS = (
    *("window", "time", "iterations", "points"),
    *(f"answered_{name}" for name in SOURCES),
    *("audits", "audit_p50", "audit_p95", "audit_max", "audit_above"),
    *REFUSED,
    *("fine_solves", "fine_iterations"),
    *(f"asked_{name}" for name in SOURCES),
    *(f"rank_seconds_{name}" for name in SOURCES),
    *SECONDS,
    "model_version",
)

COUNTED = {side: tuple(f"{side}_{name}" for name in SOURCES) for side in ("answered", "asked", "rank_seconds")}

BRIEF = 0.1
"""Seconds: shorter windows may be written down while the run waits for the macro solver to end the next one."""
ENDS = ("lowest", "highest")
"""Prefixes of the columns that hold the range of an input in a window."""
MARKUP = re.compile(r"\[/?[a-z]*\]")
"""What colours a line on a terminal."""


class Counts:
    """Point-iterations of one window on one rank by source and reason, the fine solver's work, and what each cost."""

    def __init__(self) -> None:
        self.source: I64 = np.zeros(len(Source), dtype=np.int64)
        self.reason: I64 = np.zeros(len(Reason), dtype=np.int64)
        self.fine_solves = 0
        self.fine_iterations = 0
        self.asked: I64 = np.zeros(len(Source), dtype=np.int64)  # refused answers among them, audits not
        self.seconds: F64 = np.zeros(len(Source))

    @contextmanager
    def asking(self, source: Source, points: int) -> Iterator[None]:
        """Measure what answers cost: so many points are asked on a rung meanwhile; 0: do not count it."""
        start = time.perf_counter()
        yield
        self.asked[source] += points
        self.seconds[source] += time.perf_counter() - start if points else 0.0

    def answered(self, reply: Reply) -> None:
        """Count one iteration's reply."""
        _tally(reply.source, self.source)
        _tally(reply.reason, self.reason)

    def fine(self, answer: FineAnswer) -> None:
        """Count one call of the fine solver."""
        self.fine_solves += len(answer.rows) if answer.own is None else int(np.count_nonzero(answer.own))
        self.fine_iterations += int(answer.iterations.sum())


def _tally(codes: U8, counts: I64) -> None:
    """Add how often each code occurs. codes: uint8 [n], as a rule all equal; counts: int64 [k], in/out"""
    if len(codes) and codes.tobytes().count(codes[:1].tobytes()) == len(codes):
        counts[codes[0]] += len(codes)
    else:
        counts += np.bincount(codes, minlength=len(counts))


class FieldWriter(Protocol):
    """Writes fields of all points when a window is committed (`evaluation.fields.PointFields`)."""

    def write(self, window: int, time: float, reply: Reply) -> None:
        """Collective: yes."""

    def truncate(self, windows: int) -> None:
        """Forget windows from this one on."""


class Ledger:
    """Rows of all committed windows in `folder`; rank 0 writes, the other ranks send it their part.

    comm: mpi4py communicator of the service ranks (None: serial)
    tolerance: relative error above which an audit counts as bad
    outputs: names of the output columns, for the header of `audits.csv`
    inputs: names of the input columns, whose lowest and highest values of a window are kept
    fields: writer of per-point fields, or None; sync: of rows, see `Table.append`; a checkpoint needs it
    """

    def __init__(
        self, folder: Path, comm: Any = None, tolerance: float = 0.02,
        outputs: Sequence[str] = (), fields: FieldWriter | None = None, sync: bool = True, inputs: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.folder, self.comm, self.tolerance = Path(folder), comm, tolerance
        self.outputs, self.fields, self.sync = tuple(outputs), fields, sync
        self.columns = (*COLUMNS, *(f"{end}_{name}" for end in ENDS for name in inputs))
        self.console = Console(soft_wrap=True, highlight=False)
        self.pending: list[tuple[Any, ...]] = []
        self.tables: dict[str, Table] = {}
        self.broken = False

    def add_audits(
        self, window: int, ids: I64, source: U8, estimate: F64, error: F64, predicted: F64, fine: F64
    ) -> None:
        """Keep this rank's audits of a window until `add` writes them. Collective: no.

        ids: int64 [m]; source: uint8 [m]; estimate, error: float64 [m]; predicted, fine: float64 [m, n_out]
        """
        self.pending.append((window, ids, source, estimate, error, predicted, fine))

    def add(
        self, *, window: int, time: float, iterations: int, points: int, counts: Counts,
        audit: Audit, reply: Reply, seconds: Mapping[str, float], model_version: int, inputs: F64 | None = None,
    ) -> None:  # fmt: skip
        """Write down a committed window: this rank's numbers are summed (times: the slowest rank's) over all ranks.

        inputs: float64 [n, n_in], what the points of this rank were asked, or None
        Collective: yes.
        """
        fine = counts.fine_solves, counts.fine_iterations
        mine = (points, counts.source, counts.reason, *fine, dict(seconds), counts.asked, counts.seconds)
        ends = _extremes(inputs) if inputs is not None and len(self.columns) > len(COLUMNS) else []
        everyone = self._gather((mine, audit.error, self.pending, ends))
        if self.fields is not None:
            self.fields.write(window, time, reply)
        self.pending = []
        if everyone is None:
            return
        row: dict[str, Any] = {"window": window, "time": time, "iterations": iterations, "model_version": model_version}
        write = partial(self._write, row, everyone)
        if self.sync or seconds.get("total", BRIEF) >= BRIEF:
            later.settle()
            write()
        else:
            later.put(write)

    def _write(self, row: dict[str, Any], everyone: Sequence[Any]) -> None:
        """Write down a window. row: what all ranks agree on; everyone: what each of them has sent"""
        row |= _sums([rank[0] for rank in everyone])
        row |= _audit_columns(np.concatenate([rank[1] for rank in everyone]), self.tolerance)
        row |= zip(self.columns[len(COLUMNS) :], _ends([rank[3] for rank in everyone]), strict=False)
        self._append("ledger.csv", self.columns, [[row.get(name, "") for name in self.columns]])
        self._append_audits([batch for rank in everyone for batch in rank[2]])
        self._say(window_line(row, self.tolerance))

    def _say(self, line: str) -> None:
        """One line with markup; a file gets it plain, without the cost of a terminal's layout."""
        if self.console.is_terminal:
            self.console.print(line)
            return
        self.console.file.write(MARKUP.sub("", line) + "\n")
        self.console.file.flush()

    def truncate(self, windows: int) -> None:
        """Keep the rows of the first `windows` windows and append to them (after `--resume`)."""
        if self.fields is not None:
            self.fields.truncate(windows)
        if _rank(self.comm) != 0:
            return
        self.close()
        self.tables["ledger.csv"] = Table(self.folder / "ledger.csv", self.columns, keep=windows)
        if (self.folder / "audits.csv").exists():
            header = list(read_table(self.folder / "audits.csv"))
            self.tables["audits.csv"] = Table(self.folder / "audits.csv", header, keep=windows)

    def close(self) -> None:
        """End of the run; idempotent."""
        later.settle()
        for table in self.tables.values():
            table.close()
        self.tables = {}

    def _gather(self, mine: Any) -> list[Any] | None:
        if self.comm is None or self.comm.size == 1:
            return [mine]
        gathered: list[Any] | None = self.comm.gather(mine, root=0)
        return gathered

    def _append_audits(self, batches: Sequence[tuple[Any, ...]]) -> None:
        rows = []
        for window, ids, source, estimate, error, predicted, fine in batches:
            for i in range(len(ids)):
                name = SOURCES[int(source[i])]
                rows.append([window, int(ids[i]), name, estimate[i], error[i], *predicted[i], *fine[i]])
        if rows:
            width = (len(rows[0]) - 5) // 2
            names = self.outputs or tuple(str(i) for i in range(width))
            self._append("audits.csv", _audit_header(names), rows)

    def _append(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self.broken:
            return
        try:
            if not self.tables:  # a fresh run: rows of an earlier one are not ours
                (self.folder / "audits.csv").unlink(missing_ok=True)
            if name not in self.tables:
                self.tables[name] = Table(self.folder / name, header)
            self.tables[name].append(rows, self.sync)
        except OSError as error:
            self.broken = True
            warnings.warn(
                f"{self.folder / name}: cannot be written ({error.strerror}); the run goes on without a ledger",
                stacklevel=2,
            )


class Table:
    """A CSV file; a program that is killed leaves the rows whose `append` has returned.

    keep: None starts the file anew; a number keeps whole rows with a smaller first column (the window)
    """

    def __init__(self, path: Path, header: Sequence[str], keep: int | None = None) -> None:
        kept = [] if keep is None or not path.exists() else _whole_rows(path, keep)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        with fresh.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([list(header), *kept])
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, path)
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._line = csv.writer(_Passing(), lineterminator="\n").writerow  # returns what it writes

    def append(self, rows: Sequence[Sequence[Any]], sync: bool = True) -> None:
        """Append rows in one write. sync: they outlive a crash of the whole machine, not of this program alone"""
        data = "".join([self._line([_plain(value) for value in row]) for row in rows]).encode()
        while data:  # a disk that fills up takes a part, and says so at the next call
            data = data[os.write(self.descriptor, data) :]
        if sync:
            os.fsync(self.descriptor)

    def close(self) -> None:
        """Nothing more is appended; idempotent."""
        self._close()


class _Passing:
    """A file for a CSV writer that hands each line back."""

    @staticmethod
    def write(line: str) -> str:
        return line


def read_table(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV file by name; numbers as float, other cells as text, a torn last row left out."""
    if not path.exists():
        return {}
    with path.open(newline="", errors="replace") as stream:
        header, *rows = list(csv.reader(stream)) or [[]]
    whole = [row for row in rows if len(row) == len(header)]
    return {name: [_parsed(row[i]) for row in whole] for i, name in enumerate(header)}


def _whole_rows(path: Path, keep: int) -> list[list[str]]:
    text = path.read_text(errors="replace")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    width = len(lines[0]) if lines else 0
    return [row for row in lines[1:] if len(row) == width and row[0].isdecimal() and int(row[0]) < keep]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _parsed(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _rank(comm: Any) -> int:
    return 0 if comm is None else int(comm.rank)


def _audit_header(outputs: Sequence[str]) -> list[str]:
    fixed = ["window", "point", "source", "estimate", "error"]
    return [*fixed, *(f"predicted.{name}" for name in outputs), *(f"fine.{name}" for name in outputs)]


def _sums(ranks: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    source, reason, asked, spent = (
        sum([rank[side] for rank in ranks[1:]], ranks[0][side]).tolist() for side in (1, 2, 6, 7)
    )
    row: dict[str, Any] = {"points": sum(rank[0] for rank in ranks)}
    row |= zip(COUNTED["answered"], source, strict=True)
    row |= zip(REFUSED, reason[1:], strict=True)
    row["fine_solves"] = sum(rank[3] for rank in ranks)
    row["fine_iterations"] = sum(rank[4] for rank in ranks)
    row |= zip(COUNTED["asked"], asked, strict=True)
    row |= zip(COUNTED["rank_seconds"], (round(seconds, 6) for seconds in spent), strict=True)
    worst = (max(rank[5].get(name.removeprefix("seconds_"), 0.0) for rank in ranks) for name in SECONDS)
    row |= zip(SECONDS, (round(seconds, 6) for seconds in worst), strict=True)
    return row


def _extremes(inputs: F64) -> list[F64]:
    """Lowest and highest value of each column, float64 [n_in] each; column by column, which is 20 times faster."""
    columns = inputs.T
    return [np.array([c.min(initial=np.inf) for c in columns]), np.array([c.max(initial=-np.inf) for c in columns])]


def _ends(ranks: Sequence[Sequence[F64]]) -> list[Any]:
    """Lowest and highest inputs over all ranks, column by column; empty cells where there are none."""
    if not all(ranks):
        return []
    lowest, highest = (list(zip(*(end.tolist() for end in ends), strict=True)) for ends in zip(*ranks, strict=True))
    return [v if math.isfinite(v) else "" for v in (*map(min, lowest), *map(max, highest))]


def _audit_columns(error: F64, tolerance: float) -> dict[str, Any]:
    names = ("audit_p50", "audit_p95", "audit_max", "audit_above")
    if not len(error):
        return {"audits": 0} | dict.fromkeys(names, "")
    p50, p95 = np.quantile(error, [0.5, 0.95])
    above = np.mean(~(error <= tolerance))  # an error that is not a number counts, as for the gate
    return {"audits": len(error)} | dict(zip(names, (p50, p95, error.max(), above), strict=True))


def window_line(row: Mapping[str, Any], tolerance: float) -> str:
    """The line that the terminal shows for a window (rich markup)."""
    asked = max(1, sum(int(row[f"answered_{name}"]) for name in SOURCES))
    fallback = int(row["answered_fine"]) / asked
    if row["audits"]:
        colour = "green" if row["audit_p95"] <= tolerance else "red"
        audit = f"audit p95 [{colour}]{100 * row['audit_p95']:.2f} %[/] (n={row['audits']})"
    else:
        audit = "no audit"
    return (
        f"[bold]window {row['window'] + 1:4d}[/]  t={row['time']:<8.4g} {row['iterations']:2d} iterations  "
        f"accepted [bold]{100 * (1 - fallback):5.1f} %[/]  fallback {100 * fallback:5.1f} %  {audit}  "
        f"{row['seconds_total']:.2f} s"
    )
