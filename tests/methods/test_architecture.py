"""Tests of methods with parameters for each task: independent columns, progressive networks and hard attention."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import changed_tensors, digits, sample_batch, snapshot, train_few_steps
from pah import AugmentOptions, TrainingOptions, TrainState, train
from pah.core.config import InputError
from pah.data.stream import Stream, number_of_batches
from pah.data.task import NO_EXAMPLES, Batch
from pah.methods.architecture import PNN, Independent, IndependentOptions, PNNOptions
from pah.methods.base import Method, MethodOptions, OptimizerOptions
from pah.methods.hat import HAT, HATOptions, annealed_steepness, gradient_compensation, sparsity_loss
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions, ResNet18Options, ResNet32Options, SlimResNet18Options
from pah.models.column_networks import ColumnNetwork, IndependentColumns, LateralConnection, ProgressiveNetwork
from pah.models.layers import BasicBlock
from pah.models.masked_network import MaskedNetwork
from pah.training import checkpoint
from pah.training.evaluation import evaluate
from pah.training.loop import begin, replay
from pah.training.state import StepDone, TaskDone

KINDS: dict[str, tuple[type[Method], type[MethodOptions]]] = {
    "independent": (Independent, IndependentOptions),
    "pnn": (PNN, PNNOptions),
    "hat": (HAT, HATOptions),
}
BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "convnet": ConvNetOptions(width=4).build,
    "resnet18": ResNet18Options().build,
    "resnet18-slim": SlimResNet18Options(width=4, stem_stride=1).build,
    "resnet32": ResNet32Options().build,
}
SMALL = ["convnet", "resnet18-slim", "resnet32"]
OPTIONS = TrainingOptions(epochs=2, batch_size=50)


def build(kind: str, backbone: str = "convnet", optimizer: OptimizerOptions | None = None, **options: Any) -> Any:
    """Return an untrained method on a small network for the digits."""
    torch.manual_seed(0)
    method, options_class = KINDS[kind]
    method_options = options_class(**options)
    network = method_options.build_network(partial(BACKBONES[backbone], 1), (1, 8, 8))
    return method(network, optimizer or OptimizerOptions(lr=3e-3), method_options).to(memory_format=torch.channels_last)


def run(method: Method, stream: Stream, state: TrainState, options: TrainingOptions = OPTIONS, stop: int = -1) -> None:
    """Train to the end of the stream, or until `stop` steps are done."""
    for event in train(method, stream, options, AugmentOptions(), 0, state):
        stop -= isinstance(event, StepDone)
        if stop == 0:
            return


def logits(method: Method, x: Tensor, task: int) -> Tensor:
    method.eval()
    with torch.no_grad():
        return method(x, task)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def stream() -> Stream:
    return digits(tasks=3, classes=6)


@pytest.fixture(scope="module")
def x(stream: Stream) -> Tensor:
    return sample_batch(stream.tasks[0], size=32).x


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_weights_and_replay_restores_them(kind: str, stream: Stream) -> None:
    one, other, fresh = (build(kind) for _ in range(3))
    state = TrainState()
    run(one, stream, state)
    run(other, stream, TrainState())
    assert not changed_tensors(other, snapshot(one))
    replay(fresh, Stream(tuple(without_images(stream)), stream.normalization, stream.image_shape, ""), state, seed=0)
    fresh.load_state_dict(one.state_dict(), strict=True)
    assert evaluate(fresh, stream.tasks, OPTIONS) == evaluate(one, stream.tasks, OPTIONS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [3, 13])  # in the first task and the second, in the middle of an epoch of five
def test_a_run_interrupted_within_an_epoch_continues_exactly(kind: str, steps: int, stream: Stream) -> None:
    whole, cut, resumed = (build(kind) for _ in range(3))
    run(whole, stream, TrainState())
    state = TrainState()
    run(cut, stream, state, stop=steps)
    replay(resumed, stream, state, seed=0)
    resumed.load_state_dict(cut.state_dict(), strict=True)
    checkpoint.load_optimizers(resumed.optimizers, checkpoint.optimizer_tensors(cut.optimizers))
    run(resumed, stream, state)
    assert not changed_tensors(resumed, snapshot(whole))


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("kind", KINDS)
def test_parameter_counts_include_every_parameter_once(kind: str, backbone: str, stream: Stream) -> None:
    method = train_few_steps(build(kind, backbone), stream, tasks=3, steps=0)
    counts = method.network.count_parameters()
    total = sum(p.numel() for p in method.network.parameters())
    assert counts["backbone"] + counts["hypernetwork"] + sum(counts["per_task"]) == total
    saved = [tensor.data_ptr() for tensor in method.state_dict().values()]
    assert len(saved) == len(set(saved))  # no tensor is registered under two names
    if kind == "hat":
        assert counts["per_task"][0] == counts["per_task"][1] == counts["per_task"][2] < counts["backbone"]
    else:
        assert counts["backbone"] == 0
        growth = [b - a for a, b in zip(counts["per_task"], counts["per_task"][1:], strict=False)]
        assert all(more > 0 for more in growth) if kind == "pnn" else growth == [0, 0]


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("kind", ["independent", "pnn"])
def test_the_logits_of_old_columns_do_not_change(kind: str, backbone: str, stream: Stream, x: Tensor) -> None:
    method = build(kind, backbone)
    before: list[Tensor] = []
    for task in stream.tasks:
        train_few_steps(method, Stream((task,), stream.normalization, stream.image_shape, ""), tasks=1)
        method.train()
        method(x, 0)  # a pass in training mode must not change an old column
        before.append(logits(method, x, task.index))
        for k, expected in enumerate(before):
            if k < task.index:
                assert torch.equal(logits(method, x, k), expected)
    method.train()
    for k in range(2):  # an old column runs in eval mode even if the network is in training mode
        with torch.no_grad():
            assert torch.equal(method(x, k), before[k])


@pytest.mark.parametrize("kind", ["independent", "pnn"])
def test_columns_forget_nothing(kind: str, stream: Stream) -> None:
    state = TrainState()
    run(build(kind), stream, state)
    for k in range(3):
        assert len({row[k] for row in state.matrix[k:]}) == 1  # FM is exactly 0


@pytest.mark.parametrize("kind", ["independent", "pnn"])
def test_no_gradient_reaches_an_old_column(kind: str, stream: Stream) -> None:
    method = train_few_steps(build(kind), stream, tasks=2, steps=0)
    network = method.network
    assert isinstance(network, ColumnNetwork)
    own = {id(p) for p in (*network.columns[1].parameters(), *network.other_parameters(1))}
    method.train()
    method.observe(sample_batch(stream.tasks[1]))
    reached = {id(p) for p in network.parameters() if p.grad is not None}
    assert reached == own
    assert {id(p) for group in method.optimizers[0].param_groups for p in group["params"]} == own


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_old_tasks_get_no_gradient(kind: str, stream: Stream, x: Tensor) -> None:
    first = train_few_steps(build(kind), stream, tasks=1, steps=0).network
    first(x, [0]).sum().backward()
    assert all(p.grad is not None for p in first.parameters())
    network = train_few_steps(build(kind), stream, tasks=3, steps=0).network
    network(x, range(3)).sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    convolutions = {f"backbone.body.{i}.weight" for i in (0, 3, 6, 9)} if kind == "hat" else set()
    own = {
        "independent": ("later.1.", "heads.tasks.2"),
        "pnn": ("later.1.", "laterals.1.", "heads.tasks.2"),
        "hat": ("later_norms.1.", "embeddings.2", "heads.tasks.2"),
    }[kind]
    assert reached == {name for name, _ in network.named_parameters() if name.startswith(own)} | convolutions


def test_independent_columns_have_different_initial_weights(stream: Stream) -> None:
    network = build("independent").network
    assert isinstance(network, IndependentColumns)
    network.grow(2)
    network.grow(2)
    first, second = (next(column.parameters()) for column in network.columns)
    assert not torch.equal(first, second)
    assert second.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("backbone", "sizes"), [("convnet", 5), ("resnet18", 5), ("resnet18-slim", 5), ("resnet32", 4)]
)
def test_stages_hold_every_layer_once_and_the_pooling_is_the_last(backbone: str, sizes: int) -> None:
    built = BACKBONES[backbone](1)
    split = built.stages()
    assert [layer for stage in split for layer in stage] == list(built.body.children())
    assert len(split) == sizes
    assert len(split[-1]) == 1
    if backbone == "resnet18":
        assert [len(stage) for stage in split] == [3 + 2, 2, 2, 2, 1]  # stem and first stage together
        widths = [layer.conv2.out_channels for *_, layer in split if isinstance(layer, BasicBlock)]
        assert widths == [64, 128, 256, 512]


def test_a_lateral_connection_is_the_papers_non_linear_adapter() -> None:
    torch.manual_seed(0)
    lateral = LateralConnection(width=6, earlier=2, projection=3)
    assert 0 < lateral.scale.item() < 0.1
    nn.init.constant_(lateral.scale, 2.0)
    h = [torch.randn(5, 6, 4, 4) for _ in range(2)]
    down, bias, up = lateral.down.weight[:, :, 0, 0], lateral.down.bias, lateral.up.weight[:, :, 0, 0]
    assert bias is not None
    assert down.shape == (3, 12)
    expected = torch.empty(5, 6, 4, 4)
    for row in range(4):
        for column in range(4):
            at = torch.cat([each[:, :, row, column] for each in h], dim=1)  # (B, K n)
            expected[:, :, row, column] = F.relu(2.0 * at @ down.T + bias) @ up.T
    torch.testing.assert_close(lateral(h), expected)


@pytest.mark.parametrize("backbone", SMALL)
def test_a_progressive_column_uses_the_earlier_columns(backbone: str, stream: Stream, x: Tensor) -> None:
    method = train_few_steps(build("pnn", backbone), stream, tasks=3, steps=1)
    network = method.network
    assert isinstance(network, ProgressiveNetwork)
    method.eval()
    with torch.no_grad():
        features = [network.features(x, k) for k in range(3)]
        together = network(x, [2, 0, 1])
        torch.testing.assert_close(network.columns[0](x), features[0])
        for k in (1, 2):
            assert not torch.allclose(network.columns[k](x), features[k])
        for lateral in (m for m in network.laterals.modules() if isinstance(m, LateralConnection)):
            lateral.up.weight.zero_()
        for k in (1, 2):  # without its lateral connections it is a plain column
            torch.testing.assert_close(network.columns[k](x), network.features(x, k))
    rows = [network.heads.rows([k]) for k in (2, 0, 1)]
    alone = [F.linear(features[k], row[:, :-1], row[:, -1]) for k, row in zip((2, 0, 1), rows, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize("share", [0.125, 0.25])
def test_lateral_connections_have_few_parameters_compared_to_columns(share: float) -> None:
    totals = []
    for options in (IndependentOptions(), PNNOptions(projection=share)):
        network = options.build_network(partial(SlimResNet18Options(width=8).build, 3), (3, 32, 32))
        for _ in range(10):
            network.grow(10)
        totals.append(sum(network.count_parameters()["per_task"]))
    assert 0 < totals[1] / totals[0] - 1 < 0.2 * share


@pytest.mark.parametrize("kind", ["pnn", "hat"])
def test_a_backbone_without_stages_is_refused_in_one_line(kind: str) -> None:
    with pytest.raises(InputError, match=r"made of stages .*got Flatten") as caught:
        KINDS[kind][1]().build_network(lambda: Backbone(nn.Flatten(), 64), (1, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_open_gates_do_not_change_the_features_and_closed_gates_make_them_zero(backbone: str, x: Tensor) -> None:
    network = build("hat", backbone).network
    network.grow(2)
    network.eval()
    units = sum(network.units)
    with torch.no_grad():
        torch.testing.assert_close(network.gated_features(x, 0, torch.ones(units)), network.backbone(x))
        assert not network.gated_features(x, 0, torch.zeros(units)).any()
        gates = torch.ones(units)
        gates[-network.units[-1]] = 0  # the first unit of the last gated layer: the first feature
        gated = network.gated_features(x, 0, gates)
    assert not gated[:, 0].any()
    torch.testing.assert_close(gated[:, 1:], network.backbone(x)[:, 1:])
    assert len(network.convolutions) == sum(isinstance(m, nn.Conv2d) for m in network.backbone.modules())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("backbone", SMALL)
def test_with_hard_gates_old_logits_do_not_change(backbone: str, optimizer: Any, stream: Stream, x: Tensor) -> None:
    method = build("hat", backbone, OptimizerOptions(optimizer, lr=0.05, weight_decay=0.1))
    network = method.network
    before: list[Tensor] = []
    for task in stream.tasks:
        method.release()
        begin(method, task, seed=0)
        set_hard_gates(network, task.index)
        method.train()
        old = [convolution.conv.weight.detach().clone() for convolution in network.convolutions]
        for step in range(3):
            method.observe(sample_batch(task, seed=step))
        set_hard_gates(network, task.index)
        moved = [
            not torch.equal(convolution.conv.weight, weight)
            for convolution, weight in zip(network.convolutions, old, strict=True)
        ]
        assert any(moved)  # some weights are unprotected
        before.append(logits(method, x, task.index))
        for k, expected in enumerate(before):
            assert torch.equal(logits(method, x, k), expected)
    assert len({float(answer.sum()) for answer in before}) == 3


def test_a_weight_between_two_used_units_does_not_change(stream: Stream) -> None:
    method = build("hat", optimizer=OptimizerOptions(lr=0.05, weight_decay=0.1))
    network = method.network
    train_few_steps(method, stream, tasks=1)
    set_hard_gates(network, 0)
    method.release()
    begin(method, stream.tasks[1], seed=0)
    before = [convolution.conv.weight.detach().clone() for convolution in network.convolutions]
    method.train()
    method.observe(sample_batch(stream.tasks[1]))
    layers = network.cumulative_gates([0]).split(network.units)
    for i, (convolution, old) in enumerate(zip(network.convolutions, before, strict=True)):
        inputs = layers[i - 1] if i else torch.ones(1)
        protected = (layers[i][:, None] * inputs[None, :])[:, :, None, None].expand_as(old) == 1
        assert protected.any()
        assert torch.equal(convolution.conv.weight[protected], old[protected])
        assert not torch.equal(convolution.conv.weight[~protected], old[~protected])


def test_a_plain_gradient_step_equals_that_of_the_paper(stream: Stream) -> None:
    """w <- w - lr (1 - min(a_i, a_j)) dL/dw, with cumulative gates between 0 and 1."""
    method = build("hat", optimizer=OptimizerOptions(weight_decay=0.0))
    network, batch = method.network, sample_batch(stream.tasks[1], seed=2)
    train_few_steps(method, stream, tasks=2, steps=0)
    with torch.no_grad():
        network.embeddings[0].copy_(torch.randn(sum(network.units)) / 200)
    method.optimizers = [torch.optim.SGD([convolution.conv.weight for convolution in network.convolutions], lr=0.1)]
    method.train()
    before = [convolution.conv.weight.detach().clone() for convolution in network.convolutions]
    terms = method.observe(batch)
    used = network.cumulative_gates([0]).split(network.units)
    assert ((used[0] > 0.1) & (used[0] < 0.9)).any()
    for i, (convolution, old) in enumerate(zip(network.convolutions, before, strict=True)):
        share = torch.ones_like(old)
        for to in range(len(old)):
            for source in range(old.shape[1]):
                share[to, source] = 1 - min(used[i][to].item(), used[i - 1][source].item() if i else 1.0)
        assert convolution.conv.weight.grad is not None
        torch.testing.assert_close(convolution.conv.weight.detach(), old - 0.1 * share * convolution.conv.weight.grad)
    assert set(terms) == {"L_hm", "sparsity"}


def test_the_cumulative_gates_are_the_largest_of_the_tasks(stream: Stream) -> None:
    network = train_few_steps(build("hat"), stream, tasks=3).network
    assert isinstance(network, MaskedNetwork)
    gates = [torch.sigmoid(400 * e.detach()) for e in network.embeddings]
    assert torch.equal(network.cumulative_gates([0, 1]), torch.maximum(gates[0], gates[1]))
    assert torch.equal(network.cumulative_gates(range(3)), torch.maximum(network.cumulative_gates([0, 1]), gates[2]))
    assert not network.cumulative_gates([]).any()


def test_steepness_rises_linearly_within_an_epoch() -> None:
    assert [annealed_steepness(i, 5, 400.0) for i in (0, 4)] == [1 / 400, 400]
    steps = [annealed_steepness(i, 5, 400.0) for i in range(5)]
    assert steps[2] == pytest.approx((400 + 1 / 400) / 2)
    assert steps[1] - steps[0] == pytest.approx(steps[4] - steps[3])
    assert annealed_steepness(0, 1, 400.0) == annealed_steepness(9, 5, 400.0) == 400


def test_the_size_of_the_first_batch_gives_the_number_of_batches() -> None:
    for images in range(1, 120):
        for batch_size in range(3, 40):
            batches = number_of_batches(images, batch_size)
            first = len(torch.arange(images).tensor_split(batches)[0])
            assert number_of_batches(images, first) == batches


def test_the_steepness_reaches_s_max_in_every_epoch(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def recorded_steepness(self: HAT, batch: Batch) -> float:
        seen.append(original(self, batch))
        return seen[-1]

    original = HAT._steepness
    monkeypatch.setattr(HAT, "_steepness", recorded_steepness)
    run(build("hat"), stream, TrainState())
    batches = [number_of_batches(len(task.train), OPTIONS.batch_size) for task in stream.tasks]
    assert seen == [annealed_steepness(i, n, 400.0) for n in batches for _ in range(OPTIONS.epochs) for i in range(n)]


def test_compensation_by_hand() -> None:
    e = torch.tensor([0.0, 1.0, -2.0, 3.0])
    found = gradient_compensation(e, s=2.0, s_max=400.0)
    cosh = [1.0, 1.5430806, 3.7621957, 10.067662, 27.308233, 201.71564]  # of 0, 1, 2, 3, 4, 6
    expected = [200 * 2 / 2, 200 * (cosh[2] + 1) / (cosh[1] + 1), 200 * (cosh[4] + 1) / (cosh[2] + 1)]
    torch.testing.assert_close(found, torch.tensor([*expected, 200 * (cosh[5] + 1) / (cosh[3] + 1)]))
    assert torch.isfinite(gradient_compensation(torch.tensor([6.0, -6.0]), 400.0, 400.0)).all()
    # its purpose: the gradient of σ(s e) becomes s_max times that of σ(e), for every s
    for s in (1 / 400, 1.0, 3.0):
        leaf = e.clone().requires_grad_()
        torch.sigmoid(s * leaf).sum().backward()
        assert leaf.grad is not None
        gate = torch.sigmoid(e)
        torch.testing.assert_close(
            leaf.grad * gradient_compensation(e, s, 400.0), 400 * gate * (1 - gate), rtol=1e-3, atol=0.0
        )


def test_embeddings_use_the_compensated_gradient_and_are_clamped(stream: Stream) -> None:
    method = build("hat", sparsity=2.0)
    begin(method, stream.tasks[0], seed=0)
    method.train()
    network, batch = method.network, sample_batch(stream.tasks[0])  # the first batch of an epoch: s = 1/400
    embedding = network.embeddings[0]
    with torch.no_grad():
        embedding[0] = 5.999
    leaf = embedding.detach().clone().requires_grad_()
    gates = torch.sigmoid(leaf / 400)
    rows = network.heads.rows([0])
    answer = F.linear(network.gated_features(batch.x, 0, gates), rows[:, :-1], rows[:, -1])
    (F.cross_entropy(answer, batch.y) + 2 * gates.mean()).backward()
    assert leaf.grad is not None
    method.observe(batch)
    assert embedding.grad is not None
    expected = leaf.grad * gradient_compensation(leaf.detach(), 1 / 400, 400.0)
    torch.testing.assert_close(embedding.grad, expected, rtol=1e-3, atol=1e-5)
    method.optimizers[0].param_groups[-1]["lr"] = 5.0
    method.observe(batch)
    assert embedding.abs().max() == 6


def test_sparsity_by_hand() -> None:
    gates, used = torch.tensor([1.0, 0.5, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 0.5])
    assert sparsity_loss(gates, used).item() == pytest.approx((1.0 + 0.5) / 2.5)
    assert sparsity_loss(gates, torch.zeros(4)).item() == pytest.approx(2.5 / 4)
    assert sparsity_loss(gates, torch.ones(4)).item() == 0  # no free capacity


def test_the_batch_norms_of_a_finished_task_do_not_change(stream: Stream, x: Tensor) -> None:
    method = train_few_steps(build("hat"), stream, tasks=2)
    before = snapshot(method)
    method.train()
    method(x, 0)
    assert not changed_tensors(method, before)
    method(x, 1)
    assert changed_tensors(method, before) == {
        name for name in before if "later_norms" in name and ("running" in name or "tracked" in name)
    }


def test_end_task_measures_the_statistics_with_the_gates_of_test_time(stream: Stream) -> None:
    method, task = build("hat"), stream.tasks[0]
    train_few_steps(method, stream, tasks=1)
    weights = {name: tensor for name, tensor in snapshot(method).items() if "running" not in name}
    torch.manual_seed(0)
    method.end_task(task)
    assert {name for name in changed_tensors(method, weights | statistics(method))} <= {
        name for name in method.state_dict() if name.endswith("num_batches_tracked")
    }
    method.eval()
    images = task.normalization(task.train.pixels[task.train.rows])
    body, network = method.network.backbone.body, method.network
    first, second = network.norms(0)[:2]
    with torch.no_grad():
        out = body[0](images)
        torch.testing.assert_close(first.running_mean, out.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(first.running_var, out.var(dim=(0, 2, 3)), rtol=1e-3, atol=0.0)
        gate = network.gates(0)[: network.units[0], None, None]
        inner = body[3](F.relu(F.batch_norm(out, None, None, first.weight, first.bias, training=True)) * gate)
        torch.testing.assert_close(second.running_mean, inner.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-5)
    assert {norm.momentum for norm in network.norms(0)} == {0.1}


def test_statistics_are_measured_on_batches_of_mixed_classes(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    task, variances = stream.tasks[0], []
    for size in (500, 30):  # all images in one batch, and in ten
        method = train_few_steps(build("hat"), stream, tasks=1, steps=20)
        monkeypatch.setattr("pah.methods.hat.STATISTICS_BATCH_SIZE", size)
        torch.manual_seed(0)
        method.end_task(task)
        variances.append(method.network.norms(0)[-1].running_var)  # type: ignore[operator]
    # class by class, the variance between the classes would be missing: 16 % of it
    assert (variances[1] / variances[0]).mean() == pytest.approx(1.0, abs=0.05)


def test_hard_attention_hardly_forgets_digits() -> None:
    state = TrainState()
    method = build("hat")
    accuracies = []
    for event in train(method, digits(), TrainingOptions(epochs=10, batch_size=32), AugmentOptions(), 0, state):
        if isinstance(event, TaskDone):
            accuracies.append(event.accuracies[-1])
    forgetting = [accuracies[k] - state.matrix[-1][k] for k in range(4)]
    assert sum(forgetting) / 4 < 2
    assert sum(accuracies) / 5 > 90


def without_images(stream: Stream) -> list[Any]:
    return [replace(task, train=NO_EXAMPLES, test=NO_EXAMPLES) for task in stream.tasks]


def set_hard_gates(network: MaskedNetwork, task: int) -> None:
    """Set the gates of a task to exactly 0 or 1, about half of each, with at least one open in every layer."""
    generator = torch.Generator().manual_seed(task)
    with torch.no_grad():
        for part in network.embeddings[task].split(network.units):
            part.copy_(torch.where(torch.rand(len(part), generator=generator) < 0.5, 6.0, -6.0))
            part[task] = 6.0
    assert set(network.gates(task).tolist()) == {0.0, 1.0}


def statistics(method: Method) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items() if "running" in name}
