"""What the page stores about a task is deleted with the task, whoever made the learner forget it."""

import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from animals import TASKS, lesson_images, save_animals
from pah import ContinualLearner
from pah.app import service as service_module
from pah.app.lesson import Controls, Request, teach
from pah.app.lesson_queue import LESSON, Lesson
from pah.app.prototype_images import load_prototype_images
from pah.app.service import Service, app_folder
from pah.cli.main import main
from pah.models.network import GeneratedHeads


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """The folder of a learner of birds and fish."""
    return save_animals(tmp_path / "animals")


def store_files(learner: Path) -> Path:
    """Store check images and prototypes of both tasks, as the page does, and return the page's folder."""
    home = app_folder(learner)
    for name, classes in TASKS.items():
        images, labels, names = lesson_images(classes)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        checks = {"pixels": pixels, "labels": torch.tensor(labels)}
        write(home / "checks" / f"{name}.safetensors", checks, task=name, classes=json.dumps(names))
        prototypes = torch.zeros(len(classes), 3, 8, 8)
        write(home / "prototypes" / f"{name}.safetensors", {"learned": prototypes}, task=name)
    return home


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def stored(home: Path) -> set[str]:
    return {f"{file.parent.name}/{file.stem}" for file in home.glob("*/*.safetensors")}


@contextmanager
def opened(learner: Path) -> Iterator[Service]:
    service = Service(learner)
    try:
        yield service
    finally:
        service.close()


def forget(learner: Path, task: str) -> None:
    assert main(["forget", str(learner), "--task", task]) == 0


def test_files_of_a_task_that_was_forgotten_before_the_start_are_deleted(animals: Path) -> None:
    home = store_files(animals)
    with opened(animals):
        assert stored(home) == {"checks/birds", "checks/fish", "prototypes/birds", "prototypes/fish"}
    forget(animals, "birds")
    with opened(animals):
        assert stored(home) == {"checks/fish", "prototypes/fish"}


def test_files_of_a_task_that_is_forgotten_while_the_page_runs_are_deleted(
    animals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "WATCH_SECONDS", 0.05, raising=False)
    home = store_files(animals)
    with opened(animals):
        forget(animals, "birds")
        end = time.monotonic() + 10
        while len(stored(home)) > 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert stored(home) == {"checks/fish", "prototypes/fish"}


def test_files_of_a_task_of_the_same_name_that_was_taught_anew_are_not_used(animals: Path) -> None:
    home = store_files(animals)
    learner = ContinualLearner.load(animals)
    write(
        home / "prototypes" / "birds.safetensors",
        {"learned": load_birds_prototypes(learner)},
        task="birds",
        taught="2000-01-01T00:00:00+00:00",
    )
    assert load_prototype_images(learner, home / "prototypes")[0].learned is None
    with opened(animals):
        assert stored(home) == {"checks/birds", "checks/fish", "prototypes/fish"}


def load_birds_prototypes(learner: ContinualLearner) -> torch.Tensor:
    heads = learner.predictor.method.network.heads
    assert isinstance(heads, GeneratedHeads)
    prototypes: torch.Tensor = heads.prototypes.tasks[0].detach().contiguous()
    return prototypes


def test_without_a_learner_nothing_is_deleted(animals: Path) -> None:
    home = store_files(animals)
    shutil.rmtree(animals)
    with opened(animals):
        assert len(stored(home)) == 4


def test_a_lesson_that_contains_a_forgotten_task_is_to_be_taught_again(animals: Path) -> None:
    lesson = app_folder(animals) / "lessons" / "2026-01-01T000000-0"
    shutil.copytree(animals, lesson / "model")
    taught = ContinualLearner.load(lesson / "model")
    taught.learn("insects", lesson_images(("bee", "ant")))
    taught.save(lesson / "model")
    request = asdict(Request(str(animals), str(lesson), "insects", "images"))
    fields = asdict(Lesson(lesson.name, "insects", "2026-01-01T00:00:00+00:00", "done", request))
    (lesson / LESSON).write_text(json.dumps(fields))
    with opened(animals) as service:
        assert [one["state"] for one in service.lessons()] == ["done"]
    forget(animals, "birds")
    with opened(animals) as service:
        (one,) = service.lessons()
        assert one["state"] == "failed"
        assert "was forgotten: start the lesson again" in one["reason"]
        assert {file.name for file in lesson.iterdir()} == {LESSON}


def test_what_a_killed_server_unpacked_is_deleted_at_the_next_start(animals: Path) -> None:
    images = app_folder(animals) / "tmpabc" / "images"
    images.mkdir(parents=True)
    (images / "photo.png").touch()
    with opened(animals):
        assert not images.parent.exists()


def test_check_images_that_cannot_be_read_are_left_out_and_named(animals: Path, tmp_path: Path) -> None:
    home = store_files(animals)
    (home / "checks" / "birds.safetensors").write_bytes(b"damaged")
    images, labels, names = lesson_images(("bee", "ant"))
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "photos" / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / names[label] / f"{i}.png")
    (tmp_path / "lesson").mkdir()
    request = Request(
        str(animals),
        str(tmp_path / "lesson"),
        "insects",
        str(tmp_path / "photos"),
        epochs=1,
        checks=str(home / "checks"),
    )
    result = teach(request, io.StringIO(), Controls())
    assert set(result["before"]) == {"fish"}
    assert "left out, unreadable: the check images in birds.safetensors" in result["notes"]
