"""The participant of `transport: precice`: here the time loop is ours, preCICE says when to go on or to repeat.

    read -> evaluate -> write -> advance            every step
    repeat | commit                                 the window is iterated on | has converged

Our participant has direct access to the macro solver's meshes. All their vertices are points of one service.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroscale_couple.config.precice_fields import DIAGNOSTICS, Carrier, Interface
from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.config.schema import Config
from neuroscale_couple.errors import ConfigError, InputError, NeuroscaleError, TransportError
from neuroscale_couple.later import later
from neuroscale_couple.parallel import max_over, rank, size, together
from neuroscale_couple.transport.base import ServiceFactory
from neuroscale_couple.transport.embedded import EmbeddedClosure
from neuroscale_couple.transport.precice_binding import direct, participant, vertex_ids
from neuroscale_couple.transport.precice_ids import by_coordinates, from_field, in_order_of
from neuroscale_couple.transport.precice_regions import Owned, access_region, check_regions, owned
from neuroscale_couple.transport.precice_watch import Watch
from neuroscale_couple.values import F64, I64, Layout, Outputs, Points

LEAVING = 10.0
"""Seconds that preCICE gets to let go of the macro solver after an error."""


@dataclass(frozen=True)
class Vertices:
    """Vertices of one interface that this rank owns. ids [m]: for the binding; rows: among this rank's points."""

    interface: Interface
    ids: Any
    rows: slice


