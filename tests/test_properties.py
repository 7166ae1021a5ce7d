"""Any stream, arguments or configuration file works or is refused in one line; hypothesis generates them."""

import itertools
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pah.cli import main, options
from pah.core.config import InputError, require_types
from pah.data.augment import AugmentOptions
from pah.data.sources import Images, Source
from pah.data.stream import Stream, evaluation_batches, make_stream, training_batches
from pah.data.stream_options import StreamOptions
from pah.methods import METHODS
from pah.models.backbones import ConvNetOptions
from pah.training.config import OPTION_GROUPS, RunConfig, build_method
from pah.training.loop import train
from pah.training.options import TrainingOptions
from pah.training.state import TaskDone, TrainState

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
steady = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)

sources = st.builds(
    lambda shape, counts, seed: source_of(shape, counts, seed),
    st.tuples(st.sampled_from((1, 3)), st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2)), min_size=1, max_size=9),
    st.integers(0, 5),
)
stream_options = st.fixed_dictionaries(
    {
        "classes": st.none() | st.integers(2, 10),
        "first": st.none() | st.integers(1, 5),
        "class_order": st.sampled_from(("seed", "natural")),
        "validation": st.sampled_from((0.0, 0.2, 0.5, 0.99)),
    }
)


def source_of(shape: tuple[int, int, int], counts: list[tuple[int, int]], seed: int) -> Source:
    """Return images of noise.

    Args:
        shape: Channels, height and width.
        counts: Number of training and test images of each class.
        seed: Seed of the noise.
    """
    parts = []
    for split in (0, 1):
        labels = torch.tensor([y for y, numbers in enumerate(counts) for _ in range(numbers[split])])
        noise = torch.Generator().manual_seed(seed)
        parts.append(Images(torch.randint(256, (len(labels), *shape), generator=noise).byte(), labels))
    return Source("noise", tuple(f"class {y}" for y in range(len(counts))), parts[0], parts[1])


def check_refusal(error: InputError) -> None:
    """Assert that the message is one line."""
    assert str(error)
    assert "\n" not in str(error)


@steady
@given(source=sources, chosen=stream_options, tasks=st.integers(1, 5), seed=st.integers(0, 3), size=st.integers(3, 20))
def test_a_stream_gives_every_image_of_its_classes_once_or_is_refused(
    source: Source, chosen: dict[str, Any], tasks: int, seed: int, size: int
) -> None:
    try:
        stream = make_stream(source, StreamOptions(**chosen), tasks, seed)
    except InputError as error:
        return check_refusal(error)
    order = stream.class_order
    assert len(set(order)) == len(order) <= (chosen["classes"] or len(source.class_names))
    assert len(stream.tasks) == (chosen["first"] or tasks)
    assert all(len(task.class_names) >= 2 and len(task.train) for task in stream.tasks)
    assert all(map(math.isfinite, (*stream.normalization.mean, *stream.normalization.std)))
    for task in stream.tasks:
        own = torch.isin(source.train.labels, torch.tensor(task.labels)).nonzero().flatten()
        kept = torch.cat([task.train.rows, task.validation.rows])
        assert kept.sort().values.tolist() == own.tolist()
        assert [task.labels[y] for y in task.train.labels.tolist()] == source.train.labels[task.train.rows].tolist()
        batches = list(training_batches((task,), size, AugmentOptions(crop=2, flip=True), seed, epoch=0))
        assert sum(len(batch.y) for batch in batches) == len(task.train)
        assert max(len(batch.y) for batch in batches) <= size
        assert all(bool(torch.isfinite(batch.x).all()) for batch in batches)
        assert sum(len(y) for _, y in evaluation_batches(task, task.test, size)) == len(task.test)
    return None


@settings(steady, max_examples=15)
@given(
    source=sources,
    method=st.sampled_from([name for name in METHODS if name not in ("independent", "pnn")]),
    tasks=st.integers(1, 3),
    size=st.integers(3, 9),
)
def test_any_method_learns_or_refuses_any_stream(source: Source, method: str, tasks: int, size: int) -> None:
    config = RunConfig(
        method=method, method_options=METHODS[method].options(), backbone_options=ConvNetOptions(width=2)
    )
    try:
        stream: Stream = make_stream(source, StreamOptions(), tasks, 0)
        config.method_options.check_stream([len(task.class_names) for task in stream.tasks])
        learner = build_method(config, stream.image_shape)
        state = TrainState()
        events = list(train(learner, stream, TrainingOptions(epochs=1, batch_size=size), AugmentOptions(), 0, state))
    except InputError as error:
        return check_refusal(error)
    assert sum(isinstance(event, TaskDone) for event in events) == tasks
    assert all(0 <= accuracy <= 100 for row in state.matrix for accuracy in row)
    return None


