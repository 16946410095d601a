"""The macro solver's side of `transport: precice`: one coupling iteration of preCICE per evaluation.

    evaluate:  write inputs -> advance -> read outputs and tangents          as often as Newton iterates
    commit:    the last inputs again, until preCICE says that the window has converged

The coupling is serial-implicit with the macro solver first and without acceleration: Newton's method is the iteration,
and preCICE must end a window only when the same data come twice (a tight measure on our outputs, two iterations at
least). The operator's ids are sent where `neuroscale.precice.ids` names a data field for them: then the points have the
same micro structures as with any other transport.

The state that `commit` is given lies beside the service's checkpoint; `--resume` on both sides goes on after the newest
window that both have kept.
"""

from __future__ import annotations

from contextlib import chdir
from typing import Any

import numpy as np

from neuroscale_couple import Points, Source, assemble
from neuroscale_couple.checkpoint import Checkpoint
from neuroscale_couple.config.precice_fields import find_interfaces
from neuroscale_couple.config.precice_macro import refuse_scheme, transposed
from neuroscale_couple.errors import CheckpointError, ConfigError, InputError, TransportError
from neuroscale_couple.physics import make_problem
from neuroscale_couple.transport.base import Closure, Inputs, State, Totals
from neuroscale_couple.transport.precice_resume import MACRO, common_window, shortened
from neuroscale_couple.transport.precice_watch import Watch
from neuroscale_couple.values import Outputs, Reply


