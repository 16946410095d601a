"""Builds a run out of a configuration: the one place that knows all parts.

`connect` is what a macro solver calls; `serve` and `serve_socket` are the other ends of the `mpi` and `socket`
transports. Heavy packages are imported inside the functions, so that importing the package costs nothing.
"""

from __future__ import annotations

import atexit
import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroscale_couple.errors import ArtifactError, CheckpointError, ConfigError
from neuroscale_couple.malloc import keep_freed_memory
from neuroscale_couple.values import Points

if TYPE_CHECKING:
    from neuroscale_couple.config.load import Loaded
    from neuroscale_couple.loop import Loop, Parts
    from neuroscale_couple.physics.base import MicroProblem
    from neuroscale_couple.surrogate.base import Surrogate
    from neuroscale_couple.transport.base import Closure
    from neuroscale_couple.transport.inside import InsideService
    from neuroscale_couple.transport.roles import Split


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to the configuration of a run.

    overrides: nested keys that replace those of the file; label: name of the results folder inside the case's
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    label: str = "run"


run_options = RunOptions()


def connect(config: str | Path, comm: Any = None, points: Points | None = None) -> Closure:
    """Connect a macro solver: the same call whatever the transport.

    config: path of the YAML file; comm: mpi4py communicator of the macro ranks (None: serial)
    points: the points this macro rank owns; without `phase` among their parameters the micro structures
    come from the configuration.
    Raises: ConfigError, ArtifactError, MicrostructureError, CheckpointError. Collective: yes, over comm.
    """
    from neuroscale_couple import parallel
    from neuroscale_couple.transport import make_closure

    if points is None:
        raise TypeError("connect needs the points that this rank owns: connect(config, comm, points)")
    if comm is not None:
        parallel.communicator(comm)  # from here on an error that nobody catches ends all ranks
    loaded, folder = parallel.together(comm, "connecting", lambda: _start(Path(config), parallel.rank(comm) == 0))
    closure = make_closure(loaded, folder, factory_for(loaded), comm, points, service_options())
    closure.folder = folder
    return closure


def _start(config: Path, makes: bool) -> tuple[Loaded, Path]:
    """The configuration and the folder of the results; makes: the folder, too. Raises: ConfigError."""
    from neuroscale_couple.config.load import load

    loaded = load(config, run_options.overrides)
    folder = results_folder(loaded)
    try:
        if makes:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{loaded.path}: output.folder: {folder} cannot be made ({error.strerror}); choose another folder"
        ) from error
    return loaded, folder


def settings_of(config: str | Path) -> dict[str, Any]:
    """The free `neuroscale.settings` of a configuration, for the macro solver's script. Raises: ConfigError."""
    from neuroscale_couple.config.load import load

    return dict(load(Path(config), run_options.overrides).config.neuroscale.settings)


def participate(config: str | Path) -> int:
    """Be the participant of `transport: precice` until the coupling ends; returns the number of time windows.

    Raises: ConfigError, TransportError, and what the service raises. Collective: yes, over all ranks of the program.
    """
    from neuroscale_couple import parallel
    from neuroscale_couple.config.load import load
    from neuroscale_couple.config.precice_fields import find_interfaces
    from neuroscale_couple.transport.precice import PreciceDriver
    from neuroscale_couple.transport.precice_resume import common_window, shortened

    loaded = load(Path(config), run_options.overrides)
    problem = _problem(loaded)
    found = find_interfaces(loaded.config, loaded.folder, problem.inputs, problem.outputs, problem.has_tangent)
    file, interfaces = found
    _try_parts(loaded, problem)  # said before the macro solver waits for us
    window = common_window(results_folder(loaded)) if run_options.resume else None
    if window is not None:
        us, meshes = loaded.config.participant_name, [interface.mesh for interface in interfaces]
        peer = next(iter(file.peers(us, meshes).values()))
        file = shortened(file, us, peer, window, results_folder(loaded))
    comm = split_world("macro").local if parallel.launched_size() > 1 else None
    driver = PreciceDriver(loaded.config, file, interfaces, (problem.inputs, problem.outputs), loaded.folder, comm)
    volumes = loaded.config.neuroscale.precice.volumes
    return driver.run(factory_for(loaded, window), loaded.resolve(volumes) if isinstance(volumes, str) else volumes)


