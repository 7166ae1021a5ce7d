"""A learner folder is the old learner or the new one, whatever happens to a save; nothing in it is believed unseen."""

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

DAMAGES = 60  # places at which each file is cut off, and at which a bit of it is turned


@pytest.fixture(scope="module")
def taught() -> tuple[ContinualLearner, ContinualLearner]:
    """A learner of one lesson, and one that was taught a second; not to be changed."""
    first, second = (ContinualLearner(config=QUICK) for _ in range(2))
    for learner in (first, second):
        learner.learn("low", lesson(0, 1))
    second.learn("high", lesson(2, 3, 4))
    return first, second


@pytest.fixture
def folder(taught: tuple[ContinualLearner, ContinualLearner], tmp_path: Path) -> Path:
    """The first learner's folder."""
    write(tmp_path / "digits", taught[0])
    return tmp_path / "digits"


def write(folder: Path, learner: ContinualLearner) -> None:
    """The learner in that folder, whatever was there."""
    store.save(folder, learner.taught.record, learner.taught.method.network)


def refused_or_loaded(folder: Path) -> ContinualLearner | None:
    """The learner in the folder; None if one line says that it is damaged, and where."""
    try:
        return ContinualLearner.load(folder)
    except InputError as error:
        said = str(error)
    assert str(folder) in said
    assert "\n" not in said
    return None


@pytest.mark.parametrize("name", ["learner.json", "model.safetensors"])
def test_no_cut_and_no_turned_bit_goes_unnoticed(
    folder: Path, name: str, taught: tuple[ContinualLearner, ContinualLearner]
) -> None:
    path, whole = folder / name, (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    unnoticed = []
    for place in sorted({0, 1, len(whole) - 2, *rng.integers(len(whole) - 1, size=DAMAGES).tolist()}):
        turned = bytearray(whole)
        turned[place] ^= 1 << int(rng.integers(8))
        for damaged in (whole[:place], bytes(turned)):
            path.write_bytes(damaged)
            found = refused_or_loaded(folder)
            # white space and the like between JSON's tokens carries nothing
            if found and (not same(found, taught[0]) or found.tasks != taught[0].tasks):
                unnoticed.append(place)
    assert not unnoticed
    path.write_bytes(whole)
    assert same(ContinualLearner.load(folder), taught[0])


def test_tampered_names_and_weights_of_another_learner_are_refused(
    folder: Path, taught: tuple[ContinualLearner, ContinualLearner], tmp_path: Path
) -> None:
    path = folder / "learner.json"
    text = path.read_text()
    path.write_text(text.replace('"digit 0"', '"digit 9"'))
    with pytest.raises(InputError, match=r"learner\.json.*checksum"):
        ContinualLearner.load(folder)
    path.write_text(text)
    write(tmp_path / "other", taught[1])
    (folder / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors.*checksum"):
        ContinualLearner.load(folder)


def test_a_newer_format_says_so_and_json_of_something_else_too(folder: Path) -> None:
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


def test_the_first_format_is_still_read(folder: Path, taught: tuple[ContinualLearner, ContinualLearner]) -> None:
    path = folder / "learner.json"
    content = json.loads(path.read_text())
    kept = ("sha256", "method", "backbone", "seed", "image_shape", "normalization", "class_order")
    tasks = [{key: task[key] for key in ("name", "classes")} for task in content["tasks"]]
    path.write_text(json.dumps({key: content[key] for key in kept} | {"format": 1, "tasks": tasks, "data": "digits"}))
    old, pixels = ContinualLearner.load(folder), lesson(0, 1, part="test")[0]
    assert [(task.labels, task.data, task.temperature) for task in old.tasks] == [((0, 1), "digits", 1.0)]
    assert old.history == ()
    answers = [[answer.label for answer in learner.predict(pixels, task="low")] for learner in (old, taught[0])]
    assert answers[0] == answers[1]
    old.learn("more", lesson(5, 6))
    old.save(folder)
    assert [task.name for task in ContinualLearner.load(folder).tasks] == ["low", "more"]


def test_in_the_second_format_drift_was_no_loss_of_accuracy(folder: Path) -> None:
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
    """Stands for the end of the process: nothing in pah catches it."""


def write_until(step: int, folder: Path, learner: ContinualLearner) -> bool:
    """Write the learner, but let the process end before that step of writing, from 0 on; whether it got to its end."""
    reached = 0

    def stop_before(what: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal reached
            reached += 1
            if reached > step:  # and every later one: nobody tidies up after a power cut
                raise PowerCutError
            return what(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "fsync"), (os, "replace"), (Path, "replace"), (Path, "unlink")):
            patch.setattr(owner, name, stop_before(getattr(owner, name)))
        try:
            write(folder, learner)
        except PowerCutError:
            return False
    return True


def test_a_power_cut_leaves_the_old_learner_or_the_new_and_one_in_the_next_save_too(
    taught: tuple[ContinualLearner, ContinualLearner], tmp_path: Path
) -> None:
    first, second = taught
    found = []
    for step in count():
        folder = tmp_path / str(step)
        write(folder, first)
        done = write_until(step, folder, second)
        found.append(ContinualLearner.load(folder))
        assert same(found[-1], second if len(found[-1].tasks) == 2 else first)
        if done:
            break
        for again in range(step + 3):
            torn = tmp_path / f"{step}-{again}"
            shutil.copytree(folder, torn)
            write_until(again, torn, first)
            assert same(ContinualLearner.load(torn), found[-1]) or same(ContinualLearner.load(torn), first)
    assert [len(each.tasks) for each in found] == sorted(len(each.tasks) for each in found)
    assert {len(each.tasks) for each in found} == {1, 2}
    assert step > 4


def test_a_full_disk_says_so_and_keeps_the_old_learner(
    folder: Path, taught: tuple[ContinualLearner, ContinualLearner], monkeypatch: pytest.MonkeyPatch
) -> None:
    for failing in range(6):  # of the weights, of learner.json and of the card, each a file and then its folder
        write(folder, taught[0])
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
        # from the second of learner.json on, the new one is there already
        assert same(ContinualLearner.load(folder), taught[0] if failing < 3 else learner)
        assert not [file for file in folder.iterdir() if file.name.endswith((".new", ".next"))]
        learner.save(folder)  # once there is room
        assert same(ContinualLearner.load(folder), learner)


def test_two_who_teach_one_learner_do_not_overwrite_each_other(folder: Path) -> None:
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
