"""Tests of PAH against its equations: the value of each term, and the parameters that it changes."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import changed_tensors, digits, sample_batch, small_pah, snapshot, train_few_steps
from pah.core import distributed
from pah.core.config import InputError
from pah.data.augment import recolour
from pah.data.stream import Stream
from pah.data.task import Task
from pah.methods.losses import alignment, distillation, kl_divergence, stack_logits
from pah.methods.pah import PAH
from pah.methods.pah_options import PAHOptions
from pah.methods.teacher import ASCENT_STEP_SIZE, ASCENT_STEPS, Teacher
from pah.models.backbones import BACKBONES
from pah.models.modes import evaluating
from pah.models.network import GeneratedHeads, Network
from pah.training.loop import begin, set_learning_rates


@pytest.fixture(scope="module")
def stream() -> Stream:
    return digits()


def trained_pah(stream: Stream, tasks: int, **options: Any) -> PAH:
    method = small_pah(**options)
    train_few_steps(method, stream, tasks)
    return method


class PassPerHead(PAH):
    """The same losses in the simplest form, with a backbone pass for every old head and old task's prototypes."""

    def plain_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        options = self.options
        assert self.teacher is not None
        weight, bias = self.network.head(self.task)
        terms = {"L_hm": F.cross_entropy(F.linear(self.network.backbone(x), weight, bias), y)}
        old_rows = self.teacher.rows.split(self.teacher.sizes)
        distilled = []
        for k in self.old_tasks:
            prototypes = self.heads.prototypes.tasks[k].detach()
            rows = self.heads.generate(prototypes, [k])
            student = F.linear(self.network.backbone(x), rows[:, :-1], rows[:, -1])
            with torch.no_grad(), evaluating(self.teacher):
                teacher = F.linear(self.teacher.backbone(x), old_rows[k][:, :-1], old_rows[k][:, -1])
            distilled.append(kl_divergence(teacher, student, options.temperature, options.direction).mean())
        total = torch.stack(distilled)
        terms["L_sm"] = options.temperature**2 * (total.mean() if options.over_tasks == "mean" else total.sum())
        return terms

    def plain_alignment(self) -> Tensor:
        assert self.answers_to_prototypes is not None
        teacher = self.answers_to_prototypes.split(self.network.sizes(self.old_tasks))
        aligned = []
        for k in self.old_tasks:
            prototypes = self.heads.prototypes.tasks[k]
            rows = self.heads.generate(prototypes, [k])
            with evaluating(self.network.backbone):
                student = F.linear(self.network.backbone(prototypes), rows[:, :-1], rows[:, -1])
            width = student.shape[1]
            aligned.append(kl_divergence(teacher[k][:, :width], student, direction=self.options.direction).sum())
        total = torch.stack(aligned)
        return total.mean() if self.options.over_tasks == "mean" else total.sum()


