"""The benchmarks of small lessons, and what a learner keeps of them."""

import dataclasses

import pytest
import torch

from pah.cli.options import run_request
from pah.core.config import InputError
from pah.data.benchmarks import BENCHMARKS, LESSONS
from pah.data.small_lessons import SIZE, SMALL_STREAMS, small_source
from pah.data.sources import Images, Source
from pah.learner.learner import defaults
from pah.study.ablation import flat
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.loop import train
from pah.training.metrics import forgetting
from pah.training.state import TaskDone, TrainState

HERE = [name for name, stream in SMALL_STREAMS.items() if stream.data is None]  # whose images need no folder


def stand_in(classes: tuple[str, ...]) -> Source:
    """A data set with these classes and one more."""
    names = ("another", *classes)
    labels = torch.arange(len(names)).repeat_interleave(4)
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    return Source("somewhere", names, Images(pixels, labels), Images(pixels, labels))


@pytest.mark.parametrize("name", [name for name in SMALL_STREAMS if name not in HERE])
def test_a_stream_takes_its_classes_in_the_order_of_its_lessons(name: str) -> None:
    stream = SMALL_STREAMS[name]
    source = small_source(stream, stand_in(tuple(reversed(stream.classes))))
    assert source.class_names == stream.classes
    last = source.train.pixels[source.train.labels == len(stream.classes) - 1]
    assert (last == 1).all(), "the class that was named first in the data set"
    assert source.train.pixels.shape[1] == (1 if stream.grey else 3)
    assert len(source.test) == 4 * len(stream.classes)


def test_a_data_set_without_a_class_is_refused() -> None:
    with pytest.raises(InputError, match="maple_tree"):
        small_source(SMALL_STREAMS["small-alike"], stand_in(("maple_trees", "oak_tree")))


@pytest.mark.parametrize("name", HERE)
def test_made_and_embedded_images_are_always_the_same(name: str) -> None:
    first, second = (BENCHMARKS[name].source(None, None, None) for _ in range(2))
    assert torch.equal(first.train.pixels, second.train.pixels)
    assert first.train.pixels.shape[2:] == (SIZE, SIZE)
    assert len(first.train.pixels.unique(dim=0)) == len(first.train), "no image twice"
    request = run_request([name])
    stream = load_stream(request.config)
    assert [len(task.class_names) for task in stream.tasks] == [len(names) for names in SMALL_STREAMS[name].lessons]
    assert max(int(task.train.labels.bincount().max()) for task in stream.tasks) == SMALL_STREAMS[name].images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small-alike"], "small-alike: expected --data with the folder of cifar100"),
        (["small-marks", "--data", "."], "data: expected none for images that are embedded or made"),
        (["small-marks", "--image_size", "64"], "image_size: expected 32 for small lessons"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_stream(run_request(words).config)


def test_what_they_measure_is_what_a_learner_does() -> None:
    said, kept = flat(run_request(["small-marks"]).config), flat(defaults(SIZE))
    differing = {name for name in said if said[name] != kept[name]}
    own = {"benchmark", "image_size", "stream.class_order", "stream.sizes", "stream.images", "stream.validation"}
    assert differing == own
    assert all(kept[name] == value for name, value in LESSONS.items())


def matrix(config: RunConfig) -> list[list[float]]:
    stream = load_stream(config)
    method = build_method(config, stream.image_shape)
    events = train(method, stream, config.training, config.augment, config.seed, TrainState())
    return [event.accuracies for event in events if isinstance(event, TaskDone)]


def test_a_learner_keeps_a_small_lesson_that_finetuning_forgets() -> None:
    short = ["--backbone.width", "8", "--stream.first", "3", "--stream.images", "60"]
    config = run_request(["small-objects", *short]).config
    assert config.method_options == defaults(SIZE).method_options
    found = {"pah": matrix(config)}
    without = run_request(["small-objects", *short, "--method", "finetune"]).config
    assert dataclasses.replace(without, method="pah", method_options=config.method_options) == config
    found["finetune"] = matrix(without)
    assert forgetting(found["pah"]) < 8
    assert forgetting(found["finetune"]) > 12
    assert min(found["pah"][-1]) > 85
