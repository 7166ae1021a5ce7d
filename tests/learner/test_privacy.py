"""A learner's files name its data without absolute paths."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_arguments import QUICKEST

from helpers import DIGITS
from pah import ContinualLearner
from pah.learner.privacy import public_note, public_old_note, public_origin
from pah.learner.store import TaughtTask


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("/home/me/photos", "photos"),
        ("/home/me/photos/", "photos"),
        ("~me/photos", "photos"),
        ("C:\\Users\\me\\photos", "photos"),
        ("photos/birds", "photos/birds"),
        ("owner/birds", "owner/birds"),
        ("scikit-learn (embedded)", "scikit-learn (embedded)"),
    ],
)
def test_the_source_of_a_task_is_stored_without_the_folders_above_it(given: str, stored: str) -> None:
    assert public_origin(given) == stored
    assert TaughtTask("birds", ("a", "b"), (0, 1), data=given).data == stored


def test_notes_name_files_relative_to_the_folders_of_the_images(tmp_path: Path) -> None:
    note = f"left out, unreadable: {tmp_path.resolve()}/crow/1.jpg"
    assert public_note(note, [tmp_path, (1, 2, 3)]) == "left out, unreadable: crow/1.jpg"
    assert public_note("crow becomes grey", ["crow", "/"]) == "crow becomes grey"
    assert public_old_note("left out, unreadable: /home/me/birds/crow/1.jpg") == "left out, unreadable: crow/1.jpg"
    assert public_old_note("images of 9x9 (the first one) become 8x8") == "images of 9x9 (the first one) become 8x8"


def test_a_lesson_from_a_folder_leaves_no_absolute_path_in_the_learner(tmp_path: Path) -> None:
    for y in (0, 1):
        (tmp_path / "photos" / str(y)).mkdir(parents=True)
        for k, pixels in enumerate(DIGITS.train.pixels[DIGITS.train.labels == y][:20, 0]):
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / str(y) / f"{k}.png")
    (tmp_path / "photos" / "1" / "bad.png").write_bytes(b"no image")
    learner = ContinualLearner(config=QUICKEST)
    learner.learn("digits", tmp_path / "photos", skip_unreadable=True)
    learner.save(tmp_path / "learner")
    for file in ("learner.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "learner" / file).read_text()
    content = json.loads((tmp_path / "learner" / "learner.json").read_text())
    assert content["tasks"][0]["data"] == "photos"
    assert "left out, unreadable: 1/bad.png" in content["history"][0]["notes"]
