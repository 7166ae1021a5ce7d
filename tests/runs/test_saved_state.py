"""Checkpoints of older versions of pah, which had fewer options and another fingerprint, still go on."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import assert_same_run, tiny
from pah.cli import main
from pah.training import checkpoint
from pah.training.config import RunConfig


def as_older_version(folder: Path) -> dict[str, Any]:
    """Turn an unfinished run into one of a pah without options for early stopping; return its configuration."""
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    for option in ("patience", "keep_best"):
        del config["training"][option]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    tensors, facts = checkpoint.load(folder / "checkpoint")
    state = {key: value for key, value in facts["state"].items() if "best" not in key and key != "epochs_trained"}
    whole = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    checkpoint.save(folder / "checkpoint", tensors, {"fingerprint": whole, "state": state})
    return config


def test_a_checkpoint_of_an_older_version_goes_on(
    unfinished: Path,
    tmp_path: Path,
    uninterrupted: Callable[[RunConfig], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(unfinished, tmp_path / "run")
    as_older_version(folder)
    assert main(["resume", str(folder)]) == 0
    assert "an older pah made it and did not record its data" in capsys.readouterr().err
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [part["task"] for part in metrics["parts"]] == [0, 1]
    shutil.copy(uninterrupted(tiny()) / "config.yaml", folder)  # it keeps that of the older version
    assert_same_run(folder, uninterrupted(tiny()))


def test_a_checkpoint_of_an_older_version_with_other_options_is_refused(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(unfinished, tmp_path / "run")
    config = as_older_version(folder)
    config["optimizer"]["lr"] = 0.5
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["resume", str(folder)]) == 2
    assert "got one of another configuration" in capsys.readouterr().err
