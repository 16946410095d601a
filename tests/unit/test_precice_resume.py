"""After which window a coupling by preCICE goes on, and what is left of its configuration then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroscale_couple.checkpoint import Checkpoint
from neuroscale_couple.config.precice_xml import PreciceXml
from neuroscale_couple.errors import CheckpointError, ConfigError
from neuroscale_couple.transport.precice_resume import MACRO, SERVICE, common_window, shortened

XML = """<?xml version="1.0" encoding="UTF-8" ?>
<!-- Größe: <max-time value="7" /> -->
<precice-configuration>
  <participant name="Macro" />
  <participant name="NeuroScale" />
  <coupling-scheme:serial-implicit>
    <participants first="Macro" second="NeuroScale" />
    <max-time
      value='0.9'/><max-time-windows value="9" />
    <time-window-size value="0.1" />
  </coupling-scheme:serial-implicit>
</precice-configuration>
"""


def written(tmp_path: Path, old: str = "", new: str = "") -> PreciceXml:
    path = tmp_path / "precice-config.xml"
    assert old in XML
    path.write_text(XML.replace(old, new), encoding="utf-8")
    return PreciceXml(path)


def keep(folder: Path, windows: list[int], digest: str = "a") -> None:
    checkpoint = Checkpoint(folder, None, digest)
    folder.mkdir()
    for window in windows:
        checkpoint.save(window, {"macro": {"u": np.ones(2)}}, {})


def test_the_rest_is_exact_and_all_else_stays(tmp_path: Path) -> None:
    left = shortened(written(tmp_path), "NeuroScale", "Macro", 3, tmp_path / "run")
    assert left.path == tmp_path / "run" / "precice-config.resumed.xml"
    expected = XML.replace("'0.9'", "'0.6'").replace('value="9"', 'value="6"')
    assert left.path.read_text(encoding="utf-8") == expected, "0.9 - 3 * 0.1 in decimals"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('<time-window-size value="0.1" />', '<time-window-size value="-1" />', "needs windows of a fixed length"),
        ('<time-window-size value="0.1" />', "", "needs windows of a fixed length"),
        ('<time-window-size value="0.1" />', '<time-window-size value="?" />', "has the value '\\?', no number"),
        ('<participant name="Macro" />', '<participant name="Macro" /><participant name="Third" />', "there are 3"),
        ("<max-time\n      value='0.9'/><max-time-windows value=\"9\" />", "", "needs an end: <max-time> or"),
    ],
)
def test_what_cannot_be_shortened_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        shortened(written(tmp_path, old, new), "NeuroScale", "Macro", 3, tmp_path)


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"all 9 windows of this run are done .*line 9.*report"):
        shortened(written(tmp_path), "NeuroScale", "Macro", 9, tmp_path)
    assert not (tmp_path / "precice-config.resumed.xml").exists()


@pytest.mark.parametrize(
    ("service", "macro", "window"), [([4, 5], [3, 4], 4), ([4, 5], [4, 5], 5), ([4], [4, 5], 4), ([1], [0, 1], 1)]
)
def test_the_newest_window_that_both_have(tmp_path: Path, service: list[int], macro: list[int], window: int) -> None:
    keep(tmp_path / SERVICE, service)
    keep(tmp_path / MACRO, macro)
    assert common_window(tmp_path) == window


def test_none_in_common_is_an_error(tmp_path: Path) -> None:
    keep(tmp_path / SERVICE, [1])
    keep(tmp_path / MACRO, [0])
    with pytest.raises(CheckpointError, match=r"service has kept windows \[1\], the macro solver \[0\]: there is none"):
        common_window(tmp_path)


def test_a_macro_solver_that_keeps_its_own_state(tmp_path: Path) -> None:
    keep(tmp_path / SERVICE, [1, 2])
    assert common_window(tmp_path) is None
    keep(tmp_path / MACRO, [1, 2], digest="of another configuration")
    assert common_window(tmp_path) is None


def test_an_older_window_that_is_asked_for(tmp_path: Path) -> None:
    keep(tmp_path / SERVICE, [1, 2])
    checkpoint = Checkpoint(tmp_path / SERVICE, None, "a")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read \(window 3 was not kept\)"):
        checkpoint.load(3)
    assert checkpoint.load(1) is not None
    checkpoint.save(2, {"macro": {}}, {})
    assert common_window(tmp_path) is None and checkpoint.load(2) is not None
