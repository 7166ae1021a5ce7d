"""Tests of the losses against their equations."""

import math

import pytest
import torch
from torch import Tensor

from pah.methods.losses import ABSENT_LOGIT, Direction, Reduction, alignment, distillation, kl_divergence, stack_logits


def test_kl_by_hand_on_two_images_of_three_classes() -> None:
    # p = (1/2, 1/4, 1/4) and (1/3, 1/3, 1/3); q = (1/4, 1/2, 1/4) and (1/3, 1/3, 1/3)
    teacher = torch.tensor([[2.0, 1.0, 1.0], [5.0, 5.0, 5.0]]).log()
    student = torch.tensor([[1.0, 2.0, 1.0], [7.0, 7.0, 7.0]]).log()
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5)  # + 0.25 log 1
    assert kl_divergence(teacher, student).tolist() == pytest.approx([by_hand, 0.0], abs=1e-6)


def test_kl_is_not_symmetric_and_follows_the_direction() -> None:
    p = torch.tensor([[8.0, 1.0, 1.0]]).log()
    q = torch.tensor([[1.0, 1.0, 2.0]]).log()
    forward = 0.8 * math.log(0.8 / 0.25) + 0.1 * math.log(0.1 / 0.25) + 0.1 * math.log(0.1 / 0.5)
    backward = 0.25 * math.log(0.25 / 0.8) + 0.25 * math.log(0.25 / 0.1) + 0.5 * math.log(0.5 / 0.1)
    assert kl_divergence(p, q).item() == pytest.approx(forward, abs=1e-6)
    assert kl_divergence(p, q, direction="student||teacher").item() == pytest.approx(backward, abs=1e-6)


def test_distillation_averages_images_and_sums_or_averages_tasks() -> None:
    teacher, student = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    temperature = 2.0
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    by_definition = temperature**2 * sum(
        (p[b, j] * (p[b, j] / q[b, j]).log()).sum().item() for b in range(5) for j in range(3)
    )
    mean = distillation(teacher, student, temperature, reduction="mean").item()
    total = distillation(teacher, student, temperature, reduction="sum").item()
    assert mean == pytest.approx(by_definition / 15, rel=1e-4)
    assert total == pytest.approx(by_definition / 5, rel=1e-4)


@pytest.mark.parametrize("direction", ["teacher||student", "student||teacher"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equal_logits_give_no_loss_and_no_gradient(direction: Direction, reduction: Reduction) -> None:
    logits = 3 * torch.randn(6, 2, 5)
    student = logits.clone().requires_grad_()
    loss = distillation(logits, student, 2.0, direction, reduction)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert gradient.abs().max().item() < 1e-6


def test_alignment_sums_the_classes_of_a_task() -> None:
    teacher, student = torch.randn(5, 3), torch.randn(5, 3)
    positions = torch.tensor([0, 0, 1, 1, 1])
    each = kl_divergence(teacher, student)
    assert alignment(teacher, student, positions, 2).item() == pytest.approx(each.sum().item() / 2, rel=1e-5)
    assert alignment(teacher, student, positions, 2, reduction="sum").item() == pytest.approx(
        each.sum().item(), rel=1e-5
    )


def test_stacked_heads_of_unequal_size_give_the_losses_of_single_heads() -> None:
    sizes = (2, 4, 3)
    teacher, student = torch.randn(6, 9), torch.randn(6, 9)

    def single_head_loss(column: int, width: int) -> Tensor:
        part = slice(column, column + width)
        return kl_divergence(teacher[:, part], student[:, part], 2.0).mean()

    expected = 4 * (single_head_loss(0, 2) + single_head_loss(2, 4) + single_head_loss(6, 3)) / 3
    stacked = distillation(stack_logits(teacher, sizes), stack_logits(student, sizes), 2.0)
    assert stacked.item() == pytest.approx(expected.item(), rel=1e-5)


def test_absent_classes_of_a_smaller_task_have_probability_zero() -> None:
    stacked = stack_logits(torch.randn(2, 5), (2, 3))
    assert stacked[0, 0, 2] == ABSENT_LOGIT
    assert stacked.softmax(-1)[:, 0, 2].tolist() == [0.0, 0.0]
