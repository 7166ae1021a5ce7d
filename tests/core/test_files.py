"""YAML files with repeated keys, and systems that cannot open a folder."""

import os
from pathlib import Path

import pytest

from pah.core.config import InputError
from pah.core.files import read_yaml, write_file


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 1\nseed: 2\n", ("line 2: seed", "line 1")),
        ("seed: 1\ntraining:\n  epochs: 1\n  batch_size: 8\n  epochs: 1\n", ("line 5: epochs", "line 3")),
        ("training: {epochs: 1,\n epochs: 2}\n", ("line 2: epochs", "line 1")),
        ("training: {epochs: 1}\nseed: 1\ntraining: {batch_size: 8}\n", ("line 3: training", "line 1")),
    ],
)
def test_a_repeated_key_is_refused_with_its_line(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_yaml(path)
    assert not [part for part in (*parts, str(path), "expected once") if part not in str(error.value)]


def test_equal_keys_of_different_groups_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("method: {name: pah}\nbackbone: {name: convnet}\n")
    assert read_yaml(tmp_path / "options.yaml") == {"method": {"name": "pah"}, "backbone": {"name": "convnet"}}


def test_a_repeated_key_in_one_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("training: {epochs: 1, epochs: 2}\n")
    with pytest.raises(InputError, match=r"line 1: epochs: expected once"):
        read_yaml(tmp_path / "options.yaml")


def test_a_file_is_written_where_folders_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as windows:
        windows.setattr("pah.core.files.CAN_FLUSH_FOLDERS", False)
        windows.setattr(os, "open", refuse)
        write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
