"""The distillation losses of PAH as pure functions of logits.

B: number of images, J: number of heads (one for each task), C: number of classes of the largest of these tasks.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["teacher||student", "student||teacher"]
Reduction = Literal["mean", "sum"]

ABSENT_LOGIT = -1e4  # the logit of a class that a smaller task does not have: its exp() is exactly 0 in float32


def stack_logits(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return concatenated logits of several heads as (B, J, C), padded with `ABSENT_LOGIT`.

    Args:
        logits: (B, ΣC_j), the logits of the heads side by side.
        sizes: C_j, the number of classes of each head.
    """
    if len(set(sizes)) == 1:
        return logits.reshape(len(logits), len(sizes), sizes[0])
    parts: list[Tensor] = list(logits.split(sizes, dim=1))
    largest = max(sizes)
    return torch.stack([F.pad(part, (0, largest - part.shape[1]), value=ABSENT_LOGIT) for part in parts], dim=1)


def kl_divergence(
    teacher: Tensor, student: Tensor, temperature: float = 1.0, direction: Direction = "teacher||student"
) -> Tensor:
    """Return the KL divergence between softened predictions over the last dimension, in nats.

    Σ_c p_c (log p_c - log q_c) with p and q the softmax of logits / T. For "teacher||student" (the paper) p is the
    teacher's, for "student||teacher" (its published code) the student's.

    Args:
        teacher: Logits (…, C).
        student: Logits (…, C).
        temperature: T, above 0.
        direction: Which of the two is p.

    Returns:
        (…).
    """
    p = F.log_softmax(teacher / temperature, dim=-1)
    q = F.log_softmax(student / temperature, dim=-1)
    if direction == "student||teacher":
        p, q = q, p
    return (p.exp() * (p - q)).sum(dim=-1)


def distillation(
    teacher: Tensor,
    student: Tensor,
    temperature: float,
    direction: Direction = "teacher||student",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return L_sm = T² / J Σ_j E_x KL(f_old(x | j) ‖ f(x | j)), the change of the old heads' predictions.

    T² keeps the scale of the gradient independent of the temperature (Hinton et al. 2015, section 2).

    Args:
        teacher: Logits (B, J, C) of the old network.
        student: Logits (B, J, C) of the current network.
        temperature: T, above 0.
        direction: The direction of the KL divergence.
        reduction: "mean" over the tasks, or "sum", which omits 1/J, as in the published code.

    Returns:
        A scalar.
    """
    return temperature**2 * _over_tasks(kl_divergence(teacher, student, temperature, direction).mean(dim=0), reduction)


def alignment(
    teacher: Tensor,
    student: Tensor,
    tasks: Tensor,
    count: int,
    direction: Direction = "teacher||student",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return L_sp = 1/J Σ_j Σ_c KL(f_old(p_j^c | j) ‖ f(p_j^c | j)), the change of the predictions for prototypes.

    It is a sum over the classes of a task, and a mean or a sum over the tasks.

    Args:
        teacher: Logits (P, C) of the old network for its own prototypes.
        student: Logits (P, C) of the current network for the current prototypes.
        tasks: (P,), the position of each prototype's task, 0 to J - 1.
        count: J.
        direction: The direction of the KL divergence.
        reduction: "mean" over the tasks, or "sum".

    Returns:
        A scalar.
    """
    divergence = kl_divergence(teacher, student, direction=direction)
    per_task = torch.zeros(count, dtype=divergence.dtype, device=divergence.device)
    return _over_tasks(per_task.index_add(0, tasks, divergence), reduction)


def relative_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Return Σ ‖s - t‖² / Σ ‖t‖², the change of vectors (N, D) relative to their size, as a scalar."""
    teacher, student = teacher.float(), student.float()
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def _over_tasks(per_task: Tensor, reduction: Reduction) -> Tensor:
    return per_task.mean() if reduction == "mean" else per_task.sum()
