"""A trained surrogate behind preCICE: a point has one micro structure and answer on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroscale_couple.reasons import Source
from tests import small_models
from tests.precice.coupling import AITKEN, IQN, Case, Ended, Setup, embedded

pytestmark = [pytest.mark.needs("precice"), pytest.mark.slow, pytest.mark.timeout(300)]

MESH = "Macro-Mesh"
HALVES = [[[0.0, 0.5], [0.0, 1.0]], [[0.5, 1.0], [0.0, 1.0]]]
SOURCE = "Neuroscale-Source"


def trained(**changes: Any) -> Setup:
    """A coupling whose points are answered by a small trained surrogate, but for those that it is unsure of."""
    ours = {
        "problem": {"name": "composite", "grid": 16},
        "microstructure": {"kind": "fibres", "size": [0.2, 0.4], "seed": 1},
        "model": str(small_models.artifact("composite")),
        "gate": {"tolerance": 0.5, "confidence": 0.6, "audit": 0.5},
        "learning": {"mode": "store"},
    } | changes.pop("ours", {})
    fields = [{"name": "Stress"}, {"name": SOURCE}]
    setup = Setup(
        scheme="serial-implicit", acceleration=AITKEN, windows=2, extra_write=(SOURCE,), write_data=fields, ours=ours
    )
    for name, value in changes.items():
        setattr(setup, name, value)
    return setup


def ids_and_answers(ended: Ended) -> tuple[list[int], Any, Any]:
    """Ids that our ranks worked on, strain and stress with the source at the end of each window."""
    ids = [i for calls in ended.calls for i in calls[0]["ids"]]
    return sorted(ids), ended.heard[f"{MESH}/sent"], ended.heard[f"{MESH}/after"]


def test_ranks_change_neither_micro_structures_nor_answers(tmp_path: Path) -> None:
    found = []
    for macro_ranks, ranks in ((1, 1), (2, 1), (2, 2)):
        folder = tmp_path / f"{macro_ranks}-{ranks}"
        folder.mkdir()
        case = Case(folder, trained(ours={"precice": {"regions": HALVES if ranks > 1 else []}}))
        ids, sent, after = ids_and_answers(case.run(ranks=ranks, macro_ranks=macro_ranks).good)
        assert ids == list(range(6))
        assert (after[:, :, 3] != Source.FINE).any(), "the surrogate is to answer some points"
        for window in range(2):
            truth = embedded(case, sent[window])
            assert np.abs(after[window, :, :3] - truth).max() <= 1e-5 * np.abs(truth).max()
        found.append(after)
    for other in found[1:]:
        assert np.array_equal(other[:, :, 3], found[0][:, :, 3])
        assert np.abs(other - found[0]).max() <= 1e-5 * np.abs(found[0]).max()


@pytest.mark.parametrize(("scheme", "acceleration"), [("serial-implicit", AITKEN), ("parallel-implicit", IQN)])
def test_ids_from_a_field_of_the_macro_solver(tmp_path: Path, scheme: str, acceleration: str) -> None:
    """The field says 1000, 999 ...; two macro ranks hand the vertices over in another order."""
    named = {"ids": "Point-Id", "regions": HALVES}
    setup = trained(ours={"precice": named}, extra_read=("Point-Id",), read_data=["Strain", "Point-Id"])
    setup.scheme, setup.acceleration = scheme, acceleration
    case = Case(tmp_path, setup)
    sent = '<exchange data="Point-Id" mesh="Macro-Mesh" from="Macro" to="NeuroScale" />'
    case.replace(sent, sent.replace(" />", ' initialize="true" />'))
    ids, sent_strain, after = ids_and_answers(case.run(ranks=2, macro_ranks=2).good)
    assert ids == list(range(995, 1001))
    truth = embedded(case, sent_strain[-1], ids=1000 - np.arange(6))
    assert np.abs(after[-1, :, :3] - truth).max() <= 2e-5 * np.abs(truth).max()
    other = embedded(case, sent_strain[-1])
    assert np.abs(truth - other).max() > 1e-2 * np.abs(truth).max(), "the ids choose the micro structures"


def test_ids_in_the_order_of_the_vertices(tmp_path: Path) -> None:
    case = Case(tmp_path, trained(ours={"precice": {"ids": "vertices"}}))
    _, sent, after = ids_and_answers(case.run().good)
    truth = embedded(case, sent[-1], ids=np.arange(6))
    assert np.abs(after[-1, :, :3] - truth).max() <= 1e-5 * np.abs(truth).max()


def test_field_of_ids_that_nobody_writes(tmp_path: Path) -> None:
    case = Case(
        tmp_path,
        trained(ours={"precice": {"ids": "Point-Id"}}, extra_read=("Point-Id",), read_data=["Strain", "Point-Id"]),
    )
    case.setup.told = {"ids": []}
    case.run().failed(
        "mesh 'Macro-Mesh': data 'Point-Id' (neuroscale.precice.ids) is 0 at all 6 vertices: the macro solver must"
    )


def test_volumes_from_a_file_in_the_order_of_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "volumes.npy", np.arange(5.0))
    case = Case(tmp_path, Setup(scheme="serial-explicit", ours={"precice": {"volumes": "volumes.npy"}}))
    case.run().failed("volumes.npy has shape (5,), but there are 6 vertices")