@pytest.mark.parametrize("method", ["pah", "hn2", "der++"])
def test_numbers_too_large_for_any_machine_are_refused(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"method": METHODS[method].options, "backbone": ConvNetOptions}
    asked = [
        (f"{group}.{name}", kind)
        for group, options in kinds.items()
        for name, kind in get_type_hints(options).items()
        if kind in (int, tuple[int, ...])
    ]
    for (name, kind), value in itertools.product(asked, (2**62, 10**30)):
        words = [f"--method={method}", f"--{name}={value if kind is int else [value]}", "--out", str(tmp_path / "run")]
        assert main(["run", "--classes=4", "--tasks=2", "--epochs=1", "--overwrite", *words]) in (0, 2), name
        err = capsys.readouterr().err
        assert err.count("\n") == err.count("pah: ") <= 1


def names() -> list[str]:
    """Return the names of all options of `pah run` except those that name files."""
    groups = {
        "method": METHODS["pah"].options,
        "backbone": ConvNetOptions,
        **OPTION_GROUPS,
    }
    dotted = [
        f"{group}.{field}" for group, kind in groups.items() for field in get_type_hints(kind) if field != "search"
    ]
    return [*dotted, "seed", "tasks", "epochs", "method", "backbone", "image_size", "buffer", "label_column", "beside"]


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from((0, 1, -1, 2**31, 2**63, 10**30, 1e-320, "", "pah", "lwf", "convnet", "seed", "nan", "one-cycle"))
    | st.text(max_size=8)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@settings(steady, max_examples=40)
@given(words=st.lists(st.tuples(st.sampled_from(names()) | st.text(max_size=8), scalars), max_size=3))
def test_any_arguments_are_a_configuration_or_refused(words: list[tuple[str, Any]]) -> None:
    typed = [f"--{name}={value}" for name, value in words if name not in ("help", "print_config", "config")]
    try:
        config = options.run_request(typed).config
    except InputError as error:
        return check_refusal(error)
    require_types(config)
    assert RunConfig.from_dict(config.as_dict()) == config
    return None


@settings(steady, max_examples=40)
@given(
    content=st.dictionaries(
        st.sampled_from(("seed", "data", "benchmark", "method", "backbone", *OPTION_GROUPS)) | st.text(max_size=6),
        values
        | st.dictionaries(
            st.sampled_from([name.partition(".")[2] for name in names() if "." in name] + ["name"]), scalars, max_size=3
        ),
        max_size=3,
    )
)
def test_any_configuration_file_is_valid_or_refused(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(yaml.safe_dump(content, allow_unicode=True).encode(errors="replace"))
    try:
        config = options.read_config(path)
    except InputError as error:
        return check_refusal(error)
    saved = Path(path).with_name("saved.yaml")
    saved.write_text(yaml.safe_dump(config.as_dict(), allow_unicode=True))
    assert options.read_config(saved) == config
    return None


def test_class_names_that_look_like_markup_are_printed_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    for y, name in enumerate(("[b]", "[red]", ":smile:", "{0}%s")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (8, 8), 50 * y + i).save(tmp_path / "data" / name / f"{i}.png")
    given = ["split", "--data", str(tmp_path / "data"), "--tasks", "2"]
    assert main(["data", *given]) == 0
    assert main(["run", *given, "--epochs", "1", "--out", str(tmp_path / "[link]")]) == 0
    assert main(["data", str(tmp_path / "[link]" / "model")]) == 0
    taught = ["learn", "animals", "--name", "[/x]", "--data", given[2], "--image_size", "8", "--epochs", "1"]
    assert main(taught) == 0
    assert main(["predict", "animals", str(tmp_path / "data" / "[b]" / "0.png")]) == 0
    out = capsys.readouterr().out
    assert all(out.count(name) >= 2 for name in ("[b]", "[red]", ":smile:", "{0}%s", "[link]", "[/x]"))
