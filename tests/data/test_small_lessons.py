"""The benchmarks of small lessons, and how much a learner forgets on them."""

import dataclasses

import pytest
import torch

from pah.cli.options import run_request
from pah.core.config import InputError
from pah.data.benchmarks import BENCHMARKS, LESSON_DEFAULTS
from pah.data.small_lessons import IMAGE_SIZE, SMALL_STREAMS, small_stream_source
from pah.data.sources import Images, Source
from pah.learner.defaults import defaults
from pah.study.ablation import flat_options
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.loop import train
from pah.training.metrics import forgetting
from pah.training.state import TaskDone, TrainState

WITHOUT_FOLDER = [name for name, stream in SMALL_STREAMS.items() if stream.data_folder is None]


def small_source_of(classes: tuple[str, ...]) -> Source:
    """Return a small data set with these classes and one more."""
    names = ("another", *classes)
    labels = torch.arange(len(names)).repeat_interleave(4)
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return Source("somewhere", names, Images(pixels, labels), Images(pixels, labels))


@pytest.mark.parametrize("name", [name for name in SMALL_STREAMS if name not in WITHOUT_FOLDER])
def test_a_stream_takes_its_classes_in_the_order_of_its_lessons(name: str) -> None:
    stream = SMALL_STREAMS[name]
    source = small_stream_source(stream, small_source_of(tuple(reversed(stream.classes))))
    assert source.class_names == stream.classes
    last = source.train.pixels[source.train.labels == len(stream.classes) - 1]
    assert (last == 1).all()  # the pixels of the first of these classes in the data set
    assert source.train.pixels.shape[1] == (1 if stream.grey else 3)
    assert len(source.test) == 4 * len(stream.classes)


def test_a_data_set_without_a_class_is_refused() -> None:
    with pytest.raises(InputError, match="maple_tree"):
        small_stream_source(SMALL_STREAMS["small-alike"], small_source_of(("maple_trees", "oak_tree")))


@pytest.mark.parametrize("name", WITHOUT_FOLDER)
def test_synthetic_and_embedded_images_are_always_the_same(name: str) -> None:
    first, second = (BENCHMARKS[name].load_source() for _ in range(2))
    assert torch.equal(first.train.pixels, second.train.pixels)
    assert first.train.pixels.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE)
    assert len(first.train.pixels.unique(dim=0)) == len(first.train), "some images are equal"
    request = run_request([name])
    stream = load_stream(request.config)
    assert [len(task.class_names) for task in stream.tasks] == [len(names) for names in SMALL_STREAMS[name].lessons]
    assert max(int(task.train.labels.bincount().max()) for task in stream.tasks) == SMALL_STREAMS[name].images_per_class


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small-alike"], "small-alike: expected --data with the folder of cifar100"),
        (["small-marks", "--data", "."], "data: expected none for images that are embedded or synthetic"),
        (["small-marks", "--image_size", "64"], "image_size: expected 32 for small lessons"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_stream(run_request(words).config)


def test_benchmark_options_are_the_defaults_of_a_learner() -> None:
    benchmark_options, learner_options = (
        flat_options(run_request(["small-marks"]).config),
        flat_options(defaults(IMAGE_SIZE, "resnet18-slim")),
    )
    differing = {name for name in benchmark_options if benchmark_options[name] != learner_options[name]}
    of_the_stream = {
        "benchmark",
        "image_size",
        "stream.class_order",
        "stream.sizes",
        "stream.images",
        "stream.validation",
    }
    assert differing == of_the_stream
    assert all(learner_options[name] == value for name, value in LESSON_DEFAULTS.items())


def accuracy_matrix(config: RunConfig) -> list[list[float]]:
    stream = load_stream(config)
    method = build_method(config, stream.image_shape)
    events = train(method, stream, config.training, config.augment, config.seed, TrainState())
    return [event.accuracies for event in events if isinstance(event, TaskDone)]


def test_a_learner_forgets_less_than_finetuning() -> None:
    options = ["--backbone.width", "8", "--stream.first", "3", "--stream.images", "60"]
    config = run_request(["small-objects", *options]).config
    assert config.method_options == defaults(IMAGE_SIZE, "resnet18-slim").method_options
    matrices = {"pah": accuracy_matrix(config)}
    finetune_config = run_request(["small-objects", *options, "--method", "finetune"]).config
    assert dataclasses.replace(finetune_config, method="pah", method_options=config.method_options) == config
    matrices["finetune"] = accuracy_matrix(finetune_config)
    assert forgetting(matrices["pah"]) < 8
    assert forgetting(matrices["finetune"]) > 12
    assert min(matrices["pah"][-1]) > 85
