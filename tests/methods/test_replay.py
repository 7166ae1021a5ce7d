"""Tests of the buffer, and of ER, A-GEM, DER, DER++ and GCR against their defining equations."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from test_regularization import small
from torch import Tensor

from helpers import digits, sample_batch, train_few_steps
from pah.core.config import InputError, generator
from pah.data.stream import Stream
from pah.methods import METHODS
from pah.methods.buffer import Buffer, Samples
from pah.methods.gcr import GCR, select_coreset
from pah.methods.replay import AGEM, DER, DERpp, Replay, StoredBatch, class_shares, project_gradients
from pah.training.loop import begin

REPLAY = ["er", "agem", "der", "der++", "gcr"]


@pytest.fixture(scope="module")
def stream() -> Stream:
    return digits(tasks=3, classes=7)  # tasks of 3, 2 and 2 classes


def replay(name: str, **options: Any) -> Replay:
    method = small(name, **options)
    assert isinstance(method, Replay)
    return method


def numbered_samples(numbers: Tensor) -> Samples:
    """Return samples whose labels are the given numbers."""
    count = len(numbers)
    pixels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    return Samples(pixels, numbers, torch.zeros(count, dtype=torch.int64), torch.zeros(count, 0), torch.ones(count))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_reservoir_sampling_is_uniform(batch: int) -> None:
    """Each of 400 samples is finally in the buffer of 20 with probability 1/20, whatever its position."""
    counts = torch.zeros(400)
    for seed in range(300):
        buffer = Buffer(20, (1, 1, 1))
        for step, part in enumerate(torch.arange(400).split(batch)):
            buffer.offer(numbered_samples(part), generator(seed, step))
        kept = buffer.samples().labels
        assert len(kept) == len(set(kept.tolist())) == 20
        counts[kept] += 1
    assert chisquare(counts.reshape(20, 20).sum(dim=1).numpy()).pvalue > 0.001  # early and late samples alike
    assert chisquare(counts.numpy()).pvalue > 0.001


def test_a_reservoir_keeps_all_until_it_is_full() -> None:
    buffer = Buffer(5, (1, 1, 1))
    buffer.offer(numbered_samples(torch.arange(3)), generator(0))
    assert buffer.samples().labels.tolist() == [0, 1, 2]
    assert len(buffer.draw(10, generator(0))) == 3
    buffer.offer(numbered_samples(torch.arange(3, 6)), generator(1))
    assert len(buffer) == 5


def test_a_draw_is_without_repetition_and_uniform() -> None:
    buffer = Buffer(10, (1, 1, 1))
    buffer.replace(numbered_samples(torch.arange(10)))
    drawn = torch.stack([buffer.draw(3, generator(seed)).labels for seed in range(500)])
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert chisquare(drawn.flatten().bincount(minlength=10).numpy()).pvalue > 0.001


@pytest.mark.parametrize("name", REPLAY)
def test_stored_images_are_training_images_with_their_labels_and_tasks(name: str, stream: Stream) -> None:
    method = replay(name, buffer=30)
    for task in stream.tasks:
        begin(method, task, seed=0)
        method.train()
        for step in range(6):
            method.observe(sample_batch(task, seed=step))
        method.end_task(task)
        method.release()
    stored = method.buffer.samples()
    assert 0 < method.stored_samples == len(stored) <= 30
    assert set(stored.tasks.tolist()) == {0, 1, 2}
    for pixels, label, k in zip(stored.pixels, stored.labels, stored.tasks.tolist(), strict=True):
        part = stream.tasks[k].train
        same = (part.pixels[part.rows] == pixels).flatten(1).all(dim=1)
        assert label in part.labels[same]


@pytest.mark.parametrize("name", REPLAY)
def test_a_buffer_with_less_than_a_sample_for_each_class_is_refused(name: str) -> None:
    options = METHODS[name].options(buffer=9)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"method.buffer: expected at least one sample for each of 10 classes, got 9"):
        options.check_stream([2] * 5)
    options.check_stream([3] * 3)


def test_class_shares_are_equal() -> None:
    assert class_shares(10, 4) == [3, 3, 2, 2]
    assert class_shares(8, 4) == [2] * 4


@pytest.mark.parametrize("name", ["agem", "gcr"])
def test_at_the_end_of_a_task_each_class_seen_has_its_share(name: str, stream: Stream) -> None:
    method = replay(name, buffer=35)
    for k in range(3):
        begin(method, stream.tasks[k], seed=0)
        method.train()
        method.observe(sample_batch(stream.tasks[k]))
        method.end_task(stream.tasks[k])
        method.release()
        stored = method.buffer.samples()
        counts = [
            int(((stored.tasks == j) & (stored.labels == c)).sum()) for j in range(k + 1) for c in range([3, 2, 2][j])
        ]
        shares = class_shares(35, len(counts))
        assert all(0 < count <= share for count, share in zip(counts, shares, strict=True))
        if name == "agem":
            assert counts == shares


def test_the_projected_gradient_has_no_negative_product_with_the_reference() -> None:
    torch.manual_seed(0)
    violated = 0
    for _ in range(50):
        weights = [torch.zeros(4, 3, requires_grad=True), torch.zeros(5, requires_grad=True)]
        reference = [torch.randn(4, 3), torch.randn(5)]
        before = [torch.randn(4, 3), None]  # a weight may have no gradient
        weights[0].grad = before[0]
        product = (before[0] * reference[0]).sum()  # type: ignore[operator]
        project_gradients(weights, reference)
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        after = sum((g * r).sum() for g, r in zip(grads, reference, strict=True))
        if product < 0:
            violated += 1
            assert after == pytest.approx(0, abs=1e-4)
        else:
            assert weights[0].grad is before[0]
    assert 10 < violated < 40


def test_agem_steps_along_the_projected_gradient(stream: Stream) -> None:
    method = replay("agem", buffer=40)
    assert isinstance(method, AGEM)
    train_few_steps(method, stream, tasks=1, steps=10)
    method.end_task(stream.tasks[0])
    method.release()
    begin(method, stream.tasks[1], seed=0)
    method.train()
    method.buffer.labels[:] = (method.buffer.labels + 1) % 3  # wrong labels: the gradients conflict
    weights = [*method.network.backbone.parameters(), *method.network.heads.parameters()]
    products: list[float] = []

    def record_product(*_: object) -> None:
        stored = method.draw_stored(batch)
        state = copy.deepcopy(method)
        own = [*state.network.backbone.parameters(), *state.network.heads.parameters()]
        x = batch.step.prepare(stored.samples.pixels, "replay 0")
        loss = F.cross_entropy(state.own_task_logits(x, stored.samples.tasks), stored.samples.labels)
        reference = torch.autograd.grad(loss, own, materialize_grads=True)
        pairs = zip(weights, reference, strict=True)
        products.append(sum(0.0 if w.grad is None else (w.grad * r).sum().item() for w, r in pairs))

    method.optimizers[0].register_step_pre_hook(record_product)
    for step in range(5):
        batch = sample_batch(stream.tasks[1], seed=step)
        assert set(method.observe(batch)) == {"L_hm", "L_replay"}
    assert len(products) == 5
    assert min(products) > -1e-3
    assert min(map(abs, products)) < 1e-3  # a projected gradient is orthogonal to the reference


@pytest.mark.parametrize("name", ["der", "der++"])
def test_stored_logits_are_those_from_when_the_sample_was_stored(name: str, stream: Stream) -> None:
    method = replay(name, buffer=200)
    begin(method, stream.tasks[0], seed=0)
    method.train()
    expected = []
    for step in range(3):
        batch = sample_batch(stream.tasks[0], seed=step)
        before = copy.deepcopy(method)
        draws = [before.draw_stored(batch), before.draw_stored(batch, "second draw")][: 1 + (name == "der++")]
        with torch.no_grad():
            expected.append(before.batch_logits(batch, *draws)[0])
        method.observe(batch)
    assert torch.equal(method.buffer.samples().logits, torch.cat(expected))


def test_the_logit_loss_is_the_mean_squared_change_over_the_classes_of_the_samples_task(stream: Stream) -> None:
    method = train_few_steps(replay("der"), stream, tasks=2)  # tasks of 3 and 2 classes
    assert isinstance(method, DER)
    stored = Samples(
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
        torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]]),
        torch.tensor([1.0, 3.0]),
    )
    now = torch.tensor([[2.0, 2.0, 5.0], [1.0, 4.0, -1e4]])
    assert method.logit_loss(now, StoredBatch(stored, 0, 2, 1.0)).item() == pytest.approx(
        (1 * (1 + 4) / 3 + 3 * 4 / 2) / 4
    )


def test_the_label_loss_is_weighted_by_sample(stream: Stream) -> None:
    method = train_few_steps(replay("der++"), stream, tasks=1)
    assert isinstance(method, DERpp)
    stored = some_samples(stream, torch.tensor([1.0, 0.0, 2.0]))
    logits = torch.randn(3, 3)
    each = F.cross_entropy(logits, stored.labels, reduction="none")
    assert method.label_loss(logits, StoredBatch(stored, 0, 3, 1.0)).item() == pytest.approx(
        ((each[0] + 2 * each[2]) / 3).item()
    )


def some_samples(stream: Stream, weights: Tensor) -> Samples:
    count = len(weights)
    part = stream.tasks[0].train
    zeros = torch.zeros(count, dtype=torch.int64)
    return Samples(part.pixels[part.rows[:count]], part.labels[:count], zeros, torch.zeros(count, 3), weights)


def test_replay_reduces_forgetting(stream: Stream) -> None:
    accuracies = {}
    for strength in (0.0, 1.0):
        method = train_few_steps(replay("er", strength=strength), stream, tasks=3, steps=25)
        task = stream.tasks[0]
        x = task.normalization(task.test.pixels[task.test.rows])
        method.eval()
        with torch.no_grad():
            accuracies[strength] = (method(x, 0).argmax(1) == task.test.labels).double().mean().item()
    assert accuracies[1.0] > accuracies[0.0]


def test_a_coreset_approximates_the_gradient_better_than_random_samples(stream: Stream) -> None:
    method = train_few_steps(replay("gcr"), stream, tasks=1, steps=10)
    assert isinstance(method, GCR)
    task = stream.tasks[0]
    method.normalization = task.normalization
    method.eval()
    part = torch.nonzero(task.train.labels == 0).squeeze(1)
    count = len(part)
    zeros = torch.zeros(count, dtype=torch.int64)
    samples = Samples(task.train.pixels[task.train.rows[part]], zeros, zeros, torch.zeros(count, 3), torch.ones(count))
    with torch.no_grad():
        gradients = method.head_gradients(samples).double().numpy()
    target = gradients.sum(axis=0)
    kept, weights = select_coreset(gradients, np.ones(count), 8, ridge=0.0)
    assert len(kept) == len(set(kept.tolist())) <= 8
    assert (weights > 0).all()
    error = np.linalg.norm(target - weights @ gradients[kept])
    rng = np.random.default_rng(0)
    draws = [rng.choice(count, 8, replace=False) for _ in range(200)]
    others = [np.linalg.norm(target - count / 8 * gradients[draw].sum(axis=0)) for draw in draws]
    assert error < min(others)
    more = select_coreset(gradients, np.ones(count), 16, ridge=0.0)
    assert np.linalg.norm(target - more[1] @ gradients[more[0]]) <= error + 1e-9


def test_a_ridge_reduces_the_coresets_weights_and_zero_gradients_are_handled() -> None:
    gradients = np.random.default_rng(0).normal(size=(40, 12)) + 1
    sums = [np.square(select_coreset(gradients, np.ones(40), 5, ridge)[1]).sum() for ridge in (0.0, 1.0, 10.0)]
    assert sums == sorted(sums, reverse=True)
    kept, weights = select_coreset(np.zeros((10, 3)), np.ones(10), 4, 0.5)
    assert len(kept) == 4
    assert weights.tolist() == [2.5] * 4


def test_head_gradients_are_those_of_the_loss(stream: Stream) -> None:
    method = train_few_steps(replay("gcr"), stream, tasks=1)
    assert isinstance(method, GCR)
    method.normalization = stream.normalization
    method.eval()
    stored = some_samples(stream, torch.ones(4))
    gradients = method.head_gradients(stored)
    head = method.network.heads.task_parameters()[0]
    for i in range(4):
        loss = F.cross_entropy(method(stream.normalization(stored.pixels[i : i + 1]), 0), stored.labels[i : i + 1])
        (expected,) = torch.autograd.grad(loss, [head])
        torch.testing.assert_close(gradients[i].view_as(expected), expected, atol=1e-5, rtol=1e-4)
