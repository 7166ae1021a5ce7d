"""A network whose late stages are generated for each task (Hemati et al. 2023, "Partial Hypernetworks for CL").

B: number of images, D: number of features, C: number of classes of a task, E: size of an embedding, N: number of
weights generated for a task.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pah.core.config import require
from pah.models.backbone import Backbone
from pah.models.embedding_heads import require_equal_tasks, stored_head_std
from pah.models.hypernetwork import unit_variance_mlp
from pah.models.layers import GlobalPool
from pah.models.modes import evaluating
from pah.models.network import Heads, TaskNetwork, apply_heads


class ChunkedHypernetwork(nn.Module):
    """Υ: generates tensors of given shapes from a task's embedding (chunked, von Oswald et al. 2020).

    One MLP generates the N weights in `chunks` parts. Its input is the task's embedding and a learned embedding of the
    chunk. Its last layer has about h N / chunks weights, where h is the last hidden width.

    Args:
        shapes: The shapes of the generated tensors.
        stds: The standard deviation of each generated tensor before training.
        embedding: E, of a task and of a chunk.
        hidden: Widths of the hidden layers.
        chunks: Number of chunks.
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
        self.numels = [shape.numel() for shape in shapes]
        self.register_buffer("stds", torch.stack([torch.as_tensor(std) for std in stds]))
        self.chunks = nn.Parameter(torch.randn(chunks, embedding))
        self.net = unit_variance_mlp(2 * embedding, hidden, -(-sum(self.numels) // chunks))

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Generate a tensor of each shape from an embedding (E,)."""
        inputs = torch.cat([embedding.expand_as(self.chunks), self.chunks], dim=1)  # (chunks, 2 E)
        weights = self.net(inputs).flatten()[: sum(self.numels)].split(self.numels)
        return [std * part.view(shape) for std, part, shape in zip(self.stds, weights, self.shapes, strict=True)]


class GeneratedParts(Heads):
    """The embedding of each task, and the late filters and the head that are generated from it.

    Args:
        features: D.
        filters: The late filters of an untrained backbone, which give the shapes and the standard deviations.
        embedding: E.
        hidden: Widths of the hypernetwork's hidden layers.
        chunks: Number of chunks of the hypernetwork.
    """

    def __init__(self, features: int, filters: Sequence[Tensor], embedding: int, hidden: Sequence[int], chunks: int):
        super().__init__()
        self.features = features
        self.shapes = [tensor.shape for tensor in filters]
        self.stds = [tensor.detach().std() for tensor in filters]
        self.embedding = embedding
        self.hidden = tuple(hidden)
        self.chunks = chunks
        self.tasks = nn.ParameterList()  # one embedding (E,) for each task
        self.hypernetwork: ChunkedHypernetwork | None = None  # built with the first task, which fixes the output size

    def grow(self, classes: int) -> None:
        """Add a random embedding for one more task and, with the first task, the hypernetwork.

        Raises:
            InputError: the number of classes differs from that of the earlier tasks.
        """
        self.sizes.append(classes)
        require_equal_tasks(self.sizes)
        self.tasks.append(nn.Parameter(torch.randn(self.embedding)))
        if self.hypernetwork is None:
            shapes = [*self.shapes, torch.Size((classes, self.features + 1))]
            stds: list[float | Tensor] = [*self.stds, stored_head_std(self.features)]
            self.hypernetwork = ChunkedHypernetwork(shapes, stds, self.embedding, self.hidden, self.chunks)

    def generate(self, task: int, detach: bool = False) -> tuple[list[Tensor], Tensor]:
        """Return the late filters of a task and the rows (C, D + 1) of its head."""
        assert self.hypernetwork is not None, "grow() comes first"
        *filters, rows = self.hypernetwork(self.tasks[task].detach() if detach else self.tasks[task])
        return filters, rows

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the rows of the generated heads, without the filters."""
        return torch.cat([self.generate(k, k in detach)[1] for k in tasks])

    def task_parameters(self) -> list[nn.Parameter]:
        """Return the embeddings."""
        return list(self.tasks)


class PartialNetwork(TaskNetwork):
    """f(x | k): early stages that all tasks share, and late stages and a head that are generated for each task.

    A stage of a residual network holds the blocks of one width, with the stem in the first stage. A stage of a plain
    network is a convolution with the layers after it. The filters of the late stages are generated. Their batch norms
    (parameters and running statistics) are stored for each task and do not change after the task. Only the first task
    trains the early stages. From the second task on they are constant, with their batch norms.

    The attribute `backbone` is the early stages with a pooling: the part that tasks share.

    Args:
        backbone: A backbone made of stages. It is taken apart.
        image_shape: (channels, H, W).
        generate_from: The first stage that is generated, from 2 to the number of stages + 1. With the latter only the
            head is generated.
        embedding: E.
        hidden: Widths of the hypernetwork's hidden layers.
        chunks: Number of parts in which the hypernetwork generates its weights.

    Raises:
        InputError: the backbone is not made of stages, or `generate_from` is out of range.
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
        early_layers = sum(len(stage) for stage in stages[: generate_from - 1])
        assert isinstance(backbone.body, nn.Sequential), "it has stages"
        early, late = backbone.body[:early_layers], backbone.body[early_layers:]
        convolutions = {name: layer for name, layer in late.named_modules() if isinstance(layer, nn.Conv2d)}
        filters = {f"{name}.weight": convolution.weight for name, convolution in convolutions.items()}
        heads = GeneratedParts(backbone.features, list(filters.values()), embedding, hidden, chunks)
        early_width = [layer.num_features for layer in early.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
        super().__init__(Backbone(early.append(GlobalPool()), early_width), heads, image_shape)
        self.filter_names = list(filters)
        for convolution in convolutions.values():
            convolution.register_parameter("weight", None)
        self._copy_late_stages = partial(copy.deepcopy, late)
        self.late = nn.ModuleList()  # for each task the late stages without filters, that is, its batch norms

    @property
    def parts(self) -> GeneratedParts:
        """The heads, which here also generate filters."""
        assert isinstance(self.heads, GeneratedParts)
        return self.heads

    def grow(self, classes: int) -> None:
        """Add an embedding and batch norms for one more task."""
        super().grow(classes)
        self.late.append(self._copy_late_stages())

    def count_parameters(self) -> dict[str, Any]:
        """Return the numbers of parameters of the early stages, the hypernetwork and each task.

        The hypernetwork includes the embeddings of the chunks. A task has its embedding and its batch norms.
        """
        norms = [sum(p.numel() for p in late.parameters()) for late in self.late]
        counts = super().count_parameters()
        return counts | {"per_task": [e + n for e, n in zip(counts["per_task"], norms, strict=True)]}

    def features(self, x: Tensor, task: int) -> Tensor:
        """Return the features of images for a task: (B, channels, H, W) -> (B, D)."""
        return self._late_features(self._early_maps(x), task, self.parts.generate(task)[0])

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the logits of these tasks from one pass through the early stages: (B, channels, H, W) -> (B, R)."""
        maps = self._early_maps(x)
        logits = []
        for k in tasks:
            filters, rows = self.parts.generate(k, k in detach)
            logits.append(apply_heads(self._late_features(maps, k, filters), rows))
        return torch.cat(logits, dim=1)

    def _early_maps(self, x: Tensor) -> Tensor:
        """Return the output of the early stages before the pooling. From the second task on, the stages are frozen."""
        assert isinstance(self.backbone.body, nn.Sequential)
        early = self.backbone.body[:-1]
        if len(self.late) <= 1:
            return early(x)  # type: ignore[no-any-return]
        with torch.no_grad(), evaluating(early):
            return early(x)  # type: ignore[no-any-return]

    def _late_features(self, maps: Tensor, task: int, filters: Sequence[Tensor]) -> Tensor:
        """Run the late stages of a task with the given filters: maps (B, channels, H, W) -> (B, D)."""
        state = dict(zip(self.filter_names, filters, strict=True))
        return functional_call(self.late[task], state, (maps,))  # type: ignore[no-any-return]
