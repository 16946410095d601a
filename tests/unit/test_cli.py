"""The command line: exit status and plain messages; what runs is tested in tests/cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuroscale_couple.cli import COLD, FINE_ONLY, main, overrides_of, parser
from neuroscale_couple.config.load import load
from tests.tiny_case import copy_case, options


def status(*arguments: str) -> int:
    return main([str(argument) for argument in arguments])


def test_misspelt_key_ends_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert status("check", str(config), "--set", "gate.tolernce=0.1") == 1
    err = capsys.readouterr().err
    assert err.startswith("neuroscale-couple: error: ")
    assert "did you mean 'neuroscale.gate.tolerance'?" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from neuroscale_couple.errors import ConfigError

    with pytest.raises(ConfigError):
        status("check", str(tmp_path / "nowhere.yaml"), "--debug")


@pytest.mark.parametrize("text", ["gate.tolerance", "=3"])
def test_set_needs_key_and_value(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert status("check", str(tmp_path / "x.yaml"), "--set", text) == 1
    assert f"--set {text}: expected KEY=VALUE, e.g. --set gate.tolerance=0.01" in capsys.readouterr().err


def test_options_become_overrides() -> None:
    args = parser().parse_args(
        ["run", "x.yaml", "--set", "gate.tolerance=1e-3", "--set", "model=null", "--out", "here"]
    )
    assert overrides_of(args) == {"gate.tolerance": 1e-3, "model": None, "output.folder": "here"}


def test_fine_only_and_cold_are_valid_overrides(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    fine_only = load(config, FINE_ONLY).config.neuroscale
    assert (fine_only.model, fine_only.gate.open, fine_only.learning.mode) == (None, False, "off")
    cold = load(config, COLD).config.neuroscale
    assert (cold.model, cold.gate.open, cold.learning.mode) == (None, True, "online")


def test_fine_only_runs_of_warm_and_cold_are_the_same(tmp_path: Path) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert load(config, FINE_ONLY).digest == load(config, COLD | FINE_ONLY).digest


def test_run_without_a_script_says_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert status("run", str(config), "--set", "macro=null") == 1
    assert "neuroscale.macro names no script; `run` needs one, e.g. macro: plate.py" in capsys.readouterr().err


def test_compare_needs_the_embedded_transport(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert status("run", str(config), "--compare", "--set", "transport=mpi") == 1
    assert "--compare needs transport: embedded; make the two runs one by one" in capsys.readouterr().err


def test_report_without_results_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert status("report", str(config), "--out", str(tmp_path / "runs")) == 1
    assert f"no results in {tmp_path / 'runs' / 'plate'}; run the case first, or give --out" in capsys.readouterr().err


def test_report_shows_the_options_that_the_run_was_made_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "neuroscale.yaml"
    config.write_text("neuroscale: {problem: {name: composite}, macro: plate.py}")
    (tmp_path / "plate.py").write_text(
        "import sys\nimport numpy as np\nfrom neuroscale_couple import Points, connect\n"
        "with connect(sys.argv[1], None, Points(np.arange(2), np.zeros((2, 2)), np.ones(2))) as closure:\n"
        "    closure.evaluate({'strain': np.full((2, 3), 1e-3)}, 0.0, 1.0)\n"
        "    closure.commit()\n"
    )
    options = ("--set", "problem.grid=8", "--set", "gate.tolerance=0.125", "--set", "fine.device=cpu")
    assert status("run", str(config), "--out", str(tmp_path), *options) == 0
    capsys.readouterr()
    assert status("report", str(config), "--out", str(tmp_path)) == 0
    case = tmp_path / tmp_path.name
    assert json.loads((case / "summary.json").read_text())["tolerance"] == 0.125
    assert "tolerance: 0.125" in (case / "report.html").read_text()


def test_train_without_a_path_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert status("train", str(config), "--set", "model=null") == 1
    assert "neuroscale.model names no file for the trained model, e.g. model: model.pt" in capsys.readouterr().err


def test_error_of_the_macro_script_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    script = config.parent / "plate.py"
    script.write_text("x = 1\nraise ValueError('the mesh is empty')\n")
    assert status("run", str(config), "--out", str(tmp_path / "runs")) == 1
    err = capsys.readouterr().err
    assert f"ValueError: the mesh is empty ({script}, line 2; --debug shows the whole traceback)" in err


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "neuroscale.yaml").write_text("neuroscale: {problem: {name: composite}, macro: plate.py}")
    (tmp_path / "plate.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(SystemExit) as left:
        status("run", str(tmp_path / "neuroscale.yaml"), "--out", str(tmp_path))
    assert left.value.code == 130
    said = "neuroscale-couple: interrupted; with --resume it goes on after the last committed window\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("leaving", ["sys.exit(3)", "sys.exit('no licence')"])
def test_macro_script_that_gives_up_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], leaving: str
) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    (config.parent / "plate.py").write_text(f"import sys\n{leaving}\n")
    assert status("run", str(config), "--out", str(tmp_path / "runs")) == 1
    assert "the macro script" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "plate" / "run" / "run.json").exists()


def test_check_lists_findings_and_fails_on_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy_case(tmp_path / "plate", model=False)
    assert status("check", str(config), *options()) == 1
    out = capsys.readouterr().out
    assert "✓ fine solver:" in out
    assert "✗ model:" in out
    assert "1 to put right" in out
    assert status("check", str(config), *options(model=None)) == 0
    assert "all good" in capsys.readouterr().out


def test_unknown_command_and_help_follow_the_conventions() -> None:
    env = os.environ | {"PYTHONWARNINGS": "error"}
    for arguments, code in ((["--help"], 0), (["fly"], 2), ([], 2)):
        command = [sys.executable, "-m", "neuroscale_couple.cli", *arguments]
        assert subprocess.run(command, capture_output=True, env=env, check=False).returncode == code
