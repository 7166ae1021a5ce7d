"""The training loop: schedule, evaluation, and requirements that every registered method must meet."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from helpers import digits
from pah import AugmentOptions, TrainingOptions, TrainState, train
from pah.cli import options
from pah.core.config import InputError
from pah.data.stream import Stream, number_of_batches
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions
from pah.methods.pah_options import PAHOptions
from pah.models.backbones import ConvNetOptions
from pah.models.modes import autocast
from pah.models.network import apply_heads
from pah.training.evaluation import evaluate, predict_tasks
from pah.training.loop import learn_task, lr_factor, replay
from pah.training.state import EpochDone, StepDone, TaskDone

NO_AUGMENTATION = AugmentOptions()
# accuracy in % after each of two tasks of two digits, three epochs; explain a change in the commit message
GOLDEN = {
    "pah": [[94.4], [50.0, 80.6]],
    "finetune": [[93.1], [87.5, 95.8]],
    "joint": [[93.1], [95.8, 98.6]],
    "lwf": [[93.1], [93.1, 76.4]],
    "ewc": [[93.1], [90.3, 88.9]],
    "si": [[93.1], [90.3, 87.5]],
    "er": [[93.1], [94.4, 93.1]],
    "agem": [[93.1], [94.4, 94.4]],
    "der": [[93.1], [87.5, 98.6]],
    "der++": [[93.1], [93.1, 97.2]],
    "gcr": [[93.1], [93.1, 95.8]],
    "independent": [[93.1], [93.1, 100.0]],
    "pnn": [[93.1], [93.1, 100.0]],
    "hat": [[83.3], [83.3, 83.3]],
    "hnet": [[94.4], [94.4, 80.6]],
    "hn2": [[90.3], [90.3, 90.3]],
}


def untrained(name: str, width: int = 4) -> Method:
    torch.manual_seed(0)
    options = METHODS[name].options()
    network = options.build_network(partial(ConvNetOptions(width=width).build, 1), (1, 8, 8))
    return METHODS[name].method(network, OptimizerOptions(lr=3e-3), options).to(memory_format=torch.channels_last)


def trained(name: str, stream: Stream, epochs: int = 3, **options: Any) -> tuple[Method, TrainState, list[object]]:
    method, state = untrained(name), TrainState()
    events = list(
        train(method, stream, TrainingOptions(epochs=epochs, batch_size=32, **options), NO_AUGMENTATION, 0, state)
    )
    return method, state, list(events)


@pytest.fixture(scope="module")
def stream() -> Stream:
    return digits(tasks=3, classes=6)


def test_the_learning_rate_rises_falls_and_ends_near_zero() -> None:
    factors = [lr_factor(step, 100, "one-cycle") for step in range(100)]
    peak = factors.index(max(factors))
    assert max(factors) == pytest.approx(1.0)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < factors[-1] < 0.01
    assert {lr_factor(step, 100, "constant") for step in range(100)} == {1.0}
    assert 0 < lr_factor(0, 1, "one-cycle") <= 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_reports_finite_named_terms_and_a_full_matrix(name: str, stream: Stream) -> None:
    _, state, events = trained(name, stream)
    steps = [event for event in events if isinstance(event, StepDone)]
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert all(event.terms and all(v == v and abs(v) < 100 for v in event.terms.values()) for event in steps)
    assert [(event.task, event.epoch) for event in epochs] == [(t, e) for t in range(3) for e in range(3)]
    assert [len(row) for row in state.matrix] == [1, 2, 3]
    assert all(0 <= accuracy <= 100 for row in state.matrix for accuracy in row)
    assert sum(isinstance(event, TaskDone) for event in events) == 3
    assert state.images == sum(event.images for event in steps)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_restored_by_replaying_its_tasks(name: str, stream: Stream) -> None:
    method, state, _ = trained(name, stream, epochs=1)
    fresh = untrained(name)
    replay(fresh, stream, state, seed=0)
    fresh.load_state_dict(method.state_dict(), strict=True)
    options = TrainingOptions()
    assert evaluate(fresh, stream.tasks, options) == evaluate(method, stream.tasks, options)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_equal_numbers_for_equal_seeds(name: str, stream: Stream) -> None:
    one, other = (trained(name, stream, epochs=1) for _ in range(2))
    assert one[1].matrix == other[1].matrix
    for a, b in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_bf16_is_used_only_for_convolutions_in_training(name: str, stream: Stream) -> None:
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def record(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d):
            dtypes[torch.is_autocast_enabled("cpu")].add(output.dtype)

    with register_module_forward_hook(record):
        method, state, _ = trained(name, stream, epochs=1, precision="bf16")
    assert dtypes == {True: {torch.bfloat16}, False: {torch.float32}}  # learning, evaluation
    assert all(tensor.dtype != torch.bfloat16 for tensor in method.state_dict().values())
    _, fp32_state, _ = trained(name, stream, epochs=1)
    means = [sum(each.matrix[-1]) / 3 for each in (state, fp32_state)]
    assert abs(means[0] - means[1]) < 10


def test_bf16_leaves_heads_and_hypernetworks_exact() -> None:
    heads = PAHOptions(hidden=(16,)).build_heads(32, 3)
    heads.grow(4)
    features = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    exact = apply_heads(features, heads.rows([0]))
    with autocast("bf16", features.device):
        assert torch.equal(apply_heads(features, heads.rows([0])), exact)
        assert not torch.equal(features @ heads.rows([0])[:, :-1].T, exact - heads.rows([0])[:, -1])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_releases_its_teacher_and_stores_no_more_than_its_buffer(name: str, stream: Stream) -> None:
    method, _, _ = trained(name, stream, epochs=1)
    assert method.optimizers == []
    assert not [key for key in method.state_dict() if key.startswith(("teacher", "target", "answers"))]
    options = METHODS[name].options()
    allowed = getattr(options, "buffer", 0)
    assert (0 < method.stored_samples <= allowed) if allowed else method.stored_samples == 0
    parameters = method.network.count_parameters()
    assert len(parameters["per_task"]) == 3
    total = sum(p.numel() for p in method.network.parameters())
    assert parameters["backbone"] + parameters["hypernetwork"] + sum(parameters["per_task"]) == total


def test_joint_trains_on_images_of_all_tasks_and_finetune_on_the_current_one(stream: Stream) -> None:
    sizes = [len(task.train) for task in stream.tasks]
    for name, expected in (("joint", 3 * sizes[0] + 2 * sizes[1] + sizes[2]), ("finetune", sum(sizes))):
        _, state, _ = trained(name, stream, epochs=1)
        assert state.images == expected


def test_the_first_task_may_have_epochs_of_its_own(stream: Stream) -> None:
    _, _, events = trained("pah", stream, epochs=1, first_epochs=3)
    epochs = [(event.task, event.epoch) for event in events if isinstance(event, EpochDone)]
    assert epochs == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    first = next(event for event in events if isinstance(event, StepDone))
    assert first.steps_left + 1 == 3 * number_of_batches(len(stream.tasks[0].train), 32)
    assert [event.lr < 1e-3 for event in events if isinstance(event, EpochDone)] == [False, False, True, True, True]


@pytest.mark.parametrize(("images", "expected"), [(10_000, 32), (400, 24), (80, 8), (10, 8)])
def test_a_task_of_few_images_has_smaller_batches_with_min_steps(images: int, expected: int) -> None:
    assert TrainingOptions(epochs=6, batch_size=32, min_steps=100).batch_size_of(1, images) == expected
    assert TrainingOptions(epochs=6, batch_size=32).batch_size_of(1, images) == 32


def test_training_uses_the_smaller_batches(stream: Stream) -> None:
    _, _, events = trained("finetune", stream, epochs=2, min_steps=40)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.steps_left for event in steps].count(0) == len(stream.tasks)
    assert len(steps) >= 40 * len(stream.tasks)
    assert max(event.images for event in steps) <= max(2 * len(task.train) // 40 for task in stream.tasks)


def test_a_flipped_test_averages_the_logits_of_both_images(stream: Stream) -> None:
    method, _, _ = trained("pah", stream, epochs=1)
    task = stream.tasks[1]
    x = task.normalization(task.test.pixels[task.test.rows])
    with torch.inference_mode():
        method.eval()
        mean = torch.stack([method(x, 1), method(x.flip(3), 1)]).mean(dim=0)
        without_flip = method(x, 1).argmax(dim=1)
    predictions = predict_tasks(method, stream.tasks, TrainingOptions(flip_test=True))[1]
    assert torch.equal(predictions.task_given, mean.argmax(dim=1))
    assert not torch.equal(predictions.task_given, without_flip)


def test_finetuning_does_not_change_old_heads(stream: Stream) -> None:
    method = untrained("finetune")
    heads = []
    for event in train(method, stream, TrainingOptions(epochs=1, batch_size=32), NO_AUGMENTATION, 0, TrainState()):
        if isinstance(event, TaskDone):
            heads.append(method.network.heads.task_parameters()[0].detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])


def test_evaluation_equals_counting_by_hand_and_changes_nothing(stream: Stream) -> None:
    method, _, _ = trained("pah", stream, epochs=2)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    row, class_incremental = evaluate(method, stream.tasks, TrainingOptions())
    method.eval()
    right_class = 0
    with torch.no_grad():
        for k, task in enumerate(stream.tasks):
            x = stream.normalization(task.test.pixels[task.test.rows])
            assert row[k] == pytest.approx(100 * (method(x, k).argmax(1) == task.test.labels).double().mean().item())
            over_all = torch.cat([method(x, j) for j in range(3)], dim=1).argmax(1)
            right_class += int((over_all == task.test.labels + 2 * k).sum())
    images = sum(len(task.test) for task in stream.tasks)
    assert class_incremental == pytest.approx(100 * right_class / images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


def test_evaluation_can_use_the_validation_part_or_batch_statistics() -> None:
    stream = digits(tasks=2, classes=4, validation=0.2)
    method, _, _ = trained("finetune", stream, epochs=1)
    choices = (
        TrainingOptions(),
        TrainingOptions(evaluate_on="validation"),
        TrainingOptions(test_batch_norm="batch", batch_size=16),
    )
    test, validation, batch = (evaluate(method, stream.tasks, options)[0] for options in choices)
    for task, accuracy in zip(stream.tasks, validation, strict=True):
        correct = accuracy * len(task.validation) / 100
        assert correct == pytest.approx(round(correct))
    assert test != validation
    assert test != batch


def test_finetuning_forgets_more_than_pah() -> None:
    """On real images: five tasks of two digits."""
    stream = digits(seed=0)
    old = {}
    for name in ("finetune", "pah"):
        _, state, _ = trained(name, stream, epochs=8)
        old[name] = sum(state.matrix[-1][:-1]) / 4
    assert old["pah"] > 85
    assert old["pah"] > old["finetune"] + 5


@pytest.mark.parametrize("name", METHODS)
def test_golden_matrix(name: str) -> None:
    _, state, _ = trained(name, digits(tasks=2, classes=4))
    assert [pytest.approx(row, abs=1.5) for row in GOLDEN[name]] == state.matrix


@pytest.mark.parametrize("name", METHODS)
def test_keeping_the_best_epoch_equals_a_task_that_ends_with_it(name: str) -> None:
    """So the state of every method goes back, not the network alone; and measuring it changes nothing."""
    stream = digits(tasks=1, classes=3, validation=0.3)

    def state_after(epochs: int, **options: Any) -> tuple[dict[str, torch.Tensor], TrainState]:
        method, state = untrained(name), TrainState()
        method.optimizer_options = OptimizerOptions(lr=0.03)
        training = TrainingOptions(epochs=epochs, batch_size=64, schedule="constant", **options)
        for _ in learn_task(method, stream.tasks, training, NO_AUGMENTATION, 0, state):
            pass
        return method.state_dict(), state

    def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
        assert [*one] == [*other]
        assert not [key for key in one if not torch.equal(one[key], other[key])]

    kept, state = state_after(4, keep_best=True)
    assert_equal(kept, state_after(state.best_epochs[0] + 1)[0])
    assert_equal(state_after(4, patience=9)[0], state_after(4)[0])


def test_patience_ends_a_task_and_the_log_tells_the_accuracies() -> None:
    stream = digits(tasks=2, classes=4, validation=0.3)
    _, state, events = trained("finetune", stream, epochs=12, patience=1, keep_best=True)
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [event.best_epoch for event in epochs if event.epoch == 0] == [0, 0]
    assert state.epochs_trained == [sum(event.task == k for event in epochs) for k in range(2)]
    assert min(state.epochs_trained) < 12
    assert all(event.validation_accuracy is not None for event in epochs)
    _, _, plain = trained("finetune", stream, epochs=12)
    rates = [event.lr for event in plain if isinstance(event, EpochDone) and event.task == 0]
    assert [event.lr for event in epochs if event.task == 0] == rates[: state.epochs_trained[0]]
    assert "validation_accuracy" not in next(event for event in plain if isinstance(event, EpochDone)).as_dict()


@pytest.mark.parametrize("words", [("--training.patience", "3"), ("--training.keep_best", "true")])
def test_validation_images_are_needed_to_stop_early(words: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=rf"{words[0][2:]}: expected .* stream.validation above 0"):
        options.run_request(words)
