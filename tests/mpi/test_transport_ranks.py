"""Embedded and mpi transports on one to five ranks: the same rows, messages on all ranks, idle waiting."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.values import Batch
from tests.mpi.launch import PROGRAMS, Job, launch, run_serial

sys.path.insert(0, str(PROGRAMS))
import scripted

DEPLOYMENTS = ["serial", "spmd 2", "spmd 3", "mpmd 1+1", "mpmd 2+1", "mpmd 1+2", "mpmd 3+2"]


def deploy(deployment: str, asked: dict[str, Any], service: dict[str, Any] | None = None) -> Job:
    """Run macro.py (and service.py) as `serial`, `spmd <ranks>` or `mpmd <macro ranks>+<service ranks>`."""
    kind, _, ranks = deployment.partition(" ")
    if kind == "serial":
        return run_serial("macro.py", {"transport": "embedded", **asked})
    if kind == "spmd":
        return launch((int(ranks), "macro.py", {"transport": "embedded", "mpi": True, **asked}))
    macro, _, services = ranks.partition("+")
    out = {"out": asked["out"]} if "out" in asked else {}
    return launch(
        (int(macro), "macro.py", {"transport": "mpi", **asked}),
        (int(services), "service.py", {**out, **(service or {})}),
    )


def gathered(folder: Path) -> dict[str, Any]:
    """Answers of all macro ranks, in the order of ids."""
    parts = [dict(np.load(path)) for path in sorted(folder.glob("macro*.npz"))]
    ids = np.concatenate([part.pop("ids") for part in parts])
    order = np.argsort(ids)
    assert np.array_equal(ids[order], np.sort(scripted.all_ids()))
    return {name: np.concatenate([part[name] for part in parts], axis=1)[:, order] for name in parts[0]}


def expected() -> dict[str, Any]:
    """The closed form, in the order of ids: window by window, each played twice."""
    points = scripted.points_of(0, 1, "even")
    points = points.take(np.argsort(points.ids))
    steps = [(window, i) for window in range(2) for _ in range(2) for i in range(2)]
    replies = [
        scripted.answer_of(points, Batch(w, i, 0.0, 0.1, scripted.inputs_of(points.ids, w, i)["strain"]))
        for w, i in steps
    ]
    return {
        "stress": np.stack([reply.outputs[:, :3] for reply in replies]),
        "energy": np.stack([reply.outputs[:, 3:] for reply in replies]),
        "tangent": np.stack([reply.tangent for reply in replies]),
        "source": np.stack([reply.source for reply in replies]),
        "reason": np.stack([reply.reason for reply in replies]),
        "error": np.stack([reply.error for reply in replies]),
    }


@pytest.mark.parametrize("split", ["even", "uneven", "permuted"])
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_every_deployment_gives_each_point_its_own_row(deployment: str, split: str, tmp_path: Path) -> None:
    deploy(deployment, {"split": split, "out": str(tmp_path)}).expect(0)
    got, wanted = gathered(tmp_path), expected()
    assert set(got) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    services = 1 if deployment == "serial" else int(deployment[-1])
    assert len(list(tmp_path.glob("closed*"))) == services


@pytest.mark.parametrize("deployment", ["spmd 3", "mpmd 1+3"])
def test_who_owns_a_point_depends_on_its_id_alone(deployment: str, tmp_path: Path) -> None:
    owned = {}
    for split in ("even", "permuted"):
        folder = tmp_path / split
        folder.mkdir()
        deploy(deployment, {"split": split, "out": str(folder)}).expect(0)
        owned[split] = [np.load(folder / f"owned{rank}.npz")["ids"] for rank in range(3)]
    sizes = [len(ids) for ids in owned["even"]]
    assert sum(sizes) == scripted.N
    assert max(sizes) - min(sizes) <= 1
    for even, permuted in zip(owned["even"], owned["permuted"], strict=True):
        np.testing.assert_array_equal(even, permuted)
        assert (np.diff(even) > 0).all()


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1"])
def test_nan_from_one_macro_rank_is_refused_on_all_and_the_run_may_go_on(deployment: str, tmp_path: Path) -> None:
    job = deploy(deployment, {"out": str(tmp_path), "macro_fault": {"kind": "nan", "rank": 1}}).expect(0)
    bad = scripted.points_of(1, 2, "even").ids[1]
    assert (
        f"caught on 1: InputError: the macro solver sent strain.xy = nan at point id {bad} "
        "(rank 1, window 0, iteration 0; 1 point(s) of this rank are not finite)" in job.output
    )
    assert "caught on 0: RankError: rank 1 failed (inputs of window 0, iteration 0): InputError" in job.output
    np.testing.assert_array_equal(gathered(tmp_path)["stress"], expected()["stress"])


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 2+1"])
def test_ranks_that_ask_for_different_steps_are_told(deployment: str) -> None:
    job = deploy(deployment, {"macro_fault": {"kind": "different", "rank": 1}}).expect(0)
    for rank in range(2):
        assert (
            f"caught on {rank}: the ranks do not do the same: rank 0 calls evaluate(t=0.0, dt=0.1, totals=[]), "
            "rank 1 calls evaluate(t=0.0, dt=0.2, totals=[])" in job.output
        )


@pytest.mark.parametrize("deployment", ["spmd 3", "mpmd 2+1"])
def test_an_id_that_two_ranks_give_is_named(deployment: str) -> None:
    job = deploy(deployment, {"duplicate": True}).expect_failure()
    last = int(deployment.split()[1][0]) - 1
    first = scripted.all_ids()[0]
    assert f"point id {first} is given twice, by rank 0 and by rank {last}: ids must be global and unique" in job.output


@pytest.mark.parametrize(
    ("macro", "service", "message"),
    [
        (
            {"digest": "f" * 64},
            {"digest": "0" * 64},
            "given another configuration (hash ffffffffffff) than the service",
        ),
        ({}, {"newer": 1}, "the macro solver speaks version 1 of the wire format, the service version 2"),
        ({"layout": "wrong"}, {}, "expects the inputs heat(x) [W], the service has strain(xx, yy, xy) [1]"),
    ],
    ids=["configuration", "version", "layout"],
)
def test_two_sides_that_do_not_fit_say_so_once_and_end(
    macro: dict[str, Any], service: dict[str, Any], message: str
) -> None:
    job = deploy("mpmd 1+1", macro, service).expect_failure()
    assert job.output.count(message) == 1, job.output


def test_a_side_without_the_other_says_how_to_start() -> None:
    job = launch((2, "macro.py", {"transport": "mpi"})).expect_failure()
    assert "no rank of this MPI job is a 'service' (there are: 2 x macro); start both sides together" in job.output


def test_mpirun_without_a_communicator_is_refused() -> None:
    job = launch((2, "macro.py", {"transport": "embedded"})).expect_failure()
    assert "this process is one of 2 started by mpirun, but connect() got no communicator" in job.output


@pytest.mark.parametrize("deployment", ["spmd 2", "mpmd 1+1"])
def test_waiting_for_the_other_side_burns_no_core(deployment: str) -> None:
    """One side comes a second late: a rank that polls without sleeping would use that second."""
    late = {"spmd 2": 1, "mpmd 1+1": 0}[deployment]
    job = deploy(deployment, {"macro_fault": {"kind": "idle", "rank": late}}).expect(0)
    used = [float(text) for text in re.findall(r"used ([\d.]+) s", job.output)]
    assert len(used) == 2
    assert max(used) < 0.5, job.output


def test_the_macro_solver_waits_idly_for_a_slow_service() -> None:
    fault = {"kind": "sleep", "rank": 0, "window": 0}
    job = deploy("mpmd 1+1", {"macro_fault": {"kind": "idle", "rank": 9}}, {"fault": fault}).expect(0)
    assert max(float(text) for text in re.findall(r"used ([\d.]+) s", job.output)) < 0.5, job.output


@pytest.mark.parametrize("deployment", ["mpmd 2+1", "mpmd 3+2"])
def test_each_macro_rank_gets_its_own_state_back(deployment: str, tmp_path: Path) -> None:
    deploy(deployment, {"out": str(tmp_path)}).expect(0)
    job = deploy(deployment, {"out": str(tmp_path)}, {"fault": {"kind": "resume", "rank": 0}}).expect(0)
    assert job.output.count("resumed on") == int(deployment.split()[1][0])


def test_resuming_with_other_macro_ranks_is_refused(tmp_path: Path) -> None:
    deploy("mpmd 2+1", {"out": str(tmp_path)}).expect(0)
    job = deploy("mpmd 3+1", {"out": str(tmp_path)}, {"fault": {"kind": "resume", "rank": 0}}).expect_failure()
    assert "the checkpoint holds the state of 2 macro rank(s), this run has 3" in job.output


@pytest.mark.parametrize("recorded_on", ["spmd 2", "mpmd 2+1"])
def test_a_recording_of_several_ranks_holds_all_points(recorded_on: str, tmp_path: Path) -> None:
    from neuroscale_couple.transport.embedded import EmbeddedClosure
    from neuroscale_couple.transport.replay import Script, play

    path = tmp_path / "calls.npz"
    deploy(recorded_on, {"split": "permuted", "out": str(tmp_path), "record": str(path)}).expect(0)
    script = Script.load(path)
    heard = []
    with EmbeddedClosure(lambda points, comm: scripted.Scripted(points, comm, {}), None, script.points) as closure:
        play(script, closure, lambda _, outputs: heard.append(outputs["stress"]))
    order = np.argsort(script.points.ids)
    np.testing.assert_array_equal(np.stack(heard)[:, order], expected()["stress"])