class PreciceDriver:
    """Runs the coupling from its first time window to its last.

    Collective: all, over our ranks.
    """

    def __init__(
        self, config: Config, file: PreciceXml, interfaces: Sequence[Interface], layouts: tuple[Layout, Layout],
        folder: Path, comm: Any = None,
    ) -> None:  # fmt: skip
        """Join the coupling. interfaces: as found by `precice_fields.check`; layouts: inputs, outputs of the problem.

        folder: where preCICE looks for the other programs and writes its files, as if we had been started there
        comm: mpi4py world of our participant, or None: one rank
        Raises: ConfigError, TransportError
        """
        self.config, self.settings, self.file = config, config.neuroscale.precice, file
        self.interfaces, self.folder, self.comm = interfaces, folder, comm
        self.meshes: list[Vertices] = []
        self.inputs, self.outputs = layouts
        self.us = config.participant_name
        peers = file.peers(self.us, [i.mesh for i in interfaces])
        self.peers = list(dict.fromkeys(peers.values()))
        self.ours_to_choose = any(file.sets_window(self.us, peer) for peer in self.peers)
        limits = [n for peer in self.peers if (n := file.max_iterations(self.us, peer)) is not None]
        self.max_iterations = min(limits, default=None)
        self.window = self.iteration = self.step = 0
        self.time = self.window_start = self.window_size = 0.0
        self.implicit = self.heard = False
        for interface in interfaces:
            check_regions(self.settings.regions, size(comm), file.dimensions(interface.mesh), interface.mesh)
        self.watch = Watch()
        try:
            self.participant = self._join()
        except BaseException:
            self.watch.stop()  # nothing waits for anybody yet
            raise
        self.direct = direct(self.participant)

    def _join(self) -> Any:
        try:
            import precice
        except ImportError as error:
            raise ConfigError(
                f"transport: precice needs preCICE and its Python package, which cannot be imported ({error}): "
                "install libprecice 3, then pip install pyprecice"
            ) from None
        with self._waiting("reading the configuration"), chdir(self.folder):
            return participant(precice, self.us, str(self.file.path), rank(self.comm), size(self.comm))

    # -- the whole -------------------------------------------------------------------------------------------

    def run(self, factory: ServiceFactory, volumes: float | Path = 1.0) -> int:
        """Couple until the end; returns the number of time windows.

        factory: builds the service once the points are known; volumes: of the points, or a file of float64 [n]
        Raises: NeuroscaleError
        """
        closure: EmbeddedClosure | None = None
        try:
            points = self._initialise(volumes)
            closure = EmbeddedClosure(factory, self.comm, points)
            if (resumed := closure.resumed()) is not None:
                self.window = resumed[0]
                self.time = self.window_start = float(resumed[1]["time"])  # preCICE starts at 0 again
            first = self.window
            while self._call("is_coupling_ongoing"):
                self._one_step(closure)
            with self._waiting("finalize"):
                self.participant.finalize()
            later.close()
            closure.close()
        except BaseException as error:
            self._leave(closure, error)
            raise
        self.watch.stop()
        return self.window - first

    def _leave(self, closure: EmbeddedClosure | None, error: BaseException) -> None:
        """Close what can be closed; the watch ends this process if preCICE then waits for the macro solver."""
        with suppress(Exception):
            later.close()
        with suppress(Exception):
            if closure is not None:
                closure.abandon(error)
        if self.meshes and not isinstance(error, TransportError) and rank(self.comm) == 0:
            sys.stderr.write(
                f"neuroscale-couple: end {self._peer_names}, if need be: preCICE does not always notice that a program "
                "has ended, and waits for it\n"
            )
        self.watch.begin(LEAVING, f"participant {self.us!r} ends after an error without waiting for the others")

    def _initialise(self, volumes: float | Path) -> Points:
        """Meet the macro solver, and make points of the vertices of its meshes."""
        regions, place = self.settings.regions, rank(self.comm)
        for interface in self.interfaces:
            region = access_region(regions, place, self.file.dimensions(interface.mesh))
            self._call("set_mesh_access_region", interface.mesh, region)
        with self._waiting(f"waiting for {self._peer_names} to start", together=True), chdir(self.folder):
            self.participant.initialize()
        coordinates, ids = [], []
        start = total = 0
        for interface in self.interfaces:
            found, seen = self._call("get_mesh_vertex_ids_and_coordinates", interface.mesh)
            dimensions = self.file.dimensions(interface.mesh)
            seen = np.ascontiguousarray(seen, dtype=np.float64).reshape(-1, dimensions)
            part = owned(regions, self.comm, interface.mesh, seen)
            mine = vertex_ids(np.asarray(found)[part.rows], self.direct)
            self.meshes.append(Vertices(interface, mine, slice(start, start + len(mine))))
            coordinates.append(seen[part.rows])
            ids.append(self._ids_of(self.meshes[-1], part, total))
            start, total = start + len(mine), total + len(part.whole)
        all_ids: I64 = np.concatenate(ids).astype(np.int64)
        return Points(all_ids, _stacked(coordinates), self._volumes(volumes, all_ids))

    def _ids_of(self, vertices: Vertices, part: Owned, before: int) -> I64:
        """Ids int64 [m] of this rank's vertices of a mesh. before: number of vertices of the meshes before it."""
        interface = vertices.interface
        if interface.ids is None:
            order = part.places if self.settings.ids == "vertices" else by_coordinates(part.whole)[part.places]
            return before + order
        dt = float(self._call("get_max_time_step_size"))
        values = self._call("read_data", interface.mesh, interface.ids, vertices.ids, dt) if len(vertices.ids) else []
        where, mesh, name = part.whole[part.places], interface.mesh, interface.ids
        return together(self.comm, f"ids of {mesh!r}", lambda: from_field(values, where, mesh, name))

    def _volumes(self, volumes: float | Path, ids: I64) -> F64:
        """Macro volumes float64 [m] of this rank's points."""
        if not isinstance(volumes, Path):
            return np.full(len(ids), float(volumes))
        order = in_order_of(ids, (lambda mine: [mine]) if self.comm is None else self.comm.allgather)
        return _read_volumes(volumes, order, int(max_over(self.comm, np.array([order.max(initial=-1)]))[0]) + 1)

    # -- one step --------------------------------------------------------------------------------------------

    def _one_step(self, closure: EmbeddedClosure) -> None:
        if self._call("requires_writing_checkpoint"):
            self.implicit = True
        dt = self._step_size()
        with self._section("neuroscale read"):
            inputs, blank = self._read(dt)
        with self._section("neuroscale evaluate"):
            outputs = closure.evaluate(self.inputs.unpack(inputs), self.time + dt, dt, blank=blank)
        with self._section("neuroscale write"):
            self._write(outputs, closure.model_version)
        if self.direct:
            later.go()
        with self._waiting(f"waiting for {self._peer_names}", together=True):
            self.participant.advance(dt)
        self.time += dt
        self.step += 1
        if self._call("requires_reading_checkpoint"):
            closure.repeat()
            self.iteration += 1
            self.step, self.time = 0, self.window_start
        elif self._call("is_time_window_complete"):
            self._commit(closure)
        else:
            closure.next_step()

    def _commit(self, closure: EmbeddedClosure) -> None:
        self._check_converged()
        with self._section("neuroscale commit"):
            closure.commit({"time": np.array(self.time)})
        self.window += 1
        self.iteration = self.step = 0
        self.window_start = self.time
        self.implicit = False

    def _step_size(self) -> float:
        """Our next step: a part of the window, the rest of it in the last step."""
        left = float(self._call("get_max_time_step_size"))
        if self.ours_to_choose and self.settings.window_size is not None:
            return min(left, self.settings.window_size)
        left = min(left, self.settings.max_step or left)
        if self.step == 0:
            self.window_size = left
        part = self.window_size / self.settings.substeps
        return left if self.step >= self.settings.substeps - 1 else min(left, part)

    def _check_converged(self) -> None:
        """Act on a window that preCICE ended at its limit of iterations. Raises: TransportError"""
        if not self.implicit or self.max_iterations is None or self.iteration + 1 < self.max_iterations:
            return
        said = (
            f"the coupling used all {self.max_iterations} iterations (max-iterations in {self.file.path}) without "
            "converging before; take smaller time windows, stronger relaxation or another acceleration, more "
            "iterations, or set neuroscale.precice.unconverged: continue"
        )
        if self.settings.unconverged == "stop":
            raise TransportError(f"{self._place}: {said}")
        if rank(self.comm) == 0:
            sys.stderr.write(f"neuroscale-couple: {self._place}: {said}\n")

    # -- data ------------------------------------------------------------------------------------------------

    def _read(self, dt: float) -> tuple[F64, bool]:
        """Inputs float64 [n, n_in] at the end of the step, and whether they stand in for none."""
        inputs = np.zeros((sum(len(mesh.ids) for mesh in self.meshes), self.inputs.size))
        for mesh in self.meshes:
            if not len(mesh.ids):
                continue
            for carrier in mesh.interface.read:
                values = self._call("read_data", mesh.interface.mesh, carrier.data, mesh.ids, dt)
                _place(inputs[mesh.rows], carrier, np.asarray(values, dtype=np.float64))
        if self.heard:
            return inputs, False
        # A mesh with direct access carries no initial data: until the macro solver has sent something, all is zero.
        self.heard = bool(max_over(self.comm, np.array([float(inputs.any())]))[0])
        if not self.heard:
            for name, value in self.settings.initial.items():
                inputs[:, self.inputs.columns.index(name)] = value
        return inputs, not self.heard

    def _write(self, outputs: Outputs, version: int) -> None:
        sides = _Written(outputs, version)
        for mesh in self.meshes:
            if not len(mesh.ids):
                continue
            for carrier in mesh.interface.write:
                pairs = zip(carrier.columns, carrier.factors, strict=True)
                columns = [_theirs(sides.column(i)[mesh.rows], factor) for i, factor in pairs]
                values = np.stack(columns, axis=1) if carrier.vector else np.ascontiguousarray(columns[0])
                self._call("write_data", mesh.interface.mesh, carrier.data, mesh.ids, values)

    # -- preCICE ---------------------------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        return f"window {self.window}, iteration {self.iteration}"

    @property
    def _peer_names(self) -> str:
        return " and ".join(repr(peer) for peer in self.peers)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A call of preCICE that does not wait. Raises: TransportError"""
        try:
            return getattr(self.participant, name)(*arguments)
        except Exception as error:
            raise self._failed(name, error) from None

    @contextmanager
    def _waiting(self, what: str, together: bool = False) -> Iterator[None]:
        """A call of preCICE that waits for others. together: no program may leave meanwhile. Raises: TransportError"""
        try:
            with self.watch.waiting(f"{self._place}: {self.us!r} was {what}", self.settings.timeout, together):
                yield
        except Exception as error:
            raise self._failed(what, error) from None

    def _failed(self, what: str, error: Exception) -> NeuroscaleError:
        if isinstance(error, NeuroscaleError):
            return error
        return TransportError(
            f"{self._place}: preCICE failed ({self.us!r}, {what}): {str(error).strip()}; if the other program has "
            "ended, its output says why"
        )

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        """A section in preCICE's profile."""
        self._call("start_profiling_section", name)
        try:
            yield
        finally:
            self._call("stop_last_profiling_section")


