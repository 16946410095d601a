"""All configuration keys: type, unit, range, default and one sentence each. The single source.

An unknown key is an error; `load.py` names the nearest one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Section):
    """The micro problem; further keys are those of the problem's own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="conduction | composite, or package.module:Class of your own")
    grid: int = Field(32, ge=4, le=4096, description="pixels per side of the micro structure on the finest scale")
    scheme: Literal["rotated", "fourier"] = Field("rotated", description="discretisation of the periodic cell")


class Microstructure(Section):
    """Where the points' micro structures come from, unless the macro solver passes `phase` itself."""

    kind: Literal["fibres", "blobs", "voronoi", "image"] = Field(
        "fibres", description="generator, or a file of your own"
    )
    volume_fraction: tuple[Share, Share] = Field((0.1, 0.4), description="range of the inclusion share")
    size: tuple[Positive, Positive] = Field(
        (0.12, 0.25), description="range of the inclusion diameter, share of the cell"
    )
    seed: int = Field(1, description="random seed; a point's structure depends on seed and global id alone")
    path: str | None = Field(None, description="PNG, .npy [y, x] or .npy [point, y, x] for kind: image")


class Gate(Section):
    """Who may answer, in terms of error."""

    open: bool = Field(True, description="false: every point is answered by the fine solver")
    tolerance: Annotated[Positive, Field(allow_inf_nan=False)] = Field(
        0.02, description="relative error that an accepted answer may have"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95, description="share of accepted answers that must keep the tolerance"
    )
    audit: Share = Field(
        0.01, description="share of accepted points solved by the fine solver when a window has converged"
    )
    audit_every: int = Field(1, ge=1, description="audit every n windows; fewer, larger batches of audits cost less")
    iterations: int | None = Field(
        None, ge=1, description="solve every point from this iteration of a window on (counted from 0); absent: never"
    )
    fine_head: bool = Field(
        True,
        description="ask the fine head where the coarse head is not sure; false: such points are solved at once, which "
        "is faster where the fine solver is cheap (the summary says what each costs)",
    )
    stages: tuple[str, ...] = Field(
        ("domain", "uncertainty", "physical", "audit"),
        description="gate stages in order; package.module:Class of your own",
    )
    seed: int = Field(1, description="random seed of the audits")


class Micro(Section):
    """Micro simulations of the user (classes of the preCICE Micro Manager) for `fine.solver: micro_manager`."""

    file: str | None = Field(None, description="Python file or module with the class MicroSimulation, e.g. micro.py")
    folder: str | None = Field(None, description="folder that it is imported from; absent: that of the configuration")
    workers: int = Field(0, ge=0, description="worker processes of each rank; 0: one for each core")
    timeout: Positive = Field(3600.0, description="longest time of one call of a micro simulation, s")
    output_every: int = Field(1, ge=0, description="call `output` of the simulations every n windows; 0: never")
    rollback: bool = Field(
        True, description="windows may be repeated: states are saved (get_state); false: the coupling is explicit"
    )


class Fine(Section):
    """The trusted solver."""

    solver: str = Field("fft_cell", description="fft_cell | micro_manager, or package.module:Class of your own")
    micro: Micro = Field(default_factory=Micro, description="the user's own micro simulations")
    tolerance: Positive = Field(1e-6, description="relative residual of a converged fine solve")
    max_newton: int = Field(30, ge=1, description="Newton iterations before a solve counts as not converged")
    max_cg: int = Field(400, ge=1, description="CG iterations per Newton iteration")
    alike: Literal["auto", "on", "off"] = Field(
        "auto",
        description="points that ask the same, within 1 % of gate.tolerance, are solved once; auto: where the micro "
        "problem is opaque",
    )
    on_failure: Literal["stop", "keep"] = Field(
        "stop", description="stop the run, or keep the surrogate's answer and flag it"
    )
    memory_mb: Positive = Field(2000.0, description="memory that one call may use, MB; a larger batch is split")
    warm_start_mb: Annotated[float, Field(ge=0.0)] = Field(
        4000.0, description="memory for the starting fields of all points, MB; beyond it solves start cold"
    )
    device: str = Field("auto", description="auto | cpu | cuda")


