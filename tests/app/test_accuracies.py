"""An accuracy on the page says what it was measured on."""

from pathlib import Path

import pytest

from animals import TASKS, lesson_images, save_animals
from pah import ContinualLearner
from pah.app import views
from pah.app.accuracies import HELD_OUT, OWN, last_accuracies
from pah.app.service import Service


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """The folder of a learner of birds and fish."""
    return save_animals(tmp_path / "animals")


def test_the_page_says_what_an_accuracy_was_measured_on(animals: Path) -> None:
    learner = ContinualLearner.load(animals)
    learner.learn("insects", lesson_images(("bee", "ant")), held_out={"birds": lesson_images(TASKS["birds"], seed=9)})
    learner.save(animals)
    html = views.learner_overview(learner, (), 0)
    for text in (
        "after the lesson insects, on images that were held out (16)",
        "right after its lesson, on its own test",
    ):
        assert text in html
    service = Service(animals)
    try:
        birds, fish, insects = service.tasks
    finally:
        service.close()
    assert (birds["accuracy_after"], birds["accuracy_on"], birds["accuracy_images"]) == ("insects", HELD_OUT, 16)
    assert (fish["accuracy_after"], fish["accuracy_on"]) == ("fish", OWN)
    assert (insects["accuracy_after"], insects["accuracy_on"]) == ("insects", OWN)


def test_accuracies_of_a_forgotten_task_are_not_those_of_a_new_one_of_its_name(animals: Path) -> None:
    learner = ContinualLearner.load(animals)
    learner.learn("insects", lesson_images(("bee", "ant")), held_out={"birds": lesson_images(TASKS["birds"])})
    learner.forget("birds")
    learner.learn("birds", lesson_images(("owl", "gull")))
    last = last_accuracies(learner.history, learner.tasks)["birds"]
    assert (last.lesson, last.measured_on) == ("birds", OWN)
    rows = views.learner_overview(learner, (), 0).split("Accuracy of each task after each lesson</caption>")[1]
    birds_column = [row.split("<td>")[3].split("<")[0] for row in rows.split("<tr>")[2:6]]
    assert birds_column[:3] == ["–"] * 3
    assert birds_column[3] != "–"
