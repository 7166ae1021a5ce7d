"""A learner folder holds the old or the new learner, whatever happens during a save, and damage is detected."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from test_learner import QUICK, lesson, same

from pah import ContinualLearner, InputError
from pah.core.files import locked
from pah.learner import store

DAMAGES = 60  # positions at which each file is truncated, and at which a bit of it is flipped


@pytest.fixture(scope="module")
def learners() -> tuple[ContinualLearner, ContinualLearner]:
    """Return a learner after one lesson and one after two. Do not change them."""
    first, second = (ContinualLearner(config=QUICK) for _ in range(2))
    for learner in (first, second):
        learner.learn("low", lesson(0, 1))
    second.learn("high", lesson(2, 3, 4))
    return first, second


@pytest.fixture
def folder(learners: tuple[ContinualLearner, ContinualLearner], tmp_path: Path) -> Path:
    """Return a folder with the first learner."""
    write(tmp_path / "digits", learners[0])
    return tmp_path / "digits"


def write(folder: Path, learner: ContinualLearner) -> None:
    """Write the learner into the folder, whatever it holds."""
    store.save(folder, learner.predictor.record, learner.predictor.method.network)


def refused_or_loaded(folder: Path) -> ContinualLearner | None:
    """Return the learner in the folder; None if it is refused with one line that names the folder."""
    try:
        return ContinualLearner.load(folder)
    except InputError as error:
        message = str(error)
    assert str(folder) in message
    assert "\n" not in message
    return None


@pytest.mark.parametrize("name", ["learner.json", "model.safetensors"])
def test_truncation_and_flipped_bits_are_detected(
    folder: Path, name: str, learners: tuple[ContinualLearner, ContinualLearner]
) -> None:
    path, content = folder / name, (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    undetected = []
    for position in sorted({0, 1, len(content) - 2, *rng.integers(len(content) - 1, size=DAMAGES).tolist()}):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        for damaged in (content[:position], bytes(flipped)):
            path.write_bytes(damaged)
            loaded = refused_or_loaded(folder)
            # damage to white space between JSON tokens changes nothing
            if loaded and (not same(loaded, learners[0]) or loaded.tasks != learners[0].tasks):
                undetected.append(position)
    assert not undetected
    path.write_bytes(content)
    assert same(ContinualLearner.load(folder), learners[0])


def test_tampered_names_and_weights_of_another_learner_are_refused(
    folder: Path, learners: tuple[ContinualLearner, ContinualLearner], tmp_path: Path
) -> None:
    path = folder / "learner.json"
    text = path.read_text()
    path.write_text(text.replace('"digit 0"', '"digit 9"'))
    with pytest.raises(InputError, match=r"learner\.json.*checksum"):
        ContinualLearner.load(folder)
    path.write_text(text)
    write(tmp_path / "other", learners[1])
    (folder / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors.*checksum"):
        ContinualLearner.load(folder)


def test_a_newer_format_and_other_json_are_refused(folder: Path) -> None:
    path = folder / "learner.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": store.FORMAT + 1}))
    with pytest.raises(InputError, match="a newer pah wrote it; update pah"):
        ContinualLearner.load(folder)
    others: list[object] = [[], {}, {"format": "2"}, 3]
    for other in others:
        path.write_text(json.dumps(other))
        with pytest.raises(InputError, match="expected a learner, got JSON of something else"):
            ContinualLearner.load(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"expected a learner folder, which holds learner\.json"):
        ContinualLearner.load(folder)


def test_the_first_format_is_still_read(folder: Path, learners: tuple[ContinualLearner, ContinualLearner]) -> None:
    path = folder / "learner.json"
    content = json.loads(path.read_text())
    keys = ("sha256", "method", "backbone", "seed", "image_shape", "normalization", "class_order")
    tasks = [{key: task[key] for key in ("name", "classes")} for task in content["tasks"]]
    path.write_text(json.dumps({key: content[key] for key in keys} | {"format": 1, "tasks": tasks, "data": "digits"}))
    old, pixels = ContinualLearner.load(folder), lesson(0, 1, part="test")[0]
    assert [(task.labels, task.data, task.temperature) for task in old.tasks] == [((0, 1), "digits", 1.0)]
    assert old.history == ()
    answers = [[answer.label for answer in learner.predict(pixels, task="low")] for learner in (old, learners[0])]
    assert answers[0] == answers[1]
    old.learn("more", lesson(5, 6))
    old.save(folder)
    assert [task.name for task in ContinualLearner.load(folder).tasks] == ["low", "more"]


def test_a_learner_without_preprocessing_resizes_as_ever(folder: Path) -> None:
    path = folder / "learner.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    usual = {"interpolation": "bilinear", "crop_share": 1.0}
    assert content["preprocessing"] == {"image_size": 8, **content["normalization"], **usual}
    own = {"interpolation": "bicubic", "crop_share": 0.9}
    for kept, expected in (({}, usual), ({"preprocessing": own}, own)):
        stored = {key: value for key, value in content.items() if key != "preprocessing"} | kept
        path.write_text(json.dumps(stored | {"checksum": store._checksum(stored)}))
        assert dataclasses.asdict(ContinualLearner.load(folder).predictor.record.resizing) == expected
    for wrong in ({"crop_share": 2}, {"interpolation": 3}, {"crop_share": "all"}, None):
        stored = content | {"preprocessing": wrong}
        path.write_text(json.dumps(stored | {"checksum": store._checksum(stored)}))
        with pytest.raises(InputError, match=r"learner\.json|crop_share|interpolation") as caught:
            ContinualLearner.load(folder)
        assert "\n" not in str(caught.value)


def test_drift_of_the_second_format_is_dropped(folder: Path) -> None:
    path = folder / "learner.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content["history"][0]["drift"] = {"low": 0.25}
    for version, expected in ((2, {}), (3, {"low": 0.25})):
        older = content | {"format": version}
        path.write_text(json.dumps(older | {"checksum": store._checksum(older)}))
        assert ContinualLearner.load(folder).history[0].drift == expected
        path.write_text(json.dumps(older | {"seed": 7, "checksum": store._checksum(older)}))
        with pytest.raises(InputError, match="checksum"):
            ContinualLearner.load(folder)


class PowerCutError(BaseException):
    """Simulates a power cut: nothing in pah catches it."""


def write_until(step: int, folder: Path, learner: ContinualLearner) -> bool:
    """Write the learner with a power cut before that step of writing, from 0; return whether it was completed."""
    reached = 0

    def interrupted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal reached
            reached += 1
            if reached > step:  # every later step fails, too: nothing runs after a power cut
                raise PowerCutError
            return function(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, interrupted(getattr(owner, name)))
        try:
            write(folder, learner)
        except PowerCutError:
            return False
    return True


def test_a_power_cut_leaves_the_old_or_the_new_learner_and_so_does_a_second_one(
    learners: tuple[ContinualLearner, ContinualLearner], tmp_path: Path
) -> None:
    first, second = learners
    results = []
    for step in count():
        folder = tmp_path / str(step)
        write(folder, first)
        done = write_until(step, folder, second)
        results.append(ContinualLearner.load(folder))
        assert same(results[-1], second if len(results[-1].tasks) == 2 else first)
        if done:
            break
        for second_step in range(step + 3):
            damaged = tmp_path / f"{step}-{second_step}"
            shutil.copytree(folder, damaged)
            write_until(second_step, damaged, first)
            assert same(ContinualLearner.load(damaged), results[-1]) or same(ContinualLearner.load(damaged), first)
    tasks = [len(learner.tasks) for learner in results]
    assert tasks == sorted(tasks)
    assert set(tasks) == {1, 2}
    assert step > 4


def test_a_full_disk_says_so_and_keeps_the_old_learner(
    folder: Path, learners: tuple[ContinualLearner, ContinualLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing in range(6):  # of six fsyncs: of the weights, learner.json and the card, each the file and its folder
        write(folder, learners[0])
        learner = ContinualLearner.load(folder)
        learner.learn("more", lesson(5, 6))
        flushed = 0

        def full(_: int, failing: int = failing) -> None:
            nonlocal flushed
            flushed += 1
            if flushed > failing:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(InputError, match="No space left on device"):
                learner.save(folder)
        # from the second fsync of learner.json on, the new learner is valid
        assert same(ContinualLearner.load(folder), learners[0] if failing < 3 else learner)
        assert not [file for file in folder.iterdir() if file.name.endswith((".new", ".next"))]
        learner.save(folder)  # after space was freed
        assert same(ContinualLearner.load(folder), learner)


def test_two_copies_of_a_learner_do_not_overwrite_each_other(folder: Path) -> None:
    mine, theirs = ContinualLearner.load(folder), ContinualLearner.load(folder)
    theirs.learn("theirs", lesson(5, 6))
    theirs.save(folder)
    mine.learn("mine", lesson(7, 8))
    with pytest.raises(InputError, match="got another, or one that was taught since"):
        mine.save(folder)
    with locked(folder), pytest.raises(InputError, match="in use by another process"):
        theirs.save(folder)
    assert [task.name for task in ContinualLearner.load(folder).tasks] == ["low", "theirs"]
    mine.save(folder.with_name("elsewhere"))
    assert [task.name for task in ContinualLearner.load(folder.with_name("elsewhere")).tasks] == ["low", "mine"]


def test_accuracies_of_the_third_format_have_no_images_and_its_absolute_paths_are_dropped(folder: Path) -> None:
    path = folder / "learner.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    lesson_3 = {key: content["history"][0][key] for key in ("name", "taught", "accuracies", "drift", "seconds")}
    note = "left out, unreadable: /home/me/low/digit 0/1.png"
    older = content | {"format": 3, "history": [lesson_3 | {"notes": [note]}]}
    older["tasks"][0]["data"] = "/home/me/low"
    path.write_text(json.dumps(older | {"checksum": store._checksum(older)}))
    loaded = ContinualLearner.load(folder)
    assert (loaded.history[0].before, loaded.history[0].images, loaded.history[0].fingerprints) == ({}, {}, {})
    assert loaded.history[0].notes == ("left out, unreadable: digit 0/1.png",)
    loaded.save(folder)
    assert "/home/me" not in path.read_text()
    assert json.loads(path.read_text())["format"] == store.FORMAT