def serve(config: str | Path) -> None:
    """Be the service of the `mpi` transport until the macro solver closes. Collective: yes, over the service ranks."""
    from neuroscale_couple.config.load import load
    from neuroscale_couple.transport import make_server

    loaded = load(Path(config), run_options.overrides)
    make_server(loaded, results_folder(loaded), factory_for(loaded)).run()


def serve_socket(config: str | Path, path: Path, ranks: int = 0, seconds: float | None = None) -> None:
    """Be the service behind a socket of this node until the solver finishes.

    path: the socket, made here; ranks: of the solver, 0: as the first one says; seconds: to wait for them, None: ever
    Raises: ConfigError and what the service raises, after the solver was told; PeerError if the solver died
    """
    from neuroscale_couple.transport.socket_server import serve_one_run

    _leave_quickly()
    serve_one_run(path, ranks, seconds, lambda: _prepared(config))


def serve_client(config: str | Path) -> None:
    """Be the service that the ranks of a solver spawned by MPI (channel `mpi` of the client), until they finish.

    Raises: as `serve_socket`
    """
    from neuroscale_couple.transport.spawned import serve_parent

    _leave_quickly()
    serve_parent(lambda: _prepared(config))


def _leave_quickly() -> None:
    """Skip the last garbage collection: a solver that has finished waits half a second for it, and all goes anyway."""
    atexit.register(gc.freeze)


def tell_precice_names(config: str | Path) -> int:
    """Tell the client's channel `precice` how its fields are called there; returns the exit status."""
    from neuroscale_couple.config.load import load
    from neuroscale_couple.transport.precice_client import Names, names_of, tell

    def find(declared: Any) -> Names:
        loaded = load(Path(config), run_options.overrides)
        problem = _problem(loaded)
        return names_of(loaded.config, loaded.folder, (problem.inputs, problem.outputs), declared, problem.has_tangent)

    return tell(find)


def service_inside(
    config: str | Path,
    keys: Sequence[str] = (),
    resume: bool = False,
    timeout: float = 3600.0,
    mpi: str = "",
    comm: int = 0,
) -> InsideService:
    """The service in the process of a solver that is no Python program; channel `embedded` of the client calls this.

    keys: KEY=VALUE that replace those of the configuration; timeout: that a rank waits for the others at most, s
    mpi: kind of the solver's MPI (openmpi, mpich), empty: one rank alone; comm: MPI_Comm_c2f of the ranks' communicator
    Raises: TransportError if mpi4py uses another MPI than the solver. Collective: no
    """
    from neuroscale_couple.config.load import parse_value
    from neuroscale_couple.transport.inside import InsideService, communicator_of

    given = {key.strip(): parse_value(value) for key, _, value in (text.partition("=") for text in keys)}
    options = RunOptions(given, bool(resume))
    return InsideService(lambda: _prepared(config, options), communicator_of(mpi, comm, timeout) if mpi else None)


def _prepared(config: str | Path, options: RunOptions | None = None) -> tuple[Path, str, Any]:
    """Configuration, its hash and the factory of its service. options: see `factory_for`"""
    from neuroscale_couple.config.load import load

    loaded = load(Path(config), (options or run_options).overrides)
    return loaded.path, loaded.digest, factory_for(loaded, None, options)


def service_options() -> list[str]:
    """The run's options as those of `neuroscale-couple serve`, for a service that the macro solver starts."""
    given = [f"--set={key}={json.dumps(value)}" for key, value in run_options.overrides.items()]
    return [*given, f"--label={run_options.label}", *(["--resume"] if run_options.resume else [])]


