"""Loading a user's micro simulation: what cannot be used is said before the run; old and new classes are told apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from neuroscale_couple.config.load import load as load_config
from neuroscale_couple.config.schema import Fine, Micro
from neuroscale_couple.errors import ConfigError
from neuroscale_couple.evaluation.check import check
from neuroscale_couple.fine.jobs import Spec
from neuroscale_couple.fine.micro_manager import look
from neuroscale_couple.fine.micro_worker import construct, load, takes_data, wanted
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.values import FieldSpec
from tests.precice.two_scale import Case


def problem() -> OpaqueProblem:
    return OpaqueProblem((FieldSpec("a", ("",), "1"),), (FieldSpec("b", ("",), "1"),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "ZeroDivisionError"),
        ("class Simulation: pass", "has no class MicroSimulation"),
        ("import os; os._exit(5)", "the process that imports it has ended: exit status 5"),
        ("class MicroSimulation:\n    pass", "the coupling repeats windows .* has no get_state and set_state"),
    ],
)
def test_a_simulation_that_cannot_be_used_is_said_before_the_run(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "micro.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        look(Fine(micro=Micro(file="micro", folder=str(tmp_path))), problem())


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded: ModuleNotFoundError: No module named 'gone'"):
        look(Fine(micro=Micro(file="gone.py", folder=str(tmp_path))), problem())
    with pytest.raises(ConfigError, match=r"fine\.micro\.file is missing"):
        look(Fine(), problem())


def test_files_in_folders_and_several_classes_are_found(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "heat.py").write_text("class MicroSimulation0:\n    pass\n")
    for name in ("cells/heat.py", "cells/heat", "cells.heat"):
        micro = Micro(file=name, folder=str(tmp_path), rollback=False)
        assert look(Fine(micro=micro), problem()).name == "MicroSimulation0"


class Old:
    def __init__(self) -> None:
        self.sim_id = -1

    def initialize(self) -> None:
        return None


class New:
    def __init__(self, sim_id: int) -> None:
        self.sim_id = sim_id

    def initialize(self, initial_data: dict[str, Any]) -> None:
        return None

    def requires_initialize(self) -> bool:
        return False


def test_old_and_new_signatures_are_told_apart() -> None:
    old, new = construct(Old, 7), construct(New, 7)
    assert (old.sim_id, new.sim_id) == (-1, 7)
    assert not takes_data(old.initialize) and takes_data(new.initialize)
    assert wanted(old, "initialize") and not wanted(new, "initialize") and not wanted(old, "output")


def test_an_installed_micro_manager_is_preferred_to_the_stand_in(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "micro_manager.py").write_text("class MicroSimulationInterface:\n    real = True\n")
    (tmp_path / "mine_a.py").write_text(
        "from micro_manager import MicroSimulationInterface as Base\nclass MicroSimulation(Base):\n    pass\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "micro_manager", raising=False)
    kind = load(Spec("mine_a", (str(tmp_path),), (), ()))
    assert kind.real
    monkeypatch.delitem(sys.modules, "micro_manager")


def test_check_tells_what_it_found_and_what_is_done_otherwise(tmp_path: Path) -> None:
    case = Case(tmp_path, "serial-implicit", "new").write("class MicroSimulation:\n    solve = get_state = None\n")
    found = {f.what: f for f in check(load_config(tmp_path / "micro-manager-config.json"), tmp_path / "runs")}
    assert "has no get_state and set_state" in found["micro simulation"].said and not found["micro simulation"].good
    case.scheme = "serial-explicit"
    case.write("class MicroSimulation:\n    def output(self): pass\n")
    path = tmp_path / "micro-manager-config.json"
    path.write_text(path.read_text().replace('"adaptivity": false', '"adaptivity": true'))
    found = {f.what: f for f in check(load_config(path), tmp_path / "runs")}
    assert found["micro simulation"].said == "MicroSimulation of micro can be loaded; it has output"
    assert found["Micro Manager"].said.startswith("adaptivity: the gate decides which points are solved")
    assert found["gate"].said == "95 % of the accepted answers within 1 %; --fine-only closes it"
