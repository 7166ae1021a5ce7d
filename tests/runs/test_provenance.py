"""A run goes on only with the data that it began with, wherever they are; its parts are recorded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from conftest import assert_same_run, contents, run_until_death
from pah.cli import main, options
from pah.core import distributed
from pah.core.config import InputError
from pah.data.sources import load_digits, load_source
from pah.runs import provenance
from pah.runs.run import start_run
from pah.training import checkpoint
from pah.training.config import load_stream

WORDS = ("split", "--data", "photos", "--tasks", "2", "--epochs", "2", "--backbone", "convnet", "--backbone.width", "4")
PER_CLASS = 10  # images

Change = Callable[[Path], object]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder `photos` of four class folders, in the working directory."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(4 * PER_CLASS, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        file = tmp_path / "photos" / "abcd"[i % 4] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "photos"


@pytest.fixture
def stopped(photos: Path) -> Path:
    """Return the folder of a run on the photos that died in its first task."""
    run_until_death(options.run_request(WORDS).config, photos.parent / "run", 2, checkpoint_seconds=0)
    return photos.parent / "run"


@pytest.fixture
def finished(photos: Path) -> Path:
    """Return the folder of a finished run on the photos, with snapshots."""
    start_run(options.run_request([*WORDS, "--snapshots", "true"]).config, photos.parent / "run")
    return photos.parent / "run"


def resume(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Return exit status and stderr of `pah resume run`."""
    status = main(["resume", "run", *words])
    return status, capsys.readouterr().err