class Learning(Section):
    """Online active learning."""

    mode: Literal["off", "store", "online"] = Field(
        "store", description="off, store fine answers, or train during the run"
    )
    seconds: Positive = Field(20.0, description="time budget of one training between windows, s")
    steps: int = Field(5000, ge=1, description="optimiser steps of one training at most")
    first_samples: int = Field(500, ge=10, description="fine answers before the first training of a run")
    min_samples: int = Field(500, ge=10, description="new fine answers before a training starts")
    max_trainings: int = Field(3, ge=0, description="trainings in one run at most")
    probes: int = Field(0, ge=0, description="fine solves before each training at loads that the run may meet later")
    ahead: float = Field(
        2.0, ge=1.0, description="probes reach up to this multiple of the present loads, within training.load_range"
    )
    hold_out: Share = Field(
        0.25, description="share of the points kept out of training, for validation and calibration"
    )


class Conserve(Section):
    """One balance over all points: sum of volume * output is restored to the macro solver's total."""

    output: str = Field(description="output column, e.g. stress.xx")
    lower: float | None = Field(None, description="a restored answer goes no lower, in the unit of the output")
    upper: float | None = Field(None, description="a restored answer goes no higher, in the unit of the output")


class Group(Section):
    """Points that have balances of their own: the total of `OUTPUT@NAME` is over them alone."""

    name: str = Field(pattern=r"^[\w-]+$", description="name of the group, e.g. left, for totals of stress.xx@left")
    box: tuple[tuple[float, float], ...] = Field(
        description="range of each coordinate, m, e.g. [[0, 0.5], [0, 1]]; a point belongs to the first box that has it"
    )


class Correction(Section):
    """What the mixed answer must satisfy."""

    admissible: bool = Field(
        True, description="restore symmetry, definiteness and Voigt/Reuss bounds of surrogate tangents"
    )
    conserve: tuple[Conserve, ...] = Field((), description="balances; totals are passed by the macro solver")
    groups: tuple[Group, ...] = Field((), description="groups of points with balances of their own")


class Training(Section):
    """Offline training of the artifact (`neuroscale-couple train`)."""

    structures: int = Field(2000, ge=4, description="micro structures in the data set")
    loads: int = Field(8, ge=1, description="load states per micro structure")
    load_range: dict[str, tuple[Finite, Finite]] = Field(default_factory=dict, description="range of each input column")
    epochs: int = Field(400, ge=1, description="passes over the training data")
    members: int = Field(4, ge=2, description="members of the ensemble")
    width: int = Field(16, ge=4, description="channels of the operator")
    seed: int = Field(1, description="random seed")
    hold_out: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="share of the micro structures kept for calibration and metrics"
    )


class Output(Section):
    """Results."""

    folder: str = Field("runs", description="results go to <folder>/<case>")
    every: int = Field(1, ge=0, description="write fields every n windows; 0: never")
    checkpoint: bool = Field(True, description="write a checkpoint when a window has converged")


class PreciceData(Section):
    """One preCICE data field whose name, unit or sign differs from ours."""

    name: str = Field(description="name of the data field in the preCICE configuration, or of all its components")
    holds: tuple[str, ...] = Field(
        (), description="columns it carries, in order, e.g. [stress.xx] or [tangent.xx.xx]; empty: found by its name"
    )
    unit: str | None = Field(None, description="unit of the macro solver, e.g. Pa; absent: the micro problem's")
    exported: bool = Field(False, description="written for preCICE's own export alone, not for the macro solver")
    factor: float = Field(1.0, description="our value = factor * value in the data field (after the unit)")


