"""Artifacts: sealed, checked before anything in them is read, and refused in plain sentences."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from neuroscale_couple.config.schema import Problem
from neuroscale_couple.errors import ArtifactError
from neuroscale_couple.physics import make_problem
from neuroscale_couple.surrogate import artifact, load
from tests import small_models


@pytest.fixture
def path(tmp_path: Path) -> Path:
    copy = tmp_path / "model.pt"
    shutil.copyfile(small_models.artifact("composite"), copy)
    return copy


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load(path, small_models.problem("composite"), "cpu")
    return str(caught.value)


def test_a_sealed_artifact_loads_and_is_small(path: Path) -> None:
    surrogate = load(path, small_models.problem("composite"), "cpu")
    assert surrogate.card.format == 1
    assert path.stat().st_size < 2_000_000
    assert path.read_bytes()[-64:].decode() == artifact.read(path)[2]


def test_weights_lie_beside_as_safetensors() -> None:
    assert small_models.artifact("composite").with_suffix(".safetensors").exists()


def test_nothing_is_pickled_outside_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        assert any(name.endswith("extra/card.json") for name in file.namelist())


def test_missing_file(tmp_path: Path) -> None:
    text = refusal(tmp_path / "none.pt")
    assert text.startswith(f"{tmp_path / 'none.pt'}: cannot be read (No such file or directory)")


def test_not_an_artifact(path: Path) -> None:
    path.write_bytes(b"hello, I am a text file, and a long one at that: " * 10)
    assert "is not a surrogate artifact (a TorchScript archive starts with 'PK', got b'hell')" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_file(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is truncated or not a surrogate artifact" in refusal(path)


def test_truncated_to_nothing(path: Path) -> None:
    path.write_bytes(b"")
    assert "is not a surrogate artifact" in refusal(path)


@pytest.mark.parametrize("where", [100, -100, 5000])
def test_one_changed_byte_is_noticed(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(bytes(content))
    text = refusal(path)
    stated = bytes(content[-64:]).decode()
    assert re.search(rf"is damaged: expected SHA-256 {stated}, got [0-9a-f]{{64}}; copy or train it again", text)


def test_artifact_of_another_problem(path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        load(path, make_problem(Problem(name="conduction", grid=16)), "cpu")
    expected = "belongs to another micro problem: name: expected 'conduction' (config), got 'composite' (artifact)"
    assert expected in str(caught.value)


def test_artifact_of_another_material_names_the_constant(path: Path) -> None:
    matrix = {"E": 7000.0, "nu": 0.35, "exponent": 0.5, "reference_strain": 0.01}
    other = make_problem(Problem(name="composite", grid=16, matrix=matrix))  # type: ignore[call-arg]
    with pytest.raises(ArtifactError, match=r"material\.matrix\.E: expected 7000\.0 \(config\), got 5000\.0"):
        load(path, other, "cpu")


def test_a_sealed_archive_without_a_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.txt", "nothing")
    artifact.write(path, path.read_bytes())
    assert "is sealed but holds no card.json" in refusal(path)


def test_card_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"artifact format: expected 1, got 7; train it again"):
        artifact.parse_card(tmp_path / "model.pt", b'{"format": 7}')


def test_unreadable_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its card cannot be read"):
        artifact.parse_card(tmp_path / "model.pt", b"{")


def test_writing_replaces_the_whole_file(path: Path) -> None:
    content, _, digest = artifact.read(path)
    assert artifact.check_seal(path, content) == digest
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]
