"""A memory of training images for methods that replay them.

N: capacity, C: number of classes of the largest task seen, n: number of samples.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core import distributed
from pah.core.devices import to_device


@dataclass(frozen=True)
class Samples:
    """Training images before augmentation, and the data stored with them."""

    pixels: Tensor  # uint8 (n, channels, H, W), or vectors float32 (n, D, 1, 1)
    labels: Tensor  # int64 (n,), within the image's task
    tasks: Tensor  # int64 (n,)
    logits: Tensor  # float32 (n, C): logits of the head of the image's task, 0 if none were stored
    weights: Tensor  # float32 (n,): the weight of the sample in a loss

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> Self:
        indices = to_device(indices, self.labels.device)
        return type(self)(*(getattr(self, field.name)[indices] for field in fields(self)))

    def concatenated(self, other: Self) -> Self:
        """Return these samples followed by the others."""
        return type(self)(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def to(self, device: torch.device) -> Self:
        """Return the samples on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def gathered(self) -> Self:
        """Return the samples of the slices of all processes, in the order of the whole batch."""
        return type(self)(*(distributed.all_gather_rows(getattr(self, field.name)) for field in fields(self)))


class Buffer(nn.Module):
    """At most N training images of all tasks together. It is part of a method's state and of its checkpoints.

    Args:
        capacity: N.
        image_shape: (channels, H, W).
        dtype: That of pixels; float32 for vectors.
    """

    pixels: Tensor
    labels: Tensor
    tasks: Tensor
    logits: Tensor
    weights: Tensor
    filled: Tensor
    offered: Tensor

    def __init__(self, capacity: int, image_shape: tuple[int, int, int], dtype: torch.dtype = torch.uint8) -> None:
        super().__init__()
        self.capacity = capacity
        self.register_buffer("pixels", torch.zeros(capacity, *image_shape, dtype=dtype))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("tasks", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("logits", torch.zeros(capacity, 0))
        self.register_buffer("weights", torch.ones(capacity))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("offered", torch.tensor(0))
        self.counts = (0, 0)  # `filled` and `offered` as integers: reading them needs no wait for a GPU
        self.register_load_state_dict_post_hook(_read_counts)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self.counts[0]

    def grow(self, classes: int) -> None:
        """Widen the stored logits for a task of `classes` classes."""
        self.logits = F.pad(self.logits, (0, max(0, classes - self.logits.shape[1])))

    def pad_logits(self, logits: Tensor) -> Tensor:
        """Return logits (n, at most C) padded with 0 to (n, C)."""
        return F.pad(logits, (0, self.logits.shape[1] - logits.shape[1]))

    def samples(self) -> Samples:
        """Return all stored samples."""
        tensors = (self.pixels, self.labels, self.tasks, self.logits, self.weights)
        return Samples(*(tensor[: len(self)] for tensor in tensors))

    def draw(self, count: int, generator: torch.Generator) -> Samples:
        """Return `count` different stored samples drawn uniformly, or all if there are fewer."""
        return self.samples()[torch.randperm(len(self), generator=generator)[:count]]

    def offer(self, samples: Samples, generator: torch.Generator) -> None:
        """Add samples by reservoir sampling (Vitter 1985, algorithm R).

        Each of the n samples offered so far is then in the buffer with probability N / n.
        """
        _, total = self.counts
        ordinals = torch.arange(total + 1, total + len(samples) + 1)
        uniform = torch.rand(len(samples), generator=generator, dtype=torch.float64)
        # uniform in 0 … ordinal - 1 once the buffer is full
        positions = torch.where(ordinals <= self.capacity, ordinals - 1, (uniform * ordinals).long())
        # a later sample replaces an earlier one at the same position
        row_at = {position: row for row, position in enumerate(positions.tolist()) if position < self.capacity}
        if row_at:
            self._write(torch.tensor([*row_at]), samples[torch.tensor([*row_at.values()])])
        total += len(samples)
        self._set_counts(min(self.capacity, total), total)

    def replace(self, samples: Samples) -> None:
        """Replace the content by these samples, at most N."""
        self._write(torch.arange(len(samples)), samples)
        self._set_counts(len(samples), self.counts[1])

    def _set_counts(self, filled: int, offered: int) -> None:
        self.counts = (filled, offered)
        self.filled.fill_(filled)
        self.offered.fill_(offered)

    def _write(self, positions: Tensor, samples: Samples) -> None:
        positions = to_device(positions, self.labels.device)
        self.pixels[positions] = samples.pixels
        self.labels[positions] = samples.labels
        self.tasks[positions] = samples.tasks
        self.logits[positions] = self.pad_logits(samples.logits)
        self.weights[positions] = samples.weights


def _read_counts(buffer: Buffer, _: object) -> None:
    """Set the integer counts after a state dict was loaded."""
    buffer.counts = (int(buffer.filled), int(buffer.offered))