class Precice(Section):
    """How the participant of `transport: precice` meets the macro solver."""

    data: tuple[PreciceData, ...] = Field((), description="data fields whose name, unit or sign differs from ours")
    ids: str = Field(
        "coordinates",
        description="where the ids of points, which choose micro structures, come from: coordinates | vertices "
        "(preCICE's order, which depends on the macro solver's ranks) | a scalar data field that is read",
    )
    regions: tuple[tuple[tuple[float, float], ...], ...] = Field(
        (), description="access region of each rank, e.g. [[[0, 1], [0, 2]], ...]; one rank needs none"
    )
    substeps: int = Field(1, ge=1, description="time steps that we make in one time window")
    max_step: Positive | None = Field(
        None, description="longest time step that we make; shorter than the window: several steps"
    )
    window_size: Positive | None = Field(
        None, description="our time step where the preCICE configuration leaves the window to us (first-participant)"
    )
    timeout: Positive = Field(3600.0, description="longest wait for the macro solver, s; then the run ends")
    unconverged: Literal["stop", "continue"] = Field(
        "stop", description="what happens after a window that has not converged within max-iterations"
    )
    initial: dict[str, float] = Field(
        default_factory=dict,
        description="input columns taken where the macro solver has sent nothing yet, e.g. temperature; others are 0",
    )
    volumes: float | str = Field(
        1.0, description="macro volume of each point (quadrature weight), or an .npy file in the order of their ids"
    )


class Neuroscale(Section):
    """Our section of the configuration."""

    transport: Literal["embedded", "mpi", "socket", "replay", "precice"] = Field(
        "embedded", description="how the macro solver reaches us"
    )
    socket: str | None = Field(
        None, description="path of the socket of a service that runs already; absent: transport: socket starts one"
    )
    precice: Precice = Field(default_factory=Precice, description="the participant of transport: precice")
    record: str | None = Field(None, description="write the macro solver's calls to this .npz in the results folder")
    replay: str | None = Field(None, description="recorded .npz that transport: replay plays, relative to the config")
    micro_manager: str | None = Field(
        None, description="micro-manager-config.json that participant, mesh, data and simulations are taken from"
    )
    macro: str | None = Field(None, description="script of the macro solver that `run` starts, relative to the config")
    problem: Problem = Field(description="the micro problem at every point")
    microstructure: Microstructure = Field(
        default_factory=Microstructure, description="where the micro structures come from"
    )
    model: str | None = Field(None, description="artifact, relative to the config; absent: start on the fine solver")
    gate: Gate = Field(default_factory=Gate, description="who may answer a point")
    fine: Fine = Field(default_factory=Fine, description="the trusted solver")
    learning: Learning = Field(default_factory=Learning, description="what happens with fine answers")
    correction: Correction = Field(default_factory=Correction, description="what the mixed answer must satisfy")
    training: Training = Field(default_factory=Training, description="offline training of the artifact")
    output: Output = Field(default_factory=Output, description="where results go")
    settings: dict[str, Any] = Field(default_factory=dict, description="free values for the macro script")


class DataName(Section):
    """One data field of an interface."""

    name: str = Field(description="name of the data field in the preCICE configuration")


class Interface(Section):
    """One coupling mesh, as in the preCICE adapter configuration."""

    mesh_name: str = Field(description="name of the macro mesh in the preCICE configuration")
    read_data: tuple[DataName, ...] = Field((), description="fields that the macro solver sends")
    write_data: tuple[DataName, ...] = Field((), description="fields that the macro solver gets")


class Config(Section):
    """The whole file: the preCICE adapter configuration plus our section."""

    participant_name: str = Field("NeuroScale", description="our name in the preCICE configuration")
    precice_config_file_path: str | None = Field(None, description="preCICE configuration, relative to this file")
    interfaces: tuple[Interface, ...] = Field((), description="coupling meshes")
    neuroscale: Neuroscale = Field(description="our section")
