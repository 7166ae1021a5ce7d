"""Tests of the sampling of old tasks in a step: the sampled terms are unbiased estimates of the full ones."""

import itertools
from collections import Counter
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import digits, sample_batch, small_pah, snapshot, train_few_steps
from pah.core.config import InputError
from pah.data.augment import AugmentOptions
from pah.data.task import Normalization, Step
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions, Terms
from pah.methods.pah_options import PAHOptions
from pah.methods.regularization import LwFOptions
from pah.methods.teacher import sample_old_tasks
from pah.models.backbones import ConvNetOptions
from pah.models.network import Network
from pah.training.loop import train
from pah.training.options import TrainingOptions
from pah.training.state import EpochDone, StepDone, TrainState


def step(index: int) -> Step:
    return Step(0, 4, 0, index, AugmentOptions(), Normalization((0.5,), (0.5,)))


def test_a_step_uses_all_tasks_up_to_the_limit_and_then_a_uniform_sample() -> None:
    assert list(sample_old_tasks(range(5), 5, step(0))) == [0, 1, 2, 3, 4]
    samples = [tuple(sample_old_tasks(range(5), 2, step(index))) for index in range(2000)]
    assert samples == [tuple(sample_old_tasks(range(5), 2, step(index))) for index in range(2000)]
    pairs = Counter(samples)
    assert set(pairs) == set(itertools.combinations(range(5), 2))
    assert max(abs(count - 200) for count in pairs.values()) < 5 * 200**0.5  # ten pairs, five standard deviations


def lwf(**options: object) -> Method:
    torch.manual_seed(0)
    lwf_options = LwFOptions(**options)  # type: ignore[arg-type]
    backbone = ConvNetOptions(width=4).build(1)
    network = Network(backbone, lwf_options.build_heads(backbone.features, 1), (1, 8, 8))
    return METHODS["lwf"].method(network, OptimizerOptions(), lwf_options)


@pytest.mark.parametrize("over_tasks", ["mean", "sum"])
@pytest.mark.parametrize("name", ["pah", "lwf"])
def test_losses_and_gradients_averaged_over_all_samples_are_those_of_all_tasks(
    name: str, over_tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = digits(tasks=5)
    method = small_pah(over_tasks=over_tasks) if name == "pah" else lwf(over_tasks=over_tasks)
    train_few_steps(method, stream, 5)
    batch = sample_batch(stream.tasks[4], seed=3)
    parameters, before = list(method.network.parameters()), snapshot(method)

    def weighted_terms(sample: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the weighted terms other than L_hm of a step on this sample of tasks, each with its gradient."""
        recorded: dict[str, Tensor] = {}

        def record(_: object, terms: Terms, weights: dict[str, float]) -> Terms:
            for term in terms.keys() & {"L_sm", "L_sp"}:
                loss = weights[term] * terms[term]
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
                filled = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
                recorded[term] = torch.cat([loss.detach().reshape(1), *(g.flatten() for g in filled)])
            return terms

        module = f"pah.methods.{'pah' if name == 'pah' else 'regularization'}"
        monkeypatch.setattr(f"{module}.sample_old_tasks", lambda *_: list(sample))
        monkeypatch.setattr(f"{module}.descend", record)
        method.load_state_dict(before)  # restores the batch-norm statistics, which a step changes
        method.observe(batch)
        return recorded

    whole = weighted_terms((0, 1, 2, 3))
    samples = [weighted_terms(pair) for pair in itertools.combinations(range(4), 2)]
    assert set(whole) == ({"L_sm", "L_sp"} if name == "pah" else {"L_sm"})
    for term, expected in whole.items():
        assert expected.any()
        assert not torch.allclose(samples[0][term], expected, rtol=1e-2)
        mean = torch.stack([sample[term] for sample in samples]).mean(dim=0)
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)


def test_prototype_logits_of_many_tasks_are_those_of_single_tasks() -> None:
    stream = digits(tasks=3)  # 4 + 3 + 3 classes
    method = small_pah()
    train_few_steps(method, stream, 3)
    for _ in range(30):
        method.network.grow(3)
    old = range(33)
    with torch.no_grad():
        together = method._all_prototype_logits(old)
        alone = [method._prototype_logits([k]) for k in old]
    assert together.shape == (sum(method.network.sizes(old)), 4)
    for k, (actual, expected) in enumerate(zip(together.split(method.network.sizes(old)), alone, strict=True)):
        torch.testing.assert_close(actual[:, : method.heads.sizes[k]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["old_tasks_per_step", "aligned_tasks_per_step"])
def test_each_term_uses_as_many_tasks_as_its_option_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = digits(tasks=5)
    limits = {"old_tasks_per_step": 4, "aligned_tasks_per_step": 4} | {name: 2}
    method = small_pah(**limits)
    train_few_steps(method, stream, 5)
    task_counts: dict[str, int] = {}
    for term, name_of_function in (
        ("old_tasks_per_step", "_image_terms"),
        ("aligned_tasks_per_step", "alignment_loss"),
    ):
        original = getattr(method, name_of_function)

        def count_tasks(*arguments: Any, term: str = term, original: Any = original) -> Any:
            task_counts[term] = len(arguments[-1])
            return original(*arguments)

        monkeypatch.setattr(method, name_of_function, count_tasks)
    method.observe(sample_batch(stream.tasks[4]))
    assert task_counts == limits


def test_prototypes_are_aligned_at_every_nth_step_of_a_task_and_the_mean_of_the_term_is_over_these() -> None:
    stream = digits(tasks=2)
    training = TrainingOptions(epochs=2, batch_size=128)
    method = small_pah(align_every=2)
    state = TrainState()
    counted: list[float | None] = []
    for event in train(method, stream, training, AugmentOptions(), 0, state):
        if isinstance(event, StepDone) and state.task == 1:
            counted.append(event.terms.get("L_sp"))
        if isinstance(event, EpochDone) and event.task == 1 and event.epoch == 0:
            assert event.terms["L_sp"] == pytest.approx(fmean(term for term in counted if term is not None))
    assert [term is not None for term in counted] == [k % 2 == 0 for k in range(len(counted))]
    assert len(counted) > 2


def test_a_frozen_backbone_aligns_prototypes_less_often_by_default() -> None:
    method = small_pah()
    assert method._align_every == 1
    method.network.backbone.freeze()
    assert method._align_every == 100
    assert small_pah(align_every=3)._align_every == 3


@pytest.mark.parametrize("options", [PAHOptions, LwFOptions])
def test_the_limit_of_tasks_is_at_least_one(options: type[PAHOptions | LwFOptions]) -> None:
    with pytest.raises(InputError, match="old_tasks_per_step: expected at least 1, got 0"):
        options(old_tasks_per_step=0)
