"""Export of a learner's backbone and heads as an ONNX graph, which runs without pah and without torch.

B: images, C: channels, H x W: pixels.
"""

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.core.files import write_file
from pah.learner.learner import ContinualLearner
from pah.learner.predictor import Predictor
from pah.models.modes import evaluating
from pah.models.network import TaskNetwork, apply_heads

FORMAT = "1"  # version of the metadata


class ExportGraph(nn.Module):
    """A network that maps images or vectors to calibrated probabilities; its heads are constants.

    Its input is uint8 (B, C, H, W), or float32 (B, D) for vectors, its output one (B, classes) tensor for each task.
    """

    def __init__(self, predictor: Predictor, tasks: Sequence[int]) -> None:
        super().__init__()
        network = copy.deepcopy(predictor.method.network).cpu()
        if isinstance(network, TaskNetwork):
            raise InputError(
                f"export: expected features that all tasks share, got the network of {predictor.record.config.method}"
            )
        self.backbone = network.backbone
        self.sizes = network.sizes(tasks)
        self.flip = predictor.record.config.training.flip_test
        normalization = predictor.record.normalization
        unit = 255 if predictor.record.numbers is None else 1
        self.register_buffer("mean", unit * torch.tensor(normalization.mean)[:, None, None])
        self.register_buffer("scale", 1 / (unit * torch.tensor(normalization.std)[:, None, None]))
        with torch.no_grad():
            rows = network.heads.rows(tasks)
        temperatures = torch.tensor([predictor.record.tasks[k].temperature for k in tasks])
        self.register_buffer("rows", rows / temperatures.repeat_interleave(torch.tensor(self.sizes))[:, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.ndim == 2:  # vectors
            images = images[:, :, None, None]
        x = (images.to(torch.float32) - self.get_buffer("mean")) * self.get_buffer("scale")
        features = self.backbone(x)
        if self.flip:  # heads are linear, so the mean of features gives the mean of logits
            features = (features + self.backbone(x.flip(3))) / 2
        logits = apply_heads(features, self.get_buffer("rows"))
        return tuple(z.softmax(dim=1) for z in logits.split(self.sizes, dim=1))


def export(learner: ContinualLearner, path: str | Path, task: str | None = None) -> None:
    """Write an ONNX graph of one task or of all tasks. The file is complete or not written at all.

    The input `images` is uint8 (N, C, H, W) with any N; for vectors it is `vectors`, float32 (N, D). The output of one
    task is `probabilities` (N, classes). The outputs of all tasks are `probabilities_0`, `probabilities_1`, …, from a
    single backbone pass. The metadata hold, as JSON, `tasks` (task names and class names, in the order of the outputs),
    `image_shape` and `resizing`, or for vectors `numbers`, which is D.

    The graph normalises the pixels, and scales them if the backbone does. Its caller decodes and resizes images to
    `image_shape` as `resizing` says: `interpolation`, and `crop_share`, the share of the shorter side that is kept.
    Resizing is not in the graph: images of one batch have one size, and only Pillow's filters give the same pixels.

    Args:
        learner: The learner.
        path: The file to write.
        task: Name of the task; all tasks if None.

    Raises:
        InputError: the extra `onnx` is missing, the task is unknown, or features depend on the task.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise InputError("export needs the extra: in a clone of pah, run pip install -e '.[onnx]'") from None
    predictor = learner.predictor
    tasks = range(len(learner.tasks)) if task is None else [predictor.index(task)]
    names = ["probabilities"] if task is not None else [f"probabilities_{k}" for k in tasks]
    graph = ExportGraph(predictor, tasks)
    numbers = predictor.record.numbers
    example = (
        torch.zeros(2, *predictor.record.image_shape, dtype=torch.uint8) if numbers is None else torch.zeros(2, numbers)
    )
    with evaluating(graph), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns its own developers
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["images" if numbers is None else "vectors"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program if it gets no file name"
    model = program.model_proto
    metadata = {
        "pah_format": FORMAT,
        "tasks": [{"name": learner.tasks[k].name, "classes": list(learner.tasks[k].classes)} for k in tasks],
        **(
            {"image_shape": list(predictor.record.image_shape), "resizing": asdict(predictor.record.resizing)}
            if numbers is None
            else {"numbers": numbers}
        ),
    }
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.checker.check_model(model)
    write_file(Path(path), model.SerializeToString())
