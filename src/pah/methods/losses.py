"""The distillation losses of PAH as pure functions of logits.

B: images, J: heads asked (one a task), C: classes of the largest of these tasks.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["teacher||student", "student||teacher"]
Reduction = Literal["mean", "sum"]

ABSENT = -1e4  # the logit of a class that a smaller task does not have: exp() of it is exactly 0 in float32


def stack_heads(logits: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Lay the logits of heads of unequal size side by side: (B, ΣC_j) -> (B, J, C), filled up with `ABSENT`.

    `sizes` are the C_j, in the order of the columns.
    """
    if len(set(sizes)) == 1:
        return logits.reshape(len(logits), len(sizes), sizes[0])
    parts: list[Tensor] = list(logits.split(sizes, dim=1))
    widest = max(sizes)
    return torch.stack([F.pad(part, (0, widest - part.shape[1]), value=ABSENT) for part in parts], dim=1)


def kl_divergence(
    teacher: Tensor, student: Tensor, temperature: float = 1.0, direction: Direction = "teacher||student"
) -> Tensor:
    """KL between the softened answers, over the last dimension: (…, C), (…, C) -> (…), in nats.

    Σ_c p_c (log p_c - log q_c) with p and q the softmax of logits / T; p is the teacher's for
    "teacher||student" (the paper) and the student's for "student||teacher" (its published code).
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
    """L_sm: how far the old heads' answers to images have moved, (B, J, C) twice -> scalar.

    T² / J Σ_j E_x KL(f_old(x | j) ‖ f(x | j)); "sum" leaves 1/J out, as the published code does. T² keeps the
    gradient's scale independent of the temperature (Hinton et al. 2015, section 2).
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
    """L_sp: how far the old network's answers to its own prototypes are from today's, (P, C) twice -> scalar.

    1/J Σ_j Σ_c KL(f_old(p_j^c | j) ‖ f(p_j^c | j)): a sum over the classes of a task, a mean over the J tasks
    ("sum": a sum over them as well). `tasks` (P,) says which of the `count` = J tasks a prototype belongs to.
    """
    divergence = kl_divergence(teacher, student, direction=direction)
    per_task = torch.zeros(count, dtype=divergence.dtype, device=divergence.device)
    return _over_tasks(per_task.index_add(0, tasks, divergence), reduction)


def relative_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """How far vectors have moved, relative to their own size: (N, D) twice -> scalar, Σ ‖s - t‖² / Σ ‖t‖²."""
    teacher, student = teacher.float(), student.float()
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)


def _over_tasks(per_task: Tensor, reduction: Reduction) -> Tensor:
    return per_task.mean() if reduction == "mean" else per_task.sum()
