"""A learner's backbone and heads as an ONNX graph, which answers without pah and without torch.

B: images, C: channels, H x W: pixels.
"""

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.core.files import write_file
from pah.learner.learner import ContinualLearner
from pah.learner.predictor import Predictor
from pah.models.modes import evaluating
from pah.models.network import TaskNetwork, apply_rows

FORMAT = "1"  # of the metadata


class Graph(nn.Module):
    """Images (B, C, H, W) uint8 -> calibrated probabilities, (B, classes) for each task; its heads are constants."""

    def __init__(self, taught: Predictor, tasks: Sequence[int]) -> None:
        super().__init__()
        network = copy.deepcopy(taught.method.network).cpu()
        if isinstance(network, TaskNetwork):
            raise InputError(
                f"export: expected features that all tasks share, got the network of {taught.record.config.method}"
            )
        self.backbone = network.backbone
        self.sizes = network.sizes(tasks)
        self.flip = taught.record.config.training.flip_test
        statistics = taught.record.normalization
        self.register_buffer("mean", 255 * torch.tensor(statistics.mean)[:, None, None])
        self.register_buffer("scale", 1 / (255 * torch.tensor(statistics.std)[:, None, None]))
        with torch.no_grad():
            rows = network.heads.rows(tasks)
        temperatures = torch.tensor([taught.record.tasks[k].temperature for k in tasks])
        self.register_buffer("rows", rows / temperatures.repeat_interleave(torch.tensor(self.sizes))[:, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = (images.to(torch.float32) - self.get_buffer("mean")) * self.get_buffer("scale")
        features = self.backbone(x)
        if self.flip:  # a linear head answers the mean of features with the mean of logits
            features = (features + self.backbone(x.flip(3))) / 2
        logits = apply_rows(features, self.get_buffer("rows"))
        return tuple(z.softmax(dim=1) for z in logits.split(self.sizes, dim=1))


def export(learner: ContinualLearner, path: str | Path, task: str | None = None) -> None:
    """Write an ONNX graph of a task, or of all tasks, whole or not at all.

    Its input `images` is uint8 (N, C, H, W), any N; its outputs are `probabilities` (N, classes), or for all tasks
    `probabilities_0`, `probabilities_1`, … of one backbone pass. The metadata hold, as JSON, `tasks` (names and class
    names, in the order of the outputs) and `image_shape`.

    Args:
        learner: What was taught.
        path: The file.
        task: Whose head; every task's unless given.

    Raises:
        InputError: the extra `onnx` is missing, the task is unknown, or features depend on the task.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise InputError("export needs the extra: pip install 'pah[onnx]'") from None
    taught = learner.taught
    tasks = range(len(learner.tasks)) if task is None else [taught.index(task)]
    names = ["probabilities"] if task is not None else [f"probabilities_{k}" for k in tasks]
    graph = Graph(taught, tasks)
    example = torch.zeros(2, *taught.record.image_shape, dtype=torch.uint8)
    with evaluating(graph), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program where no file is named"
    model = program.model_proto
    described = [{"name": of.name, "classes": list(of.classes)} for of in (learner.tasks[k] for k in tasks)]
    metadata = {"pah_format": FORMAT, "tasks": described, "image_shape": list(taught.record.image_shape)}
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.checker.check_model(model)
    write_file(Path(path), model.SerializeToString())