class PreciceClosure(Closure):
    """A preCICE participant with the calls of a closure; the service is a participant of its own."""

    def __init__(self, loaded: Any, comm: Any, points: Points) -> None:
        """Provide the mesh of the coupling points and meet the service.

        loaded: the configuration, the same file that the service runs with
        Raises: ConfigError, TransportError. Collective: yes, over comm
        """
        problem = make_problem(loaded.config.neuroscale.problem)
        self.inputs, self.outputs = problem.inputs, problem.outputs
        self.folder = assemble.results_folder(loaded)
        if comm.Get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
        file, interfaces = find_interfaces(loaded.config, loaded.folder, self.inputs, self.outputs)
        if len(interfaces) != 1:
            raise ConfigError(f"{loaded.path}: interfaces: a dolfinx mesh has one coupling mesh, got {len(interfaces)}")
        self._interface = interfaces[0]
        self._turned = transposed(self._interface, self.inputs, self.outputs)
        self._name = file.peers(loaded.config.participant_name, [self._interface.mesh])[self._interface.mesh]
        refuse_scheme(file, loaded.config.participant_name, self._name)
        self._points = points
        self._order = np.argsort(points.ids)
        self._checkpoint: Checkpoint | None = None
        if loaded.config.neuroscale.output.checkpoint:
            self._checkpoint = Checkpoint(self.folder / MACRO, comm, loaded.digest)
        self._resumed = self._stored() if assemble.run_options.resume else None
        self._windows = self._resumed[0] if self._resumed is not None else 0
        if self._windows:
            file = shortened(file, loaded.config.participant_name, self._name, self._windows, self.folder)
        self._service, self._timeout = loaded.config.participant_name, loaded.config.neuroscale.precice.timeout
        self._place, self._watch = "at the start", Watch()
        self._join(file.path, loaded.folder, comm)
        if self._checkpoint is not None and not self._windows:
            self._checkpoint.clear()
            self._checkpoint.save(0, {"macro": {}}, {})  # from now on the service asks for a window that we have
        self._last: np.ndarray | None = None
        self._begun = self._closed = False
        self._version = -1

    def _stored(self) -> tuple[int, State]:
        """The state of the window to go on after. Raises: CheckpointError. Collective: yes"""
        window = common_window(self.folder)
        found = self._checkpoint.load(window) if self._checkpoint is not None and window is not None else None
        if window is None or found is None:
            raise CheckpointError(
                f"--resume: there is no checkpoint of the macro solver in {self.folder / MACRO} that fits the "
                "service's; start both without --resume"
            )
        return window, found[0]["macro"]

    def _join(self, path: Any, folder: Any, comm: Any) -> None:
        try:
            import precice
        except ImportError as error:
            raise ConfigError(
                f"transport: precice needs preCICE and its Python package in the macro solver's environment as well "
                f"({error}): see docs/fenicsx.md"
            ) from None
        try:
            with chdir(folder):
                self._participant = precice.Participant(self._name, str(path), comm.Get_rank(), comm.Get_size())
                places = self._points.coordinates[self._order]
                self._vertices = list(self._participant.set_mesh_vertices(self._interface.mesh, places))
                if self._participant.requires_initial_data():
                    self._write_ids()
                self._wait(f"waiting for {self._service!r} to start", "initialize")
        except TransportError:
            self._watch.stop()
            raise
        except Exception as error:
            self._watch.stop()
            raise self._failed("initialize", error) from None

    def _write_ids(self) -> None:
        """Send the ids of the points where the coupling has a field for them."""
        if self._interface.ids is not None:
            ids = self._points.ids[self._order].astype(np.float64)
            self._call("write_data", self._interface.mesh, self._interface.ids, self._vertices, ids)

    def evaluate(self, inputs: Inputs, t: float, dt: float, totals: Totals = None, blank: bool = False) -> Outputs:
        """See `Closure.evaluate`; dt must be the window size of preCICE, and neither totals nor blank can be sent."""
        if blank:
            raise InputError("transport: precice cannot carry blank inputs; take transport: embedded or mpi")
        if totals:
            raise InputError("transport: precice cannot carry totals; take transport: embedded or mpi for a balance")
        rows = self.inputs.pack(inputs, len(self._points))
        self._check_step(t, dt)
        self._last, self._place = rows[self._order], f"t = {t:g}"
        self._advance(dt)
        if self._call("is_time_window_complete"):
            raise TransportError(
                f"t = {t:g}: preCICE took the window for converged before Newton did: tighten the convergence measure "
                'of our outputs (limit="1e-9") and set <min-iterations value="2" />'
            )
        return self._read(dt)

    def _check_step(self, t: float, dt: float) -> None:
        if not self._call("is_coupling_ongoing"):
            raise TransportError(f"t = {t:g}: the coupling has ended: raise max-time in the preCICE configuration")
        window = float(self._call("get_max_time_step_size"))
        if abs(window - dt) > 1e-9 * window:
            raise TransportError(
                f"t = {t:g}: the macro solver's step is {dt:g}, the time window of preCICE {window:g}: they must agree"
            )
        if not self._begun:
            self._begun = bool(self._call("requires_writing_checkpoint"))
            if not self._begun:
                raise TransportError("the coupling scheme is explicit: Newton's method needs serial-implicit")

    def _advance(self, dt: float) -> None:
        """Send the last inputs and let the service answer them."""
        assert self._last is not None
        self._write_ids()
        for carrier in self._interface.read:
            pairs = zip(carrier.columns, carrier.factors, strict=True)
            values = np.stack([self._last[:, column] / factor for column, factor in pairs], axis=1)
            values = values if carrier.vector else values[:, 0]
            self._call("write_data", self._interface.mesh, carrier.data, self._vertices, values)
        self._wait(f"waiting for {self._service!r}", "advance", dt)
        self._call("requires_reading_checkpoint")

    def _read(self, dt: float) -> Outputs:
        """What the service answered, in the order of the points."""
        n, n_out, n_in = len(self._points), self.outputs.size, self.inputs.size
        columns = np.full((n, n_out * (1 + n_in) + 3), np.nan)
        for carrier in self._interface.write:
            values = self._call("read_data", self._interface.mesh, carrier.data, self._vertices, dt)
            values = np.asarray(values, dtype=np.float64).reshape(n, len(carrier.columns))
            columns[self._order[:, None], carrier.columns] = values * carrier.factors
        for missing, present in self._turned:
            columns[:, missing] = columns[:, present]
        source = np.nan_to_num(columns[:, -3], nan=float(Source.FINE)).round().astype(np.uint8)
        tangent = columns[:, n_out : n_out * (1 + n_in)].reshape(n, n_out, n_in)
        error = np.nan_to_num(columns[:, -2])
        self._version = int(np.nan_to_num(columns[:, -1], nan=-1.0).max(initial=-1.0))
        return Outputs(self.outputs, Reply(columns[:, :n_out], tangent, source, np.zeros(n, dtype=np.uint8), error))

    def commit(self, macro_state: State | None = None) -> None:
        """See `Closure.commit`; the state is kept on this side."""
        if self._last is None:
            raise TransportError("commit was called before evaluate")
        dt = float(self._call("get_max_time_step_size"))
        while not self._call("is_time_window_complete"):
            self._advance(dt)
        self._begun, self._last = False, None
        self._windows += 1
        if self._checkpoint is not None:
            self._checkpoint.save(self._windows, {"macro": dict(macro_state or {})}, {})

    def rollback(self) -> None:
        """Newton starts again in the same window; preCICE counts its iterations on."""

    def repeat(self) -> None:
        """See `Closure.repeat`; an iteration of preCICE is one already."""

    def next_step(self) -> None:
        """A window of preCICE is one step of Newton's. Raises: TransportError"""
        raise TransportError("transport: precice makes one step in a window; take smaller windows, or transport: mpi")

    @property
    def model_version(self) -> int:
        """See `Closure.model_version`; -1 also where `Neuroscale-Model-Version` is not exchanged."""
        return self._version

    def resumed(self) -> tuple[int, State] | None:
        """See `Closure.resumed`."""
        return self._resumed

    def close(self) -> None:
        """See `Closure.close`."""
        if not self._closed:
            self._closed = True
            self._call("finalize")
            self._watch.stop()

    def _wait(self, what: str, name: str, *arguments: Any) -> None:
        """A call of preCICE that waits for the service; a watcher ends this process where there is none any more."""
        with self._watch.waiting(f"{self._place}: {self._name!r} was {what}", self._timeout, together=True):
            self._call(name, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._participant, name)(*arguments)
        except Exception as error:
            raise self._failed(name, error) from None

    def _failed(self, what: str, error: Exception) -> TransportError:
        said = f"preCICE failed ({self._name!r}, {what}): {str(error).strip()}"
        return TransportError(f"{said}; if the service has ended, its output says why")