@pytest.mark.parametrize("over_tasks", ["mean", "sum"])
@pytest.mark.parametrize("direction", ["teacher||student", "student||teacher"])
@pytest.mark.parametrize(("conditioning", "tasks"), [("flatten", 5), ("classwise", 3)])
def test_one_backbone_pass_gives_the_losses_and_gradients_of_a_pass_per_head(
    over_tasks: str, direction: str, conditioning: str, tasks: int
) -> None:
    stream = digits(tasks=tasks)  # 3 tasks of 10 classes: 4 + 3 + 3
    method = trained_pah(stream, 3, over_tasks=over_tasks, direction=direction, conditioning=conditioning)
    method.__class__ = PassPerHead
    assert isinstance(method, PassPerHead)
    batch = sample_batch(stream.tasks[2], seed=9)
    parameters = list(method.network.parameters())

    def gradients(loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True))

    ours, plain = method._image_terms(batch, method.old_tasks), method.plain_terms(batch.x, batch.y)
    assert ours.keys() == plain.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name])
        for one, other in zip(gradients(ours[name]), gradients(plain[name]), strict=True):
            reached = [torch.zeros(1) if g is None else g for g in (one, other)]
            assert reached[0].any() == reached[1].any()
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)
    old = [method.heads.prototypes.tasks[k] for k in method.old_tasks]
    aligned, plain_aligned = method.alignment_loss(method.old_tasks), method.plain_alignment()
    torch.testing.assert_close(aligned, plain_aligned)
    for one, other in zip(torch.autograd.grad(aligned, old), torch.autograd.grad(plain_aligned, old), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_the_terms_depend_on_the_task_and_the_weights(stream: Stream) -> None:
    first, second = trained_pah(stream, 1), trained_pah(stream, 2)
    assert set(first.observe(sample_batch(stream.tasks[0]))) == {"L_hm"}
    assert set(second.observe(sample_batch(stream.tasks[1]))) == {"L_hm", "L_sm", "L_sp"}
    unprotected = trained_pah(stream, 2, stability=0.0, alignment=0.0)
    assert set(unprotected.observe(sample_batch(stream.tasks[1]))) == {"L_hm"}


def test_l_sm_is_zero_without_gradient_when_student_and_teacher_agree(stream: Stream) -> None:
    method = small_pah()
    train_few_steps(method, stream, 2)
    method.release()
    begin(method, stream.tasks[2], seed=0)
    batch = sample_batch(stream.tasks[2])
    with evaluating(method):  # the student equals the teacher: nothing was learned since
        loss = method._image_terms(batch, method.old_tasks)["L_sm"]
        gradients = torch.autograd.grad(loss, list(method.network.backbone.parameters()))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert max(g.abs().max().item() for g in gradients) < 1e-5


def test_l_sm_has_no_gradient_for_prototypes_of_old_tasks(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    loss = method._image_terms(sample_batch(stream.tasks[2]), method.old_tasks)["L_sm"]
    everything = dict(method.network.named_parameters())
    gradients = torch.autograd.grad(loss, list(everything.values()), allow_unused=True)
    reached = {name for name, g in zip(everything, gradients, strict=True) if g is not None and g.any()}
    assert not any("prototypes" in name for name in reached)
    assert any("hypernetwork" in name for name in reached)
    assert any("backbone" in name for name in reached)


def test_l_hm_has_no_gradient_for_prototypes_of_old_tasks(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    loss = method._image_terms(sample_batch(stream.tasks[2]), method.old_tasks)["L_hm"]
    prototypes = list(method.heads.prototypes.tasks)
    gradients = torch.autograd.grad(loss, prototypes, allow_unused=True)
    assert [g is not None and bool(g.any()) for g in gradients] == [False, False, True]


def test_an_alignment_step_changes_old_prototypes_only(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    before = snapshot(method)
    loss = method.alignment_loss(method.old_tasks)
    loss.backward()
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    method.optimizers[1].step()
    old = {f"network.heads.prototypes.tasks.{k}" for k in (0, 1)}
    assert changed_tensors(method, before) == old  # bit for bit, batch-norm buffers included
    assert with_gradient >= old


def test_alignment_computes_gradients_of_old_prototypes_only(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    for parameter in method.parameters():
        parameter.grad = None
    method.alignment_loss(method.old_tasks).backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {f"network.heads.prototypes.tasks.{k}" for k in (0, 1)}
    assert all(p.requires_grad for p in method.network.parameters())


def test_the_hypernetwork_can_have_another_learning_rate(stream: Stream) -> None:
    method = trained_pah(stream, 3, hypernetwork_lr=1e-7, stability=0.0, alignment=0.0)
    before = snapshot(method)
    method.train()
    method.observe(sample_batch(stream.tasks[2]))
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in method.state_dict().items()}
    of_hypernetwork = {value for name, value in moved.items() if ".hypernetwork." in name}
    assert 0 < max(of_hypernetwork) < 2e-7
    assert min(moved["network.heads.prototypes.tasks.2"], moved["network.backbone.body.0.weight"]) > 1e-5


def test_the_backbone_learns_more_slowly_from_the_second_task_on(stream: Stream) -> None:
    """Adam's first step has the size of the learning rate."""
    for task, factor in ((1, 1.0), (2, 1e-3)):
        method = trained_pah(stream, task, later_lr_factor=1e-3, stability=0.0, alignment=0.0)
        before = snapshot(method)
        method.train()
        method.observe(sample_batch(stream.tasks[task - 1]))
        moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in method.state_dict().items()}
        rate = method.optimizer_options.lr
        assert moved["network.backbone.body.0.weight"] == pytest.approx(factor * rate, rel=0.2)
        assert moved[f"network.heads.prototypes.tasks.{task - 1}"] == pytest.approx(rate, rel=0.2)


def test_alignment_restores_old_predictions(stream: Stream) -> None:
    """After a change of the backbone, steps on L_sp alone reduce L_sp."""
    method = trained_pah(stream, 3, prototype_lr=0.01)
    with torch.no_grad():
        for parameter in method.network.backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    start = method.alignment_loss(method.old_tasks).item()
    for _ in range(30):
        method.optimizers[1].zero_grad()
        loss = method.alignment_loss(method.old_tasks)
        loss.backward()
        method.optimizers[1].step()
    assert loss.item() < 0.5 * start


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_teacher_never_changes(stream: Stream, statistics: str) -> None:
    method = trained_pah(stream, 3, teacher_batch_norm=statistics)
    assert method.teacher is not None
    before = snapshot(method.teacher)
    answers = method.answers_to_prototypes
    assert answers is not None
    answers_before = answers.clone()
    for step in range(3):
        method.train()
        method.observe(sample_batch(stream.tasks[2], seed=step))
    assert not changed_tensors(method.teacher, before)
    assert torch.equal(answers, answers_before)


def test_the_teacher_returns_the_logits_of_the_network_from_before_the_task(stream: Stream) -> None:
    method = trained_pah(stream, 2)
    batch = sample_batch(stream.tasks[2])
    with torch.no_grad(), evaluating(method):
        expected = stack_logits(method.network(batch.x, [0, 1]), (2, 2))
    method.release()
    begin(method, stream.tasks[2], seed=0)
    for step in range(3):
        method.observe(sample_batch(stream.tasks[2], seed=step))
    assert method.teacher is not None
    torch.testing.assert_close(method.teacher(batch.x, method.old_tasks), expected)


def test_the_teacher_can_use_the_statistics_of_the_batch(stream: Stream) -> None:
    method = trained_pah(stream, 2, teacher_batch_norm="batch")
    assert method.teacher is not None
    assert method.teacher.statistics == "batch"
    old, images = method.old_tasks, sample_batch(stream.tasks[1]).x
    running, batch = (Teacher(method.network, old, statistics) for statistics in ("running", "batch"))
    for teacher, training in ((running, False), (batch, True)):
        with torch.no_grad():
            features = copy.deepcopy(method.network.backbone).train(training)(images)
        expected = stack_logits(F.linear(features, teacher.rows[:, :-1], teacher.rows[:, -1]), teacher.sizes)
        torch.testing.assert_close(teacher(images, old), expected)
    assert not torch.allclose(running(images, old), batch(images, old))


def test_a_finished_model_has_no_teacher(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    method.end_task(stream.tasks[2])
    method.release()
    assert {name.split(".")[0] for name in method.state_dict()} == {"network"}


@pytest.mark.parametrize("optimizer", ["separate", "shared"])
def test_both_kinds_of_optimizer_change_old_prototypes_after_the_backbone_changed(
    stream: Stream, optimizer: str
) -> None:
    method = trained_pah(stream, 3, prototype_optimizer=optimizer)
    before = snapshot(method.heads.prototypes)
    method.observe(sample_batch(stream.tasks[2]))
    assert changed_tensors(method.heads.prototypes, before) == {"tasks.0", "tasks.1", "tasks.2"}
    assert len(method.optimizers) == (2 if optimizer == "separate" else 1)


def test_without_alignment_old_prototypes_do_not_change(stream: Stream) -> None:
    method = trained_pah(stream, 3, alignment=0.0)
    before = snapshot(method.heads.prototypes)
    method.observe(sample_batch(stream.tasks[2]))
    assert changed_tensors(method.heads.prototypes, before) == {"tasks.2"}


def distance_to_training_images(task: Task, prototype: Tensor, label: int) -> float:
    """Return the smallest mean squared distance of a prototype to a downscaled training image of the class."""
    own = task.train.rows[task.train.labels == label]
    images = task.normalization(task.train.pixels[own])
    small = F.interpolate(images, prototype.shape[-2:], mode="bilinear", antialias=True)
    return (small - prototype).square().mean(dim=(1, 2, 3)).min().item()


def test_prototype_start_sets_the_initial_prototypes(stream: Stream) -> None:
    task = stream.tasks[0]
    starts = {}
    for start in ("semantic", "mean", "random"):
        method = small_pah(prototype_start=start)
        begin(method, task, seed=3)
        starts[start] = method.heads.prototypes.tasks[0].detach().clone()
    for label in range(2):
        assert distance_to_training_images(task, starts["semantic"][label], label) < 1e-10
        assert distance_to_training_images(task, starts["mean"][label], label) > 1e-3
        own = task.train.rows[task.train.labels == label]
        mean = task.normalization(task.train.pixels[own]).mean(dim=0, keepdim=True)
        small = F.interpolate(mean, (6, 6), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(starts["mean"][label], small, atol=1e-5, rtol=1e-4)
        assert distance_to_training_images(task, starts["random"][label], label) > 0.5
    assert starts["random"].std().item() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(("size", "channels"), [(5, 1), (10, 3), (16, 1), (20, 3)])
def test_prototypes_of_any_size_and_of_one_or_three_channels(size: int, channels: int) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES["convnet"](width=4).build(3)
    options = small_pah(prototype_size=size, prototype_channels=channels).options
    method = PAH(
        Network(backbone, options.build_heads(backbone.features, 3), (3, 8, 8)), small_pah().optimizer_options, options
    )
    colour = colour_stream()
    train_few_steps(method, colour, 2)
    assert method.heads.prototypes.tasks[0].shape == (2, channels, size, size)
    assert method(sample_batch(colour.tasks[0]).x, 0).shape == (16, 2)


def colour_stream() -> Stream:
    """Return the digits as colour images with three different channels."""
    from helpers import DIGITS
    from pah.data.sources import Images, Source
    from pah.data.stream import make_stream
    from pah.data.stream_options import StreamOptions

    def tint(images: Images) -> Images:
        pixels = images.pixels.expand(-1, 3, -1, -1) // torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
        return Images(pixels, images.labels)

    return make_stream(
        Source("tinted", DIGITS.class_names, tint(DIGITS.train), tint(DIGITS.test)), StreamOptions(), 5, seed=0
    )


@pytest.mark.parametrize("conditioning", ["flatten", "classwise"])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("backbone", ["convnet", "resnet18-slim", "resnet32"])
def test_the_initial_loss_is_near_log_c(backbone: str, classes: int, conditioning: str) -> None:
    torch.manual_seed(0)
    body = BACKBONES[backbone]().build(3)
    heads = small_pah(conditioning=conditioning, hidden=(256,), prototype_size=10).options.build_heads(body.features, 3)
    assert isinstance(heads, GeneratedHeads)
    heads.grow(classes)
    heads.prototypes.set(0, torch.randn(classes, 3, 10, 10))
    network = Network(body, heads, (3, 8, 8)).train()
    loss = F.cross_entropy(network(torch.randn(64, 3, 32, 32), [0]), torch.arange(64) % classes)
    assert loss.item() == pytest.approx(math.log(classes), abs=0.25)


def test_classwise_rows_do_not_depend_on_the_order_of_classes() -> None:
    method = trained_pah(digits(tasks=2), 1, conditioning="classwise")
    prototypes = method.heads.prototypes.tasks[0].detach()
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = method.heads.generate(prototypes, [0])
    torch.testing.assert_close(method.heads.generate(prototypes[order], [0]), rows[order])


def test_flatten_refuses_unequal_tasks_and_names_classwise() -> None:
    with pytest.raises(InputError, match="classwise"):
        small_pah(conditioning="flatten").options.check_stream([4, 3, 3])
    small_pah(conditioning="classwise").options.check_stream([4, 3, 3])


def test_stored_copies_of_generated_heads_give_equal_logits(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    x = sample_batch(stream.tasks[1]).x
    with torch.no_grad(), evaluating(method):
        weight, bias = method.network.head(1)
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        assert torch.equal(linear(method.network.backbone(x)), method(x, 1))


def test_the_number_of_tasks_need_not_be_known() -> None:
    method = small_pah()
    stream = digits()
    for k in range(12):
        method.release()
        begin(method, Task(k, ("a", "b"), (0, 1), stream.normalization, train=stream.tasks[k % 5].train), seed=0)
        method.observe(sample_batch(stream.tasks[k % 5]))
    assert len(method.logits_per_task(sample_batch(stream.tasks[0]).x, range(12))) == 12


def test_the_weights_of_the_terms_are_used(stream: Stream) -> None:
    """The main step descends L_hm + λ_sm L_sm: doubling λ_sm doubles the part of L_sm in the gradient."""
    gradients = {}
    for stability in (0.0, 1.0, 2.0):
        method = trained_pah(stream, 2, alignment=0.0)
        object.__setattr__(method.options, "stability", stability)
        set_learning_rates(method, 0.0)  # the test needs the gradient only
        method.observe(sample_batch(stream.tasks[1], seed=7))
        gradients[stability] = next(method.network.backbone.parameters()).grad
    zero, one, two = (gradients[s] for s in (0.0, 1.0, 2.0))
    assert zero is not None
    assert one is not None
    assert two is not None
    assert (one - zero).abs().max() > 1e-6
    torch.testing.assert_close(two - zero, 2 * (one - zero), atol=1e-6, rtol=1e-3)


def test_the_terms_are_the_pure_loss_functions(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    assert method.teacher is not None
    assert method.answers_to_prototypes is not None
    batch = sample_batch(stream.tasks[2])
    student = stack_logits(method.network(batch.x, [0, 1]), (2, 2))
    expected = distillation(method.teacher(batch.x, method.old_tasks), student, method.options.temperature)
    torch.testing.assert_close(method._image_terms(batch, method.old_tasks)["L_sm"], expected)
    positions = torch.tensor([0, 0, 1, 1])
    expected = alignment(method.answers_to_prototypes, method._prototype_logits([0, 1]), positions, 2)
    torch.testing.assert_close(method.alignment_loss(method.old_tasks), expected)


FROZEN_NORM_OPTIONS: dict[str, Any] = {"later_batch_norm": "frozen", "feature_stability": 3.0, "head_stability": 10.0}


def test_feature_and_head_terms_are_relative_distances_to_the_teacher(stream: Stream) -> None:
    method = trained_pah(stream, 3, **FROZEN_NORM_OPTIONS)
    assert method.teacher is not None
    batch = sample_batch(stream.tasks[2])
    terms = method._image_terms(batch, method.old_tasks)
    with torch.no_grad(), evaluating(method):
        now, then = method.network.backbone(batch.x), method.teacher.features(batch.x)
        rows, old_rows = method.network.heads.rows([0, 1]), method.teacher.rows
    assert terms["L_features"].item() == pytest.approx(
        ((now - then).square().sum() / then.square().sum()).item(), rel=1e-4
    )
    assert terms["L_heads"].item() == pytest.approx(
        ((rows - old_rows).square().sum() / old_rows.square().sum()).item(), rel=1e-4
    )


def test_copies_are_used_for_distillation_and_not_for_l_hm(stream: Stream) -> None:
    method = trained_pah(stream, 3, copies=True, **FROZEN_NORM_OPTIONS)
    assert method.teacher is not None
    batch = sample_batch(stream.tasks[2])
    terms = method._image_terms(batch, method.old_tasks)
    copies = method.distillation_copies(batch, method.old_tasks)
    with torch.no_grad(), evaluating(method):
        both = torch.cat([batch.x, copies])
        student = stack_logits(method.network(both, [0, 1]), (2, 2))
        expected = distillation(method.teacher(both, method.old_tasks), student, method.options.temperature)
        learned_from = F.cross_entropy(method.network(batch.x, [2]), batch.y)
    torch.testing.assert_close(terms["L_sm"].detach(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["L_hm"].detach(), learned_from, rtol=1e-4, atol=1e-6)


def test_copies_detect_a_change_that_new_images_do_not_detect(stream: Stream) -> None:
    losses = {}
    for copies in (False, True):
        method = small_pah(channels=3, prototype_start="random", copies=copies, **FROZEN_NORM_OPTIONS)
        batches = [sample_batch(stream.tasks[task]) for task in (0, 1)]
        batches = [replace(batch, x=batch.x.repeat(1, 3, 1, 1)) for batch in batches]
        batches[1].x[:, 0] = 0  # the new images have no red
        begin(method, stream.tasks[0], seed=0)
        method.train()
        for _ in range(3):
            method.observe(batches[0])
        method.release()
        begin(method, stream.tasks[1], seed=0)
        first = next(part for part in method.network.backbone.modules() if isinstance(part, torch.nn.Conv2d))
        with torch.no_grad():
            first.weight[:, 0] += 1  # only the response to red changes
        losses[copies] = method._image_terms(batches[1], method.old_tasks)["L_features"].item()
    assert losses[False] == pytest.approx(0, abs=1e-6)
    assert losses[True] > 0.01


def test_an_image_is_moved_toward_the_requested_class(stream: Stream) -> None:
    method = trained_pah(stream, 3)
    assert method.teacher is not None
    x = sample_batch(stream.tasks[2]).x
    task, label = torch.arange(16) % 2, torch.arange(16) // 2 % 2
    moved = method.teacher.moved_toward_class(x, range(2), task, label)
    before, after = (
        method.teacher(images, range(2)).softmax(dim=2)[torch.arange(16), task, label] for images in (x, moved)
    )
    assert (after > before).all()
    assert (moved - x).square().mean(dim=(1, 2, 3)).sqrt().max() <= ASCENT_STEPS * ASCENT_STEP_SIZE + 1e-5


@pytest.mark.parametrize("images", [2, 9])
def test_every_second_copy_is_moved_with_any_number_of_processes(
    images: int, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = trained_pah(stream, 3, copies=True, **FROZEN_NORM_OPTIONS)
    batch = sample_batch(stream.tasks[2], images)
    whole = method.distillation_copies(batch, method.old_tasks)
    plain = recolour(batch.x, batch.step.generator("copies"))
    same = [torch.equal(moved, unmoved) for moved, unmoved in zip(whole, plain, strict=True)]
    assert same == [image % 2 == 1 for image in range(images)]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    slices = []
    for index in range(2):
        monkeypatch.setattr(distributed, "rank", lambda index=index: index)
        part = distributed.own_slice(images)
        slices.append(
            method.distillation_copies(
                replace(batch, x=batch.x[part], y=batch.y[part], slice_of=images), method.old_tasks
            )
        )
    torch.testing.assert_close(torch.cat(slices), whole, rtol=1e-3, atol=1e-4)


def test_copies_need_frozen_batch_norm() -> None:
    with pytest.raises(InputError, match=r"method\.copies: expected false, or later_batch_norm frozen, got True"):
        PAHOptions(copies=True)


def test_with_frozen_batch_norm_the_student_initially_equals_the_teacher(stream: Stream) -> None:
    method = small_pah(**FROZEN_NORM_OPTIONS)
    train_few_steps(method, stream, 1, steps=20)
    method.end_task(stream.tasks[0])
    method.release()
    begin(method, stream.tasks[1], seed=0)
    method.train()
    terms = method._image_terms(sample_batch(stream.tasks[1]), method.old_tasks)
    assert max(terms[name].item() for name in ("L_sm", "L_features", "L_heads")) == pytest.approx(0.0, abs=1e-6)
    without_frozen_norms = small_pah()
    train_few_steps(without_frozen_norms, stream, 1, steps=20)
    without_frozen_norms.end_task(stream.tasks[0])
    without_frozen_norms.release()
    begin(without_frozen_norms, stream.tasks[1], seed=0)
    without_frozen_norms.train()
    assert (
        without_frozen_norms._image_terms(sample_batch(stream.tasks[1]), without_frozen_norms.old_tasks)["L_sm"].item()
        > 1e-4
    )


def test_frozen_batch_norm_keeps_the_first_tasks_statistics_and_learns_its_weights(stream: Stream) -> None:
    method = small_pah(**FROZEN_NORM_OPTIONS)
    train_few_steps(method, stream, 1)
    method.end_task(stream.tasks[0])
    before = snapshot(method.network.backbone)
    for task in stream.tasks[1:3]:
        method.release()
        begin(method, task, seed=0)
        method.train()
        method.observe(sample_batch(task))
    moved = changed_tensors(method.network.backbone, before)
    assert not {name for name in moved if "running" in name or "batches" in name}
    assert any(name.endswith("weight") for name in moved)
    assert all(part.training for part in method.network.backbone.modules())


def test_the_first_tasks_statistics_are_those_of_its_images(stream: Stream) -> None:
    method = small_pah(**FROZEN_NORM_OPTIONS)
    train_few_steps(method, stream, 1)
    method.end_task(stream.tasks[0])
    task, (convolution, norm) = stream.tasks[0], list(method.network.backbone.body.children())[:2]
    with torch.no_grad():
        maps = convolution(task.normalization(task.train.pixels[task.train.rows]))
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, maps.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(norm.running_var, maps.var(dim=(0, 2, 3)), atol=1e-3, rtol=3e-2)
