"""Tests of HNet and HN2 against their equations: generated weights, the regularizer, and frozen parameters."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import changed_tensors, digits, sample_batch, snapshot, train_few_steps
from pah import AugmentOptions, TrainingOptions, TrainState, train
from pah.core.config import InputError
from pah.data.stream import Stream
from pah.data.task import NO_EXAMPLES
from pah.methods.base import Method, MethodOptions, OptimizerOptions
from pah.methods.bounds import Finetune
from pah.methods.hypernet import HN2, HN2Options, HNet, HNetOptions
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions, ResNet32Options, SlimResNet18Options
from pah.training.checkpoint import load_optimizers, optimizer_tensors
from pah.training.evaluation import evaluate
from pah.training.loop import begin, replay, set_learning_rates

SMALL: dict[str, Any] = {"embedding": 8, "hidden": (16,)}
CONVNET = partial(ConvNetOptions(width=4).build, 1)
RESNET = partial(SlimResNet18Options(width=4).build, 1)


def hnet(**changes: Any) -> HNet:
    options = HNetOptions(**{**SMALL, **changes})
    torch.manual_seed(0)
    return HNet(options.build_network(CONVNET, (1, 8, 8)), OptimizerOptions(lr=3e-3), options).to(
        memory_format=torch.channels_last
    )


def hn2(build: Callable[[], Backbone] = CONVNET, **changes: Any) -> HN2:
    options = HN2Options(**{**SMALL, "chunks": 18, **changes})
    torch.manual_seed(0)
    return HN2(options.build_network(build, (1, 8, 8)), OptimizerOptions(lr=3e-3), options).to(
        memory_format=torch.channels_last
    )


BUILDERS: dict[str, Callable[..., HNet | HN2]] = {"hnet": hnet, "hn2": hn2}
both = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def stream() -> Stream:
    return digits()


def generated(method: Method, task: int) -> Tensor:
    """Return all weights generated for a task, computed from the equations layer by layer."""
    if isinstance(method, HNet):
        assert isinstance(method.heads.hypernetwork, nn.Sequential)
        made = mlp(method.heads.hypernetwork, method.heads.tasks[task])
        return made / math.sqrt(3 * method.heads.features)
    assert isinstance(method, HN2)
    hypernetwork, parts = method.hypernetwork, method.partial_network.parts
    inputs = [torch.cat([parts.tasks[task], chunk]) for chunk in hypernetwork.chunks]
    made = torch.cat([mlp(hypernetwork.net, x) for x in inputs])[: sum(hypernetwork.numels)]
    stds = [*parts.stds, 1 / math.sqrt(3 * parts.features)]
    return torch.cat([std * n for std, n in zip(stds, made.split(hypernetwork.numels), strict=True)])


def mlp(net: nn.Sequential, x: Tensor) -> Tensor:
    first, norm, _, last = net
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    h = F.layer_norm(first.weight @ x + first.bias, norm.normalized_shape, norm.weight, norm.bias)
    return last.weight @ h.relu() + last.bias


@both
def test_the_regularizer_is_the_mean_squared_change_since_the_task_began(name: str, stream: Stream) -> None:
    method = BUILDERS[name](**({"old_tasks_per_step": 9} if name == "hn2" else {}))
    train_few_steps(method, stream, 2)
    with torch.no_grad():
        then = [generated(method, k) for k in (0, 1)]
    method.release()
    begin(method, stream.tasks[2], seed=0)
    assert method.observe(sample_batch(stream.tasks[2]))["L_reg"].item() == 0
    for step in range(1, 5):
        method.observe(sample_batch(stream.tasks[2], seed=step))
    with torch.no_grad():
        now = [generated(method, k) for k in (0, 1)]
    expected = sum(((a - b) ** 2).sum() for a, b in zip(now, then, strict=True)) / 2
    term = method.observe(sample_batch(stream.tasks[2], seed=9))["L_reg"]
    assert term > 0
    torch.testing.assert_close(term, torch.as_tensor(expected))


@both
def test_the_regularizer_is_absent_in_the_first_task_and_with_weight_zero(name: str, stream: Stream) -> None:
    assert set(train_few_steps(BUILDERS[name](), stream, 1).observe(sample_batch(stream.tasks[0]))) == {"L_hm"}
    assert set(train_few_steps(BUILDERS[name](), stream, 2).observe(sample_batch(stream.tasks[1]))) == {"L_hm", "L_reg"}
    assert set(train_few_steps(BUILDERS[name](beta=0.0), stream, 2).observe(sample_batch(stream.tasks[1]))) == {"L_hm"}


@both
def test_a_very_large_weight_keeps_the_weights_generated_for_old_tasks(name: str, stream: Stream) -> None:
    moved = {}
    for beta in (0.0, 1e6):
        method = BUILDERS[name](beta=beta)
        train_few_steps(method, stream, 1)
        before = generated(method, 0).detach()
        method.release()
        begin(method, stream.tasks[1], seed=0)
        for step in range(60):
            set_learning_rates(method, 1 - step / 60)
            method.observe(sample_batch(stream.tasks[1], seed=step))
        moved[beta] = ((generated(method, 0) - before).norm() / before.norm()).item()
    assert moved[0.0] > 0.05
    assert moved[1e6] < moved[0.0] / 10


@both
def test_the_target_is_saved_within_a_task_not_trained_and_deleted_after_it(name: str, stream: Stream) -> None:
    method = train_few_steps(BUILDERS[name](), stream, 2, steps=0)
    target = {key: tensor.clone() for key, tensor in method.state_dict().items() if key.startswith("target")}
    assert target
    learning = {id(p) for optimizer in method.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert not learning & {id(p) for key, p in method.named_parameters() if key.startswith("target")}
    for step in range(3):
        method.observe(sample_batch(stream.tasks[1], seed=step))
    assert all(torch.equal(method.state_dict()[key], tensor) for key, tensor in target.items())
    method.release()
    assert not [key for key in method.state_dict() if key.startswith("target")]


def test_a_shared_backbone_learns_or_is_bit_for_bit_frozen_after_the_first_task(stream: Stream) -> None:
    for shared in ("free", "frozen"):
        method = hnet(shared=shared)
        fresh = snapshot(method.network.backbone)
        train_few_steps(method, stream, 1)
        assert len(changed_tensors(method.network.backbone, fresh)) == len(fresh), "the first task trains it"
        before = snapshot(method.network.backbone)
        method.release()
        begin(method, stream.tasks[1], seed=0)
        method.train()
        for step in range(3):
            method.observe(sample_batch(stream.tasks[1], seed=step))
        assert len(changed_tensors(method.network.backbone, before)) == (len(before) if shared == "free" else 0)


@pytest.mark.parametrize("build", [CONVNET, RESNET])
def test_early_stages_and_parameters_of_old_tasks_do_not_change(build: Any, stream: Stream) -> None:
    method = hn2(build)
    fresh = snapshot(method.network.backbone)
    train_few_steps(method, stream, 1)
    assert changed_tensors(method.network.backbone, fresh) == set(fresh), "the first task trains the early stages"
    before = snapshot(method)
    method.release()
    begin(method, stream.tasks[1], seed=0)
    method.train()
    new = snapshot(method)
    for step in range(3):
        method.observe(sample_batch(stream.tasks[1], seed=step))
    moved = changed_tensors(method, new)
    learning = {id(p) for group in method.optimizers[0].param_groups for p in group["params"]}
    assert not learning & {id(p) for p in method.network.backbone.parameters()}
    assert not moved & {key for key in before if "backbone" in key or "late.0" in key or "tasks.0" in key}
    assert {key for key in new if "late.1" in key or "tasks.1" in key} <= moved
    assert {key for key in new if key.startswith("network.heads.hypernetwork.net")} <= moved


def test_embeddings_of_old_tasks_do_not_change(stream: Stream) -> None:
    method = hnet()
    train_few_steps(method, stream, 2)
    before = [e.detach().clone() for e in method.heads.tasks]
    method.release()
    begin(method, stream.tasks[2], seed=0)
    started = method.heads.tasks[2].detach().clone()
    method.zero_grad()
    for step in range(3):
        method.observe(sample_batch(stream.tasks[2], seed=step))
    assert all(torch.equal(a, b) for a, b in zip(before, method.heads.tasks, strict=False))
    assert all(e.grad is None for e in method.heads.tasks[:2])
    assert not torch.equal(method.heads.tasks[2], started)


def test_embeddings_have_no_weight_decay(stream: Stream) -> None:
    for name, made in BUILDERS.items():
        method = train_few_steps(made(), stream, 2)
        decayed = {id(p) for g in method.optimizers[0].param_groups if g["weight_decay"] > 0 for p in g["params"]}
        named = {key for key, p in method.named_parameters() if id(p) in decayed}
        assert named, name
        assert not [key for key in named if "tasks" in key or "chunks" in key]


def test_generated_heads_start_with_the_variance_of_stored_ones() -> None:
    variances = []
    for seed in range(30):
        torch.manual_seed(seed)
        heads = HNetOptions().build_heads(128, 1)
        heads.grow(10)
        variances.append(heads.rows([0]).var())
    assert torch.stack(variances).mean().item() == pytest.approx(1 / (3 * 128), rel=0.1)


@pytest.mark.parametrize("options", [ConvNetOptions(width=16), SlimResNet18Options(width=8)])
def test_generated_filters_start_with_the_variance_of_their_own_initialization(options: Any) -> None:
    build = partial(options.build, 3)
    own = {f"{name}.weight": m.weight.var() for name, m in build().body.named_modules() if isinstance(m, nn.Conv2d)}
    variances: dict[str, list[Tensor]] = {}
    for seed in range(30):
        torch.manual_seed(seed)
        network = HN2Options(generate_from=2).build_network(build, (3, 32, 32))
        network.grow(5)
        for name, filters in zip(network.filter_names, network.parts.generate(0)[0], strict=True):
            variances.setdefault(name, []).append(filters.var())
    assert variances
    for name, values in variances.items():
        assert torch.stack(values).mean().item() == pytest.approx(own[name].item(), rel=0.2), name


@pytest.mark.parametrize("build", [CONVNET, RESNET])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_the_backbone_with_the_generated_filters_loaded(
    build: Callable[[], Backbone], training: bool, stream: Stream
) -> None:
    method = hn2(build)
    train_few_steps(method, stream, 1)
    network, x = method.partial_network, sample_batch(stream.tasks[0], seed=5).x
    filters, rows = network.parts.generate(0)
    shared, own = network.backbone.body.state_dict(), network.late[0].state_dict()
    reference = build()
    reference.body.load_state_dict(
        {**shared, **own, **dict(zip(network.filter_names, filters, strict=True))}, strict=True
    )
    reference.train(training)
    method.train(training)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(network(x, [0]), F.linear(expected, rows[:, :-1], rows[:, -1]))
        body = reference.body.state_dict()
        for key, tensor in network.late[0].state_dict().items():  # changed equally in training mode
            torch.testing.assert_close(tensor, body[key])
        torch.testing.assert_close(network.eval().features(x, 0), reference.eval()(x))


def test_several_heads_in_one_pass_give_the_logits_of_single_passes(stream: Stream) -> None:
    method = hn2()
    train_few_steps(method, stream, 3)
    method.eval()
    x = sample_batch(stream.tasks[0]).x
    with torch.no_grad():
        together = method.logits_per_task(x, [0, 1, 2])
        for k, answer in enumerate(together):
            torch.testing.assert_close(method(x, k), answer)
            weight, bias = method.network.head(k)
            torch.testing.assert_close(F.linear(method.partial_network.features(x, k), weight, bias), answer)


def test_one_drawn_old_task_is_an_unbiased_estimate_of_all(stream: Stream) -> None:
    method = hn2()
    train_few_steps(method, stream, 4)
    with torch.no_grad():
        each = torch.stack([method.generated_change([k]) for k in range(3)])
        torch.testing.assert_close(each.mean(), method.generated_change(range(3)))
    assert len(set(each.tolist())) == 3
    set_learning_rates(method, 0.0)  # no weight changes between the draws
    drawn = torch.stack([method.observe(sample_batch(stream.tasks[3], seed=step))["L_reg"] for step in range(300)])
    nearest = (drawn[:, None] - each).abs().argmin(dim=1)
    torch.testing.assert_close(drawn, each[nearest])
    assert (nearest.bincount(minlength=3) - 100).abs().max() < 30  # within 3.7 standard deviations


@both
def test_tasks_of_unequal_size_are_refused_in_one_line(name: str) -> None:
    options: MethodOptions = HNetOptions() if name == "hnet" else HN2Options()
    options.check_stream([2, 2, 2])
    with pytest.raises(InputError, match=r"same number of classes in every task, got 4\+3\+3") as raised:
        options.check_stream([4, 3, 3])
    assert "\n" not in str(raised.value)
    method = BUILDERS[name]()
    method.network.grow(4)
    with pytest.raises(InputError, match=r"got 4\+3"):
        method.network.grow(3)


@both
def test_equal_seeds_give_equal_weights_and_a_replay_restores_them(name: str) -> None:
    stream, options = digits(tasks=3, classes=6), TrainingOptions(epochs=1, batch_size=32)
    methods = []
    for _ in range(2):
        method, state = BUILDERS[name](), TrainState()
        assert list(train(method, stream, options, AugmentOptions(), 0, state))
        methods.append(method)
    assert not changed_tensors(methods[0], snapshot(methods[1]))
    without_images = dataclasses.replace(
        stream, tasks=tuple(dataclasses.replace(task, train=NO_EXAMPLES) for task in stream.tasks)
    )
    fresh = BUILDERS[name]()
    replay(fresh, without_images, state, seed=0)
    fresh.load_state_dict(snapshot(methods[0]), strict=True)
    assert evaluate(fresh, stream.tasks, options) == evaluate(methods[0], stream.tasks, options)


@both
def test_a_run_resumed_within_a_task_continues_exactly(name: str, stream: Stream) -> None:
    one, other = BUILDERS[name](), BUILDERS[name]()
    train_few_steps(one, stream, 3, steps=4)
    replay(other, stream, TrainState(task=2, began=True), seed=0)
    other.train()
    other.load_state_dict(snapshot(one), strict=True)
    load_optimizers(other.optimizers, {k: v.clone() for k, v in optimizer_tensors(one.optimizers).items()})
    for method in (one, other):
        for step in range(4, 8):
            method.observe(sample_batch(stream.tasks[2], seed=step))
    assert not changed_tensors(other, snapshot(one))


def test_parameter_counts_include_every_parameter_once(stream: Stream) -> None:
    for made in (hnet(), hn2(), hn2(RESNET)):
        method = train_few_steps(made, stream, 3)
        method.release()
        counted = method.network.count_parameters()
        total = counted["backbone"] + counted["hypernetwork"] + sum(counted["per_task"])
        assert total == sum(p.numel() for p in method.network.parameters())
        assert len(counted["per_task"]) == 3
    partial_ = hn2()
    train_few_steps(partial_, stream, 2)
    assert partial_.network.count_parameters() == {
        "backbone": (1 * 4 * 9 + 8) + (4 * 8 * 9 + 16),
        # 8·8·9 + 8·16·9 filters and 2·17 numbers of the head in 18 chunks of 98
        "hypernetwork": 18 * 8 + (16 * 16 + 16) + 32 + (16 * 98 + 98),
        "per_task": [8 + 16 + 32] * 2,
    }


@pytest.mark.parametrize(
    ("build", "filters"), [(CONVNET, {2: 3, 3: 2, 4: 1, 5: 0}), (RESNET, {2: 15, 3: 10, 4: 5, 5: 0})]
)
def test_generate_from_sets_the_first_generated_stage(build: Any, filters: dict[int, int], stream: Stream) -> None:
    for generate_from, expected in filters.items():
        network = HN2Options(generate_from=generate_from).build_network(build, (1, 8, 8))
        assert len(network.filter_names) == expected
        network.grow(2)
        whole = {name: tuple(p.shape) for name, p in build().body.named_parameters()}
        stored = {
            name: tuple(p.shape)
            for part in (network.backbone.body, network.late[0])
            for name, p in part.named_parameters()
        }
        assert whole.keys() - stored.keys() == set(network.filter_names), "generated filters are not parameters"
        assert stored.items() <= whole.items()
        assert [f.shape for f in network.parts.generate(0)[0]] == [whole[name] for name in network.filter_names]
        with torch.no_grad():
            x = torch.zeros(1, 1, 8, 8)
            assert network.backbone.eval()(x).shape == (1, network.backbone.features)
            assert network.eval().features(x, 0).shape == (1, build().features)


def test_backbones_without_the_requested_stages_are_refused_in_one_line() -> None:
    three = partial(ResNet32Options().build, 3)
    assert len(HN2Options(generate_from=3).build_network(three, (3, 32, 32)).filter_names) == 11
    with pytest.raises(InputError, match=r"generate_from: expected 2 to 4 for a backbone of 3 stages, got 5"):
        HN2Options(generate_from=5).build_network(three, (3, 32, 32))
    with pytest.raises(InputError, match="made of stages") as raised:
        HN2Options().build_network(lambda: Backbone(nn.Flatten(), 64), (1, 8, 8))
    assert "\n" not in str(raised.value)


def test_hn2_trains_on_a_slim_resnet_and_images_of_32x32(stream: Stream) -> None:
    method = hn2(RESNET)
    losses = []
    for task in stream.tasks[:2]:
        method.release()
        begin(method, task, seed=0)
        method.train()
        for step in range(15):
            batch = sample_batch(task, seed=step)
            terms = method.observe(dataclasses.replace(batch, x=F.interpolate(batch.x, size=32)))
            assert all(torch.isfinite(term) for term in terms.values())
            losses.append(terms["L_hm"].item())
    assert sum(losses[10:15]) < sum(losses[:5])
    assert sum(losses[25:]) < sum(losses[15:20])


def test_both_forget_less_than_finetuning() -> None:
    stream, forgotten = digits(), {}
    finetune = Finetune(MethodOptions().build_network(CONVNET, (1, 8, 8)), OptimizerOptions(lr=3e-3), MethodOptions())
    for name, method in (("finetune", finetune), ("hnet", hnet()), ("hn2", hn2())):
        state = TrainState()
        assert list(train(method, stream, TrainingOptions(epochs=8, batch_size=32), AugmentOptions(), 0, state))
        rows = state.matrix
        forgotten[name] = sum(rows[k][k] - rows[-1][k] for k in range(4)) / 4
        if name == "hn2":
            assert sum(rows[-1]) / 5 > 90
    assert forgotten["hnet"] < forgotten["finetune"] - 5
    assert forgotten["hn2"] < 3
