"""A network whose late stages are generated for each task (Hemati et al. 2023, "Partial Hypernetworks for CL").

B: images, D: features, C: classes of a task, E: numbers of an embedding, N: numbers generated for a task.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pah.core.config import require
from pah.models.backbones import Backbone, GlobalPool
from pah.models.embedding import head_std, require_equal
from pah.models.hypernetwork import unit_variance_mlp
from pah.models.modes import evaluating
from pah.models.network import Heads, TaskNetwork, apply_rows


class ChunkedHypernetwork(nn.Module):
    """Υ: a task's embedding in, tensors of the given shapes out (von Oswald et al. 2020, chunked hypernetworks).

    One MLP makes the N numbers in `chunks` parts, each from the task's embedding and the chunk's own, which is learned
    too: its last layer has h / chunks times N weights, h being the width before it. Each tensor starts with the
    standard deviation asked of it.
    """

    stds: Tensor

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        stds: Sequence[float | Tensor],
        embedding: int,
        hidden: Sequence[int],
        chunks: int,
    ) -> None:
        super().__init__()
        self.shapes = list(shapes)
        self.numbers = [shape.numel() for shape in shapes]
        self.register_buffer("stds", torch.stack([torch.as_tensor(std) for std in stds]))
        self.chunks = nn.Parameter(torch.randn(chunks, embedding))
        self.net = unit_variance_mlp(2 * embedding, hidden, -(-sum(self.numbers) // chunks))

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """(E,) -> a tensor of each shape."""
        inputs = torch.cat([embedding.expand_as(self.chunks), self.chunks], dim=1)  # (chunks, 2 E)
        made = self.net(inputs).flatten()[: sum(self.numbers)].split(self.numbers)
        return [std * piece.view(shape) for std, piece, shape in zip(self.stds, made, self.shapes, strict=True)]


class GeneratedParts(Heads):
    """What belongs to each task: its embedding, and generated from it the late filters and the head."""

    def __init__(self, features: int, filters: Sequence[Tensor], embedding: int, hidden: Sequence[int], chunks: int):
        super().__init__()
        self.features = features
        self.shapes = [tensor.shape for tensor in filters]
        self.stds = [tensor.detach().std() for tensor in filters]
        self.embedding = embedding
        self.hidden = tuple(hidden)
        self.chunks = chunks
        self.tasks = nn.ParameterList()  # (E,) each
        self.hypernetwork: ChunkedHypernetwork | None = None  # how much it makes depends on the first task's classes

    def grow(self, classes: int) -> None:
        """A random embedding; with the first task the hypernetwork. InputError unless all tasks are of one size."""
        self.sizes.append(classes)
        require_equal(self.sizes)
        self.tasks.append(nn.Parameter(torch.randn(self.embedding)))
        if self.hypernetwork is None:
            shapes = [*self.shapes, torch.Size((classes, self.features + 1))]
            stds: list[float | Tensor] = [*self.stds, head_std(self.features)]
            self.hypernetwork = ChunkedHypernetwork(shapes, stds, self.embedding, self.hidden, self.chunks)

    def generate(self, task: int, detach: bool = False) -> tuple[list[Tensor], Tensor]:
        """The task's late filters, and its head's rows (C, D + 1)."""
        assert self.hypernetwork is not None, "grow() comes first"
        *filters, rows = self.hypernetwork(self.tasks[task].detach() if detach else self.tasks[task])
        return filters, rows

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """The generated heads alone."""
        return torch.cat([self.generate(k, k in detach)[1] for k in tasks])

    def per_task(self) -> list[nn.Parameter]:
        """The embeddings."""
        return list(self.tasks)


class PartialNetwork(TaskNetwork):
    """f(x | k): early stages that all tasks share and only the first one trains, late stages and a head generated.

    A stage of a residual network is the blocks of one width, the stem being part of the first; of a plain one, a
    convolution with what follows it. The late stages' filters are generated; their batch norms (parameters and
    running statistics) are each task's own, stored, and never change after it. From the second task on the early
    stages are constant, their batch norms included.

    `backbone` becomes the early stages, pooled: all that is left of it to be shared.

    Args:
        backbone: One whose body is a sequence of convolutions or residual blocks; taken apart.
        image_shape: (channels, H, W).
        generate_from: The first stage to be generated, from 2 on; one more than there are leaves only the head.
        embedding: E.
        hidden: Widths of the hypernetwork's hidden layers.
        chunks: In how many parts the hypernetwork makes its numbers.

    Raises:
        InputError: the backbone has no such stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_shape: tuple[int, int, int],
        generate_from: int,
        embedding: int,
        hidden: Sequence[int],
        chunks: int,
    ) -> None:
        stages = backbone.stages()
        count = len(stages) - 1
        expected = f"2 to {count + 1} for a backbone of {count} stages"
        require(2 <= generate_from <= count + 1, "method.generate_from", expected, generate_from)
        split = sum(len(stage) for stage in stages[: generate_from - 1])
        assert isinstance(backbone.body, nn.Sequential), "it has stages"
        early, late = backbone.body[:split], backbone.body[split:]
        convolutions = {name: part for name, part in late.named_modules() if isinstance(part, nn.Conv2d)}
        filters = {f"{name}.weight": convolution.weight for name, convolution in convolutions.items()}
        heads = GeneratedParts(backbone.features, list(filters.values()), embedding, hidden, chunks)
        width = [part.num_features for part in early.modules() if isinstance(part, nn.BatchNorm2d)][-1]
        super().__init__(Backbone(early.append(GlobalPool()), width), heads, image_shape)
        self.filter_names = list(filters)
        for convolution in convolutions.values():
            convolution.register_parameter("weight", None)
        self._another_late = partial(copy.deepcopy, late)
        self.late = nn.ModuleList()  # for each task the late stages without filters: its batch norms

    @property
    def parts(self) -> GeneratedParts:
        """The heads, which are more than that here."""
        assert isinstance(self.heads, GeneratedParts)
        return self.heads

    def grow(self, classes: int) -> None:
        """An embedding and batch norms for one more task."""
        super().grow(classes)
        self.late.append(self._another_late())

    def footprint(self) -> dict[str, Any]:
        """The early stages, the hypernetwork with its chunks' embeddings, each task's embedding and batch norms."""
        norms = [sum(p.numel() for p in late.parameters()) for late in self.late]
        counted = super().footprint()
        return counted | {"per_task": [e + n for e, n in zip(counted["per_task"], norms, strict=True)]}

    def features(self, x: Tensor, task: int) -> Tensor:
        """The task's features of images: (B, channels, H, W) -> (B, D)."""
        return self._late_features(self._early_maps(x), task, self.parts.generate(task)[0])

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Logits of all these heads, from one pass through the early stages: (B, channels, H, W) -> (B, R)."""
        maps = self._early_maps(x)
        logits = []
        for k in tasks:
            filters, rows = self.parts.generate(k, k in detach)
            logits.append(apply_rows(self._late_features(maps, k, filters), rows))
        return torch.cat(logits, dim=1)

    def _early_maps(self, x: Tensor) -> Tensor:
        """What the early stages make of images, before pooling; from the second task on they are constant."""
        assert isinstance(self.backbone.body, nn.Sequential)
        early = self.backbone.body[:-1]
        if len(self.late) <= 1:
            return early(x)  # type: ignore[no-any-return]
        with torch.no_grad(), evaluating(early):
            return early(x)  # type: ignore[no-any-return]

    def _late_features(self, maps: Tensor, task: int, filters: Sequence[Tensor]) -> Tensor:
        """The task's late stages with the given filters: maps (B, channels, H, W) -> (B, D)."""
        state = dict(zip(self.filter_names, filters, strict=True))
        return functional_call(self.late[task], state, (maps,))  # type: ignore[no-any-return]