class _Written:
    """The columns that can be written, in the order of `precice_fields.output_columns`."""

    def __init__(self, outputs: Outputs, version: int) -> None:
        self.reply, self.version = outputs.reply, version

    def column(self, i: int) -> F64:
        """Column i of all points of this rank: float64 [n]."""
        n_out, n_in = self.reply.tangent.shape[1:]  # n_in is 0 without a tangent
        if i < n_out:
            return self.reply.outputs[:, i]
        i -= n_out
        if i < n_out * n_in:
            return self.reply.tangent[:, i // n_in, i % n_in]
        source, error = self.reply.source.astype(np.float64), self.reply.error
        version: F64 = np.full(len(source), float(self.version))
        return dict(enumerate((source, error, version)))[i - n_out * n_in]


assert len(DIAGNOSTICS) == 3


def _place(rows: F64, carrier: Carrier, values: F64) -> None:
    """Put the values of one data field into the columns that it carries."""
    values = values.reshape(len(rows), len(carrier.columns))
    for k, (column, factor) in enumerate(zip(carrier.columns, carrier.factors, strict=True)):
        rows[:, column] = values[:, k] if factor == 1.0 else values[:, k] * factor


def _theirs(values: F64, factor: float) -> F64:
    """Our values in the unit of the data field."""
    return values if factor == 1.0 else values / factor


def _stacked(coordinates: list[F64]) -> F64:
    """Coordinates of all meshes in one array; missing dimensions are 0."""
    most = max(c.shape[1] for c in coordinates)
    return np.concatenate([np.pad(c, ((0, 0), (0, most - c.shape[1]))) for c in coordinates])


def _read_volumes(volumes: Path, rows: I64, total: int) -> F64:
    try:
        values = np.asarray(np.load(volumes, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise ConfigError(f"neuroscale.precice.volumes: cannot read {volumes}: {error}") from None
    if values.shape != (total,):
        raise InputError(
            f"neuroscale.precice.volumes: {volumes} has shape {values.shape}, but there are {total} vertices"
        )
    return values[rows]
