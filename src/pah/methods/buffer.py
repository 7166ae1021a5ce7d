"""A memory of training images, for methods that replay them.

N: capacity, C: classes of the largest task seen.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core import distributed
from pah.core.devices import sent


@dataclass(frozen=True)
class Samples:
    """Training images as they came, and what is kept with each."""

    pixels: Tensor  # uint8 (n, channels, H, W)
    labels: Tensor  # int64 (n,), within the image's task
    tasks: Tensor  # int64 (n,)
    logits: Tensor  # float32 (n, C): an answer of its own task's head, 0 where none was kept
    weights: Tensor  # float32 (n,): how much it counts

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Self:
        there = sent(rows, self.labels.device)
        return type(self)(*(getattr(self, field.name)[there] for field in fields(self)))

    def joined(self, other: Self) -> Self:
        """These and the others."""
        return type(self)(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def of_all_processes(self) -> Self:
        """These of this process's slice and those of the others, in the order of the whole batch."""
        return type(self)(*(distributed.together(getattr(self, field.name)) for field in fields(self)))


class Buffer(nn.Module):
    """At most N training images of all tasks together; part of a method's state, so of its checkpoints."""

    pixels: Tensor
    labels: Tensor
    tasks: Tensor
    logits: Tensor
    weights: Tensor
    filled: Tensor
    offered: Tensor

    def __init__(self, capacity: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("pixels", torch.zeros(capacity, *image_shape, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("tasks", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("logits", torch.zeros(capacity, 0))
        self.register_buffer("weights", torch.ones(capacity))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("offered", torch.tensor(0))
        self.counts = (0, 0)  # filled and offered, for whoever does not want to wait for a device
        self.register_load_state_dict_post_hook(_read_counts)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self.counts[0]

    def grow(self, classes: int) -> None:
        """Room for the logits of a task of so many classes."""
        self.logits = F.pad(self.logits, (0, max(0, classes - self.logits.shape[1])))

    def widened(self, logits: Tensor) -> Tensor:
        """Logits (n, C or fewer) as the buffer keeps them: (n, C)."""
        return F.pad(logits, (0, self.logits.shape[1] - logits.shape[1]))

    def samples(self) -> Samples:
        """All that is stored."""
        kept = (self.pixels, self.labels, self.tasks, self.logits, self.weights)
        return Samples(*(tensor[: len(self)] for tensor in kept))

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """`count` different stored samples, or all if they are fewer, drawn uniformly."""
        return self.samples()[torch.randperm(len(self), generator=generator)[:count]]

    def offer(self, samples: Samples, generator: torch.Generator) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R): each of n samples offered so far stays with chance N / n."""
        _, total = self.counts
        count = torch.arange(total + 1, total + len(samples) + 1)
        chance = torch.rand(len(samples), generator=generator, dtype=torch.float64)
        places = torch.where(count <= self.capacity, count - 1, (chance * count).long())  # uniform in 0 … count - 1
        # in order: a later sample may take an earlier one's place
        row_at = {place: row for row, place in enumerate(places.tolist()) if place < self.capacity}
        if row_at:
            self._put(torch.tensor([*row_at]), samples[torch.tensor([*row_at.values()])])
        total += len(samples)
        self._count(min(self.capacity, total), total)

    def replace(self, samples: Samples) -> None:
        """Keep exactly these, at most N."""
        self._put(torch.arange(len(samples)), samples)
        self._count(len(samples), self.counts[1])

    def _count(self, filled: int, offered: int) -> None:
        self.counts = (filled, offered)
        self.filled.fill_(filled)
        self.offered.fill_(offered)

    def _put(self, places: Tensor, samples: Samples) -> None:
        there = sent(places, self.labels.device)
        self.pixels[there] = samples.pixels
        self.labels[there] = samples.labels
        self.tasks[there] = samples.tasks
        self.logits[there] = self.widened(samples.logits)
        self.weights[there] = samples.weights


def _read_counts(buffer: Buffer, _: object) -> None:
    """What was loaded says how full the buffer is."""
    buffer.counts = (int(buffer.filled), int(buffer.offered))
