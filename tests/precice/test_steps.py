"""Time inside and between windows, and what changes in a window: steps, lengths, rungs of the ladder, versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.reasons import Source
from neuroscale_couple.transport.precice_ids import by_coordinates
from tests.precice.coupling import AITKEN, IQN, Case, Setup, embedded
from tests.precice.test_coupling import (
    DIAGNOSTICS,
    MESH,
    calls_of,
    close,
    converged_as_embedded,
    counted,
    evaluations,
)

pytestmark = [pytest.mark.needs("precice"), pytest.mark.slow, pytest.mark.timeout(300)]

LOAD = 2.0 * 0.02
"""Largest strain of `Setup.load` at the points with x = 1, at time 1, where nothing pushes back."""


@pytest.mark.parametrize(("theirs", "ours"), [(1, 3), (2, 4), (3, 2)])
def test_data_are_read_at_the_time_of_each_step(tmp_path: Path, theirs: int, ours: int) -> None:
    """A load that grows with time: between the macro solver's own steps preCICE interpolates, exactly for a line."""
    setup = Setup(
        scheme="serial-explicit", windows=2, compliance=0.0, substeps=theirs, ours={"precice": {"substeps": ours}}
    )
    ended = Case(tmp_path, setup).run().good
    asked = evaluations(ended)
    times = np.array([call["t"] for call in asked])
    assert np.allclose(times, 0.1 / ours * np.arange(1, 2 * ours + 1), rtol=0, atol=1e-12)
    assert np.allclose([call["largest"] for call in asked], LOAD * times, rtol=1e-9)


def test_windows_of_changing_length_that_iterate(tmp_path: Path) -> None:
    setup = Setup(
        scheme="serial-implicit", acceleration=AITKEN, method="first-participant", steps=[0.05, 0.1, 0.02], windows=3
    )
    case = Case(tmp_path, setup)
    ended = case.run().good
    counted(ended)
    converged_as_embedded(case, ended)
    for window, (t, dt) in enumerate([(0.05, 0.05), (0.15, 0.1), (0.17, 0.02)]):
        found = {(round(c["t"], 9), round(c["dt"], 9)) for c in evaluations(ended) if c["window"] == window}
        assert found == {(t, dt)}, "an iteration starts at the start of its window"


def test_parallel_implicit_iqn_with_substeps(tmp_path: Path) -> None:
    setup = Setup(
        scheme="parallel-implicit", acceleration=IQN, substeps=2, windows=2, ours={"precice": {"substeps": 2}}
    )
    case = Case(tmp_path, setup)
    ended = case.run().good
    counted(ended, substeps=2)
    converged_as_embedded(case, ended)


def test_two_ranks_and_two_meshes_one_of_which_one_rank_does_not_see(tmp_path: Path) -> None:
    meshes = {"Left-Mesh": [[0.0, 0.0], [0.4, 0.0]], "Wide-Mesh": [[1.0, 0.0], [0.3, 1.0], [1.0, 1.0], [0.5, 0.5]]}
    regions = [[[0.0, 0.5], [0.0, 1.0]], [[0.5, 1.0], [0.0, 1.0]]]
    setup = Setup(scheme="serial-explicit", meshes=meshes, ours={"precice": {"regions": regions}})
    case = Case(tmp_path, setup)
    ended = case.run(ranks=2).good
    answered = [evaluations(ended, rank)[0]["ids"] for rank in (0, 1)]
    assert sorted(answered[0] + answered[1]) == list(range(6)), "ids go on from mesh to mesh on any number of ranks"
    sent = np.concatenate([ended.heard[f"{mesh}/sent"][-1] for mesh in meshes])
    after = np.concatenate([ended.heard[f"{mesh}/after"][-1] for mesh in meshes])
    close(after, embedded(case, sent))


def test_value_in_place_of_the_first_zeros(tmp_path: Path) -> None:
    ours = {"precice": {"initial": {"strain.xx": 0.01, "strain.xy": -0.03}}}
    ended = Case(tmp_path, Setup(scheme="parallel-explicit", ours=ours)).run().good
    asked = evaluations(ended)
    assert [call["blank"] for call in asked] == [True, False, False]
    assert asked[0]["largest"] == 0.03 and asked[1]["largest"] == pytest.approx(0.1 * LOAD)


def test_promotion_waits_for_the_window_and_source_error_and_version_are_written(tmp_path: Path) -> None:
    ours = {"model": "wavering", "gate": {"stages": ["uncertainty"]}, "learning": {"mode": "online"}}
    setup = Setup(scheme="serial-implicit", acceleration=AITKEN, extra_write=DIAGNOSTICS, ours=ours)
    setup.write_data = [{"name": n} for n in ("Stress", *DIAGNOSTICS)]
    case = Case(tmp_path, setup)
    ended = case.run().good
    counted(ended)
    versions = {w: {c["version"] for c in evaluations(ended) if c["window"] == w} for w in range(3)}
    assert versions == {0: {4}, 1: {5}, 2: {6}}, "all iterations of a window are answered by one surrogate"
    repeats = [call["version"] for call in ended.calls[0] if call["call"] == "repeat"]
    assert len(repeats) == calls_of(ended).count("evaluate") - 3 and set(repeats) == {4, 5, 6}
    numbers = by_coordinates(np.array(case.setup.meshes[MESH]))
    for window in range(3):
        call = [c for c in evaluations(ended) if c["window"] == window][-1]
        source, error, version = ended.heard[f"{MESH}/after"][window, :, 3:].T
        rows = [call["ids"].index(i) for i in numbers]
        assert np.array_equal(source, np.array(call["source"])[rows])
        assert np.array_equal(error, np.array(call["error"])[rows])
        assert (version == 4 + window).all()
        assert ((error > 0) == (source != Source.FINE)).all(), "a fine answer has no estimated error, another one has"
        assert {Source.FINE, Source.SURROGATE_COARSE} == set(source), "both kinds are to be looked at"
