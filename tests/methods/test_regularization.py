"""Tests of LwF, EWC and SI against their defining equations."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import changed_tensors, digits, sample_batch, snapshot, train_few_steps
from pah.core.config import InputError
from pah.data.stream import Stream
from pah.methods import METHODS
from pah.methods.base import Method, MethodOptions, OptimizerOptions
from pah.methods.pah_options import PAHOptions
from pah.methods.regularization import (
    EWC,
    SI,
    EWCOptions,
    LwF,
    LwFOptions,
    QuadraticPenalty,
    SIOptions,
    fisher_diagonal,
)
from pah.models.backbones import ConvNetOptions
from pah.models.modes import evaluating
from pah.models.network import Network
from pah.training.loop import begin


@pytest.fixture(scope="module")
def stream() -> Stream:
    return digits(tasks=3, classes=7)  # tasks of 3, 2 and 2 classes


def small(name: str, optimizer: OptimizerOptions | None = None, heads: MethodOptions | None = None, **o: Any) -> Method:
    torch.manual_seed(0)
    options = METHODS[name].options(**o)
    network = (heads or options).build_network(partial(ConvNetOptions(width=4).build, 1), (1, 8, 8))
    return METHODS[name].method(network, optimizer or OptimizerOptions(), options)


@pytest.mark.parametrize(("over_tasks", "divisor"), [("mean", 2), ("sum", 1)])
def test_lwf_distills_softened_predictions_of_each_old_head_for_new_images(
    stream: Stream, over_tasks: str, divisor: int
) -> None:
    method = small("lwf", temperature=3.0, over_tasks=over_tasks)
    assert isinstance(method, LwF)
    train_few_steps(method, stream, tasks=2, steps=4)
    method.release()
    old = copy.deepcopy(method.network).eval()
    begin(method, stream.tasks[2], seed=0)
    method.train()
    changed_names = small_steps(method, stream, 3)
    batch = sample_batch(stream.tasks[2], seed=9)
    expected = 0.0
    student = copy.deepcopy(method.network).train()
    with torch.no_grad():
        now = student(batch.x, [0, 1]).split([3, 2], dim=1)
        for j, classes in enumerate((3, 2)):
            before = old(batch.x, [j])
            for i in range(len(batch.x)):
                p, q = (torch.softmax(logits[i] / 3, dim=0) for logits in (before, now[j]))
                expected += sum(float(p[c] * math.log(p[c] / q[c])) for c in range(classes))
    expected *= 9 / (divisor * len(batch.x))
    assert changed_names
    assert method.observe(batch)["L_sm"].item() == pytest.approx(expected, rel=1e-4)


def small_steps(method: Method, stream: Stream, steps: int) -> set[str]:
    """Take a few steps on the current task and return the names of the changed weights."""
    before = snapshot(method.network)
    for step in range(steps):
        method.observe(sample_batch(stream.tasks[method.task], seed=step))
    return changed_tensors(method.network, before)


def test_lwf_without_its_term_is_finetuning(stream: Stream) -> None:
    lwf = train_few_steps(small("lwf", plain_gradient(0.1), stability=0.0), stream, tasks=2)
    finetune = train_few_steps(small("finetune", plain_gradient(0.1)), stream, tasks=2)
    torch.testing.assert_close(lwf.network.state_dict(), finetune.network.state_dict(), atol=1e-5, rtol=1e-4)


def test_lwf_keeps_no_teacher_after_a_task(stream: Stream) -> None:
    method = train_few_steps(small("lwf"), stream, tasks=2)
    assert any("teacher" in name for name in method.state_dict())
    method.release()
    assert not any("teacher" in name for name in method.state_dict())


def log_probability(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """Return log p(y | x) of each image, (B,)."""
    return -F.cross_entropy(network(x, [0]), y, reduction="none")


def test_fisher_information_equals_that_of_finite_differences_for_each_image(stream: Stream) -> None:
    torch.manual_seed(0)
    network = MethodOptions().build_network(partial(ConvNetOptions(width=1).build, 1), (1, 8, 8))
    network.grow(3)
    network.double().eval()
    x = sample_batch(stream.tasks[0], size=20).x.double()  # more than one per-sample batch
    y = torch.arange(20) % 3
    weights = list(network.backbone.parameters())
    with torch.no_grad():  # away from 0, where the derivative of a ReLU does not exist
        for weight in weights:
            weight.add_(0.1 * torch.randn(weight.shape))
    fisher_diagonals = fisher_diagonal(network, weights, x, y, 0)
    step = 1e-6
    for weight, fisher in zip(weights, fisher_diagonals, strict=True):
        numbers = weight.data.view(-1)
        for i in range(0, len(numbers), 7):
            start = numbers[i].item()
            sides = []
            for moved in (start + step, start - step):
                numbers[i] = moved
                with torch.no_grad():
                    sides.append(log_probability(network, x, y))
            numbers[i] = start
            expected = ((sides[0] - sides[1]) / (2 * step)).square().mean()
            assert fisher.view(-1)[i].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-9)


def test_online_ewc_has_one_anchor_and_a_decayed_sum_of_fishers(stream: Stream) -> None:
    method = train_few_steps(small("ewc", decay=0.5, fisher_samples=40), stream, tasks=1)
    assert isinstance(method, EWC)
    fishers = []
    for k in range(2):
        task = stream.tasks[k]
        torch.manual_seed(k)
        method.end_task(task)
        torch.manual_seed(k)  # the same images and labels again
        rows = torch.randperm(len(task.train))[:40]
        x = task.normalization(task.train.pixels[task.train.rows[rows]])
        with evaluating(method.network), torch.no_grad():
            y = torch.multinomial(method.network(x, [k]).softmax(dim=1), 1).squeeze(1)
            fishers.append(fisher_diagonal(method.network, method.shared_weights(), x, y, k))
        assert all(
            torch.equal(a, w) for a, w in zip(method.weight_buffers("anchor"), method.shared_weights(), strict=True)
        )
        if k == 0:
            method.release()
            begin(method, stream.tasks[1], seed=0)
            method.train()
            small_steps(method, stream, 3)
    for importance, first, second in zip(method.weight_buffers("importance"), *fishers, strict=True):
        torch.testing.assert_close(importance, 0.5 * first + second)


def test_the_penalty_is_the_weighted_squared_distance_from_the_anchor(stream: Stream) -> None:
    method = train_few_steps(small("ewc", strength=6.0), stream, tasks=1)
    assert isinstance(method, QuadraticPenalty)
    method.end_task(stream.tasks[0])
    with torch.no_grad():
        for weight in method.shared_weights():
            weight.add_(0.5)
    pairs = zip(method.weight_buffers("importance"), method.shared_weights(), strict=True)
    assert method.penalty().item() == pytest.approx(sum(f.sum().item() for f, _ in pairs) / 4, rel=1e-4)
    assert method.strength == 3.0  # λ/2


def test_a_very_large_strength_keeps_the_important_weights(stream: Stream) -> None:
    moved = {}
    for strength in (0.0, 1e6):
        method = train_few_steps(small("ewc", strength=strength), stream, tasks=1, steps=10)
        assert isinstance(method, EWC)
        method.end_task(stream.tasks[0])
        method.release()
        begin(method, stream.tasks[1], seed=0)
        method.train()
        small_steps(method, stream, 20)
        moved[strength] = method.penalty().item()
    assert moved[1e6] < 0.2 * moved[0.0]


def plain_gradient(lr: float) -> OptimizerOptions:
    return OptimizerOptions(name="sgd", lr=lr, weight_decay=0.0)


@pytest.mark.parametrize("task", [0, 1])
def test_si_path_integral_is_the_decrease_of_the_tasks_own_loss(task: int, stream: Stream) -> None:
    """With small steps on one batch, Σ_i ω_i is the decrease of L_hm, without the gradient of the penalty."""
    method = small("si", plain_gradient(1e-4), strength=0.5)
    assert isinstance(method, SI)
    if task:
        train_few_steps(method, stream, tasks=1, steps=5)
        method.end_task(stream.tasks[0])
        for importance in method.weight_buffers("importance"):
            importance.add_(0.3)  # so that the penalty has an effect
        method.release()
    begin(method, stream.tasks[task], seed=0)
    method.train()
    with torch.no_grad():  # away from the anchor, where the penalty has a gradient
        for weight in method.shared_weights():
            weight.add_(0.05 * torch.randn(weight.shape))
    for group in method.optimizers[0].param_groups:
        group["momentum"], group["nesterov"] = 0.0, False
        head = [p for p in group["params"] if p is method.network.heads.task_parameters()[task]]
        group["lr"] = 0.0 if head else 1e-4
    batch = sample_batch(stream.tasks[task], size=64)
    losses = [method.observe(batch)["L_hm"].item() for _ in range(100)]
    path = sum(p.sum().item() for p in method.weight_buffers("path"))
    assert losses[0] - losses[-1] > 1e-4
    assert path == pytest.approx(losses[0] - losses[-1], rel=0.05)


def test_si_adds_the_path_integral_to_the_importance(stream: Stream) -> None:
    method = train_few_steps(small("si", damping=0.2), stream, tasks=1, steps=5)
    assert isinstance(method, SI)
    paths = [path.clone() for path in method.weight_buffers("path")]
    starts = [anchor.clone() for anchor in method.weight_buffers("anchor")]
    method.end_task(stream.tasks[0])
    weight_states = zip(method.weight_buffers("importance"), paths, starts, method.shared_weights(), strict=True)
    for importance, path, start, weight in weight_states:
        torch.testing.assert_close(importance, path.clamp(min=0) / ((weight - start).square() + 0.2))
    method.release()
    begin(method, stream.tasks[1], seed=0)
    assert all(not path.any() for path in method.weight_buffers("path"))
    assert all(torch.equal(a, w) for a, w in zip(method.weight_buffers("anchor"), method.shared_weights(), strict=True))


@pytest.mark.parametrize("name", ["finetune", "joint", "lwf", "ewc", "si", "er", "agem", "der", "der++", "gcr"])
def test_methods_also_work_with_generated_heads(name: str, stream: Stream) -> None:
    method = small(name, heads=PAHOptions(prototype_size=6, hidden=(16,)))
    train_few_steps(method, stream, tasks=1)
    method.end_task(stream.tasks[0])
    method.release()
    begin(method, stream.tasks[1], seed=0)
    method.train()
    names = small_steps(method, stream, 3)
    assert any("hypernetwork" in name for name in names)
    assert "heads.prototypes.tasks.1" in names
    assert method(sample_batch(stream.tasks[0]).x, 0).shape == (16, 3)


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (LwFOptions, "stability", -1.0),
        (LwFOptions, "temperature", 0.0),
        (EWCOptions, "strength", -1.0),
        (EWCOptions, "decay", 1.5),
        (EWCOptions, "fisher_samples", 0),
        (SIOptions, "strength", -1.0),
        (SIOptions, "damping", 0.0),
    ],
)
def test_values_out_of_range_are_refused(options: type[MethodOptions], name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"method\.{name}: expected .*, got {value}"):
        options(**{name: value})