def replay(config: str | Path) -> None:
    """Be the macro solver of `transport: replay`: make the recorded calls. Collective: yes, over all ranks."""
    from neuroscale_couple.config.load import load
    from neuroscale_couple.transport import play_recorded

    comm = split_world("macro").local
    loaded = load(Path(config), run_options.overrides)
    play_recorded(loaded, lambda points: connect(config, comm, points), comm)


def split_world(role: str = "macro") -> Split:
    """Split the MPI world by role before anything else uses it; returns the local communicator.

    Collective: yes, over MPI_COMM_WORLD of all programs of the job.
    """
    from neuroscale_couple.transport import roles

    return roles.split_world(role)


def results_folder(loaded: Loaded) -> Path:
    """Where a run writes: <output.folder>/<case>/<label>."""
    folder = Path(loaded.config.neuroscale.output.folder)
    return folder / loaded.folder.name / run_options.label


def factory_for(loaded: Loaded, window: int | None = None, options: RunOptions | None = None) -> Any:
    """A `ServiceFactory`: (points, comm) -> Loop. window: see `build`; options: in a process that has several runs"""

    def factory(points: Points, comm: Any) -> Loop:
        global run_options
        run_options = options or run_options
        return build(loaded, points, comm, window)

    return factory


def build(loaded: Loaded, points: Points, comm: Any, window: int | None = None) -> Loop:
    """The loop of one service rank. Collective: yes, over comm.

    window: number of windows to go on after when the run is resumed; None: after the newest checkpoint
    """
    from neuroscale_couple import parallel
    from neuroscale_couple.config.load import dump
    from neuroscale_couple.loop import Loop

    folder = results_folder(loaded)
    parallel.set_threads(comm)
    keep_freed_memory()

    def make_folder() -> None:
        if parallel.rank(comm) == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "neuroscale.resolved.yaml").write_text(dump(loaded.config))

    parallel.together(comm, "making the results folder", make_folder)
    problem = _problem(loaded)
    points = with_microstructures(loaded, problem, points)
    parts = _parts(loaded, problem, points, folder, comm)
    if not run_options.resume or parts.checkpoint is None:
        if parts.checkpoint is not None:
            parts.checkpoint.clear()
        return Loop(parts, points, comm)
    stored = parts.checkpoint.load(window)
    if stored is None:
        raise CheckpointError(f"--resume: there is no checkpoint in {folder}; start without --resume")
    arrays, meta = stored
    if not np.array_equal(arrays["loop"]["ids"], points.ids):
        raise CheckpointError(
            f"--resume: the checkpoint in {folder} is of {len(arrays['loop']['ids'])} points, this rank has "
            f"{len(points)}, or others; undo the change of the macro solver's mesh, or start without --resume"
        )
    surrogate = _stored_surrogate(meta, problem, loaded)
    loop = Loop(_replace_surrogate(parts, surrogate), points, comm)
    loop.restore(arrays, meta)
    return loop


def _problem(loaded: Loaded) -> MicroProblem:
    from neuroscale_couple.physics import make_problem

    return make_problem(loaded.config.neuroscale.problem)


def with_microstructures(loaded: Loaded, problem: MicroProblem, points: Points) -> Points:
    """The points with `phase`, from the configuration where the macro solver passes none.

    Raises: MicrostructureError.
    """
    from neuroscale_couple.physics.base import CellProblem
    from neuroscale_couple.physics.microstructure import generate

    parameters = dict(points.parameters)
    if isinstance(problem, CellProblem) and "phase" not in parameters:
        settings = loaded.config.neuroscale.microstructure
        ids = np.asarray(parameters.pop("structure", points.ids), dtype=np.int64)  # points may share a structure
        parameters["phase"] = generate(settings, ids, problem.grid[0], loaded.folder)
    problem.check_parameters(parameters)
    return Points(points.ids, points.coordinates, points.volumes, parameters)


