"""Lists of numbers on the command line and in YAML: orders of classes and sizes of tasks."""

from pathlib import Path

import pytest
import yaml

from conftest import assert_same_run, run_until_death, tiny
from pah.cli import main, options
from pah.core.config import InputError
from pah.data.stream_options import StreamOptions
from pah.runs.run import resume_run, start_run
from pah.study import ablation


def stream_of(*words: str) -> StreamOptions:
    return options.run_request(["split-digits", *words]).config.stream


@pytest.mark.parametrize("text", ["3,1,4,0", "3, 1, 4, 0", "[3,1,4,0]"])
def test_a_class_order_is_a_list_with_commas(text: str) -> None:
    assert stream_of("--stream.class_order", text).class_order == (3, 1, 4, 0)
    assert stream_of(f"--stream.class-order={text}").class_order == (3, 1, 4, 0)


def test_words_stay_class_orders() -> None:
    assert [stream_of("--stream.class_order", word).class_order for word in ("seed", "natural")] == ["seed", "natural"]


@pytest.mark.parametrize("text", ["50,10,10,10,10,10", "50,10x5", "[50, 10x5]", "[50,10,10,10,10,10]", "50, 10 x 5"])
def test_sizes_may_repeat_a_number(text: str) -> None:
    assert stream_of("--stream.sizes", text).sizes == (50, 10, 10, 10, 10, 10)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("sizes", text) for text in ("50,ten", "50;10", "10x", "9" * 30)),
        *(("class_order", text) for text in ("sed", "3,1x2", "3,", "[]")),
    ],
)
def test_other_texts_are_refused_in_one_line(option: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^stream.{option}: expected .* such as .*, got ") as caught:
        stream_of(f"--stream.{option}", text)
    assert "\n" not in str(caught.value)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"stream": {option: text}}))
    with pytest.raises(InputError, match=rf"^stream.{option}: expected .* such as .*, got "):
        stream_of("--config", str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("sizes", [[4, 2, 2, 2], "4,2x3"])
def test_yaml_has_lists_or_the_same_texts(sizes: object, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"stream": {"class_order": [3, 1, 4, 0], "sizes": sizes}}))
    stream = stream_of("--config", str(tmp_path / "run.yaml"))
    assert (stream.class_order, stream.sizes) == ((3, 1, 4, 0), (4, 2, 2, 2))
    (tmp_path / "wrong.yaml").write_text("stream: {class_order: [a, 1]}")
    with pytest.raises(InputError, match=r"^stream.class_order: expected seed, natural or labels .*, got \['a', 1\]$"):
        stream_of("--config", str(tmp_path / "wrong.yaml"))


def test_a_run_with_lists_is_resumed_and_repeated_from_its_configuration(tmp_path: Path) -> None:
    words = ("--stream.class_order", "3,1,4,0,5", "--stream.sizes", "3,2", "--epochs", "1", "--method", "finetune")
    config = options.run_request(["split-digits", "--backbone.width", "4", *words]).config
    metrics = start_run(config, tmp_path / "whole")
    assert (metrics["class_order"], metrics["classes_left_out"]) == ([3, 1, 4, 0, 5], 5)
    assert options.read_config(tmp_path / "whole" / "config.yaml") == config
    run_until_death(config, tmp_path / "cut", 5, checkpoint_seconds=0)
    resume_run(options.read_config(tmp_path / "cut" / "config.yaml"), tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_several_seeds_of_a_comparison_share_the_order_of_an_order_seed(tmp_path: Path) -> None:
    words = ["--methods=finetune", "--seeds=0,1", "--stream.order_seed=5", "--epochs=1", "--backbone.width=4"]
    assert main(["compare", "split-digits", *words, "--out", str(tmp_path / "s")]) == 0
    orders = [yaml.safe_load(path.read_text())["class_order"] for path in (tmp_path / "s").glob("*/metrics.json")]
    assert len(orders) == 2
    assert orders[0] == orders[1]


def test_an_ablation_varies_lists() -> None:
    vary = ("--vary", "stream.class_order=0,1,2,3;3,2,1,0;seed", "--vary", "stream.sizes=4,2x3;5x2")
    request = options.ablate_request(["split-digits", "--method", "finetune", *vary])
    orders, sizes = request.ablation.panels
    assert [config.stream.class_order for config in orders.configs] == [(0, 1, 2, 3), (3, 2, 1, 0), "seed"]
    assert [config.stream.sizes for config in sizes.configs] == [None, (4, 2, 2, 2), (5, 5)]
    from_lists = options.ablate_request(
        ["split-digits", "--stream.sizes", "5x2", "--vary", "stream.sizes=4,2x3;6,4", "--method", "finetune"]
    )
    assert [c.stream.sizes for c in from_lists.ablation.panels[0].configs] == [(5, 5), (4, 2, 2, 2), (6, 4)]


def test_the_cell_of_a_long_order_has_a_short_and_unique_name() -> None:
    order = list(range(100))
    swapped = [*order[:40], order[41], order[40], *order[42:]]
    vary = f"stream.class_order={','.join(map(str, order))};{','.join(map(str, swapped))}"
    request = options.ablate_request(["split-cifar100", "--method", "finetune", "--vary", vary])
    names = list(request.ablation.configs_by_name())
    assert names[0] == ablation.BASE
    assert len(set(names)) == 3
    assert max(map(len, names)) < 60


def test_a_trial_of_a_stream_with_two_tasks_learns_two(tmp_path: Path) -> None:
    """`pah compare --tune` learns the first three tasks of a stream, or all if there are fewer."""
    words = ["--methods=lwf", "--seeds=none", "--tune=2", "--stream.sizes=5,5", "--epochs=1", "--backbone.width=4"]
    assert main(["compare", "split-digits", *words, "--out", str(tmp_path / "s")]) == 0
    assert len(list((tmp_path / "s").glob("tuning/lwf-trial*/metrics.json"))) == 2


def test_the_stream_says_how_classes_are_ordered_and_how_many_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in (
        (("--stream.class_order=3,1,4,0", "--tasks=2"), "class order: as listed, seed 0; classes left out: 6"),
        (("--stream.order_seed=4",), "class order: stream.order_seed 4, seed 0"),
        (("--stream.sizes=4,3",), "class order: seed, seed 0; classes left out: 3"),
    ):
        assert main(["data", "split-digits", *words]) == 0
        assert line in capsys.readouterr().out.splitlines()


def test_the_default_configuration_is_unchanged() -> None:
    stream = tiny().stream
    assert (stream.class_order, stream.order_seed, stream.sizes) == ("seed", None, None)