CHANGES: dict[str, Change] = {
    "an image more": lambda photos: shutil.copy(photos / "a" / "0.png", photos / "a" / "99.png"),
    "an image less": lambda photos: (photos / "a" / "0.png").unlink(),
    "another image": lambda photos: shutil.copy(photos / "b" / "1.png", photos / "a" / "0.png"),
    "a class renamed": lambda photos: (photos / "d").rename(photos / "e"),
    "an image of another class": lambda photos: (photos / "a" / "0.png").rename(photos / "b" / "0.png"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_does_not_go_on_with_other_data(kind: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(stopped)
    CHANGES[kind](stopped.parent / "photos")
    status, err = resume(capsys)
    assert status == 2
    assert err.startswith("pah: run: expected the data with which the run began (4 classes, 32 training and 8 test")
    assert "--data PATH" in err
    assert err.count("\n") == 1
    assert contents(stopped) == before


def test_a_fingerprint_depends_on_the_content_alone(photos: Path) -> None:
    first = load_source("photos").fingerprint
    shutil.copytree(photos, "elsewhere/copies")
    for file in Path("elsewhere").rglob("*.png"):
        os.utime(file, (0, 0))
    assert load_source("elsewhere/copies").fingerprint == first
    for kind, change in CHANGES.items():
        shutil.copytree(photos, kind)
        change(Path(kind))
        assert load_source(kind).fingerprint != first, kind
    assert load_digits().fingerprint == "91f1a2b66fe9d372"  # on every machine


def test_a_run_goes_on_with_the_same_data_at_another_place(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = options.run_request([*WORDS, "--snapshots", "true"]).config
    finished.rename("reference")
    run_until_death(config, finished, 2, checkpoint_seconds=0)
    Path("photos").rename("moved")
    status, err = resume(capsys)
    assert status == 2
    assert "run/config.yaml: data: expected the folder 'photos', relative to" in err
    assert "add --data PATH" in err
    assert main(["run", *WORDS, "--data", "moved", "--snapshots", "true", "--out", "run", "--resume_if_there"]) == 0
    assert "data: moved\n" in (finished / "config.yaml").read_text()
    Path("moved").rename("photos")
    assert resume(capsys, "--data", "photos") == (0, "")  # of a finished run
    assert "data: photos\n" in (finished / "config.yaml").read_text()
    learner = json.loads((finished / "model" / "learner.json").read_text())
    assert {task["data"] for task in learner["tasks"]} == {"moved"}
    shutil.copy("reference/model/learner.json", finished / "model")  # which names the place
    assert_same_run(finished, Path("reference"))


def test_a_relative_place_is_not_looked_up_on_the_hub(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("pah.data.located._locate_on_hub", asked)
    (stopped.parent / "other").mkdir()
    monkeypatch.chdir(stopped.parent / "other")
    assert main(["resume", "../run"]) == 2
    err = capsys.readouterr().err
    assert f"expected the folder 'photos', relative to {stopped.parent} as it was" in err
    assert err.count("\n") == 1
    assert main(["resume", "../run", "--data", "../photos"]) == 0


def test_a_place_that_was_never_recorded_is_not_silently_taken_for_a_hub_id(stopped: Path) -> None:
    config = options.read_config(stopped / "config.yaml")
    Path("photos").rename("moved")
    with pytest.warns(UserWarning, match="'photos' is no folder here, so it was taken for a hub id"):
        provenance.say_hub_place(config, {}, stopped)


def test_a_diagnosis_needs_the_data_of_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").rename("moved")
    assert main(["diagnose", "run"]) == 2
    assert "expected the folder 'photos'" in capsys.readouterr().err
    assert main(["diagnose", "run", "--data", "moved"]) == 0
    (finished / "diagnosis.json").unlink()
    CHANGES["an image more"](Path("moved"))
    assert main(["diagnose", "run", "--data", "moved"]) == 2
    assert "expected the data with which the run began" in capsys.readouterr().err
    assert not (finished / "diagnosis.json").exists()


def forget_provenance(folder: Path) -> None:
    """Turn a run's checkpoint and metrics into those of an older pah, which recorded no data."""
    path = folder / "checkpoint" / "state.safetensors"
    tensors, facts = checkpoint.load(path.parent)
    for key in ("data_fingerprint", "data_counts", "data_place", "parts"):
        facts.pop(key)
    checkpoint.save(path.parent, tensors, facts)
    if (folder / "metrics.json").exists():
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k in metrics_before()}))


def metrics_before() -> set[str]:
    return {"benchmark", "method", "seed", "accuracy_matrix", "versions", "device", "processes", "commit"}


def test_a_run_of_an_older_version_goes_on_with_a_line_that_its_data_are_unknown(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_provenance(stopped)
    status, err = resume(capsys)
    assert status == 0
    assert err.count("\n") == 1
    assert "could not be checked for changes" in err
    metrics = json.loads((stopped / "metrics.json").read_text())
    assert metrics["data_fingerprint"] == load_source("photos").fingerprint
    first, second = metrics["parts"]
    assert (first["task"], first["versions"]) == (0, None)
    assert (second["task"], second["epoch"], second["step"]) == (0, 0, 1)
    forget_provenance(stopped)
    with pytest.warns(UserWarning, match="could not be checked for changes"):
        provenance.require_same_data(
            json.loads((stopped / "metrics.json").read_text()),
            load_stream(options.read_config(stopped / "config.yaml")),
            stopped,
        )


def test_a_resume_with_other_threads_is_said_and_recorded(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "9.9", "threads": "64"})
    status, err = resume(capsys)
    assert status == 0
    assert err.count("\n") == 1
    assert f"threads 64 instead of {torch.get_num_threads()}" in err
    assert "torch 9.9 instead of" in err
    metrics = json.loads((stopped / "metrics.json").read_text())
    first, second = metrics["parts"]
    assert (first["task"], first["epoch"], first["step"]) == (0, 0, 0)
    assert first["versions"] == metrics["versions"]
    assert (second["epoch"], second["step"], second["versions"]["threads"]) == (0, 1, "64")


def test_a_run_under_the_same_conditions_has_one_part(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(capsys) == (0, "")
    metrics = json.loads((stopped / "metrics.json").read_text())
    (part,) = metrics["parts"]
    assert part == {key: metrics[key] for key in provenance.CONDITIONS} | {"task": 0, "epoch": 0, "step": 0}
    assert metrics["data_counts"] == {"classes": 4, "train": 32, "test": 8}


def test_processes_with_different_data_do_not_train_together(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options.run_request(WORDS).config
    monkeypatch.setattr(distributed, "run_on_main_process", lambda _: "the fingerprint in the main process")
    with pytest.raises(InputError, match="data: expected the same images in every process"):
        provenance.begin(config, load_stream(config), torch.device("cpu"))


def test_the_checkpoint_records_the_data(stopped: Path) -> None:
    with safe_open(str(stopped / "checkpoint" / "state.safetensors"), framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts["data_fingerprint"] == load_source("photos").fingerprint
    place = {"path": "photos", "is_folder": True, "working_directory": str(stopped.parent)}
    assert facts["data_place"] == place
    assert safetensors.torch.load_file(stopped / "checkpoint" / "state.safetensors")