def _parts(loaded: Loaded, problem: MicroProblem, points: Points, folder: Path, comm: Any) -> Parts:
    from neuroscale_couple import parallel
    from neuroscale_couple.checkpoint import Checkpoint
    from neuroscale_couple.correction import make_corrections
    from neuroscale_couple.evaluation.fields import PointFields
    from neuroscale_couple.fine import make_fine_solver, share_answers
    from neuroscale_couple.gate import make_gate
    from neuroscale_couple.learning import make_learner
    from neuroscale_couple.ledger import Ledger
    from neuroscale_couple.loop import Parts

    config = loaded.config.neuroscale
    model = None
    if config.model is not None and config.gate.open:
        model = _surrogate(loaded.folder / config.model, problem, loaded)
    fields = PointFields(folder / "fields", comm, points, problem.outputs, config.output.every)
    fine = make_fine_solver(config.fine, problem)
    if config.output.checkpoint:
        fine.keep_in(folder / "checkpoint" / f"fine_{parallel.rank(comm)}")
    return Parts(
        problem=problem,
        fine=share_answers(fine, config.fine, problem, config.gate),
        gate=make_gate(config.gate, problem, comm),
        surrogate=model,
        corrections=make_corrections(config.correction, problem, comm),
        learner=make_learner(config.learning, config.training, problem, folder, comm, config.gate, config.fine.device),
        ledger=Ledger(
            folder,
            comm,
            config.gate.tolerance,
            problem.outputs.columns,
            fields,
            sync=config.output.checkpoint,
            inputs=problem.inputs.columns,
        ),
        checkpoint=Checkpoint(folder / "checkpoint", comm, digest=loaded.digest) if config.output.checkpoint else None,
        on_failure=config.fine.on_failure,
    )


def _try_parts(loaded: Loaded, problem: MicroProblem) -> None:
    """Make what the configuration names, without points. Raises: ConfigError, ArtifactError for what cannot be made"""
    from neuroscale_couple.correction import make_corrections
    from neuroscale_couple.fine import make_fine_solver
    from neuroscale_couple.gate import make_gate

    config = loaded.config.neuroscale
    make_fine_solver(config.fine, problem)
    make_gate(config.gate, problem)
    make_corrections(config.correction, problem)
    if config.model is not None and config.gate.open:
        _surrogate(loaded.folder / config.model, problem, loaded)
    if config.fine.solver == "micro_manager":
        from neuroscale_couple.fine.micro_manager import look

        look(config.fine, problem)


def _surrogate(path: Path, problem: MicroProblem, loaded: Loaded) -> Surrogate:
    from neuroscale_couple.surrogate import load

    if not path.exists():
        raise ArtifactError(
            f"{loaded.path}: neuroscale.model: no file {path}; train it with "
            f"`neuroscale-couple train {loaded.path}`, or leave the key out to start on the fine solver"
        )
    return load(path, problem, device=loaded.config.neuroscale.fine.device)


def _stored_surrogate(meta: Mapping[str, Any], problem: MicroProblem, loaded: Loaded) -> Surrogate | None:
    """The surrogate that a checkpoint names. Raises: CheckpointError if its file is not what it was."""
    if not meta["model_path"]:
        return None
    path = Path(meta["model_path"])
    what = "is not there" if not path.exists() else None
    surrogate = _surrogate(path, problem, loaded) if what is None else None
    if surrogate is not None and getattr(surrogate, "sha256", "") != meta["model_sha256"]:
        what = "has changed since"
    if what is not None:
        raise CheckpointError(
            f"--resume: {path}, which answered when the checkpoint was written, {what}; put it back, or start without "
            "--resume"
        )
    return surrogate


def _replace_surrogate(parts: Parts, surrogate: Surrogate | None) -> Parts:
    from dataclasses import replace

    return replace(parts, surrogate=surrogate)
