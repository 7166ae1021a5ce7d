"""What a run computes: its configuration, and from it the stream of tasks and the untrained method."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pah.core.config import InputError, derived_seed, require, require_types, unknown
from pah.data.augment import AugmentOptions
from pah.data.benchmarks import benchmark
from pah.data.stream import Stream, StreamOptions, make_stream
from pah.methods import METHODS
from pah.methods.base import Method, MethodOptions, OptimizerOptions
from pah.methods.pah import PAHOptions
from pah.models.backbones import Backbone, BackboneOptions, ConvNetOptions, backbone_options
from pah.models.modes import evaluating
from pah.models.network import GeneratedHeads
from pah.training.options import TrainingOptions

MAX_PIXELS = 2**20  # of an image that a network takes: 1024x1024
LARGE = 2**14  # pixels of an image that is tried out in shapes alone: 128x128
GROUPS = {  # of options that every run has
    "stream": StreamOptions,
    "augment": AugmentOptions,
    "optimizer": OptimizerOptions,
    "training": TrainingOptions,
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; two runs of equal configuration are the same run.

    Args:
        benchmark: Which data set and split, one of `pah.data.benchmarks.BENCHMARKS`.
        data: Where its images are: a folder or a hub id; the benchmark's own place unless given.
        label_column: Of the labels, where it is not plain.
        image_size: Pixels a side to which every image is resized; left as they are unless given.
        seed: Decides class order, first weights, batches and augmentation.
        snapshots: Whether the network is kept after each task.
        method: Which method, one of `pah.methods.METHODS`.
        method_options: Its options, of the class that `METHODS` has for it.
        backbone: Which backbone, one of `pah.models.backbones.BACKBONES` or `timm:<name>`.
        backbone_options: Its options, of the class that `BACKBONES` has for it.
        stream: How the data set becomes tasks.
        augment: What may be changed of a training image.
        optimizer: By which every method learns.
        training: How long, and on what it is measured.

    Raises:
        InputError: a seed, a size or a combination that is out of range.
    """

    benchmark: str = "split-digits"
    data: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    seed: int = 0
    snapshots: bool = False
    method: str = "pah"
    method_options: MethodOptions = field(default_factory=PAHOptions)
    backbone: str = "convnet"
    backbone_options: BackboneOptions = field(default_factory=ConvNetOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1", self.seed)
        require(self.image_size is None or 1 <= self.image_size <= 1024, "image_size", "1 to 1024", self.image_size)
        held_out = self.training.evaluate_on == "test" or self.stream.validation > 0
        require(held_out, "training.evaluate_on validation", "stream.validation above 0", self.stream.validation)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as `config.yaml` writes it."""
        plain = asdict(self)
        for key in ("method", "backbone"):
            plain[key] = {"name": plain[key], **plain.pop(f"{key}_options")}
        plain["backbone"].pop("model", None)  # part of the name, timm:<model>
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]  # tuples become lists

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "RunConfig":
        """The configuration that `as_dict` describes; what it does not say has its default.

        Raises:
            InputError: a method or backbone that there is not, an option that it does not have, or one out of range.
        """
        said: dict[str, Any] = {
            key: _options(value) if isinstance(value, Mapping) else value for key, value in plain.items()
        }
        method, backbone = said["method"].pop("name"), said["backbone"].pop("name")
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        try:
            made: dict[str, Any] = {
                "method_options": METHODS[method].options(**said["method"]),
                "backbone_options": backbone_options(backbone, said["backbone"]),
                **{group: options(**said.get(group, {})) for group, options in GROUPS.items()},
            }
            for options in made.values():
                require_types(options)
            return cls(**{**said, **made, "method": method, "backbone": backbone})
        except TypeError as error:
            raise InputError(f"configuration: expected options of this pah, got: {error}") from None

    def completed(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration of this method and backbone as it was `written`, perhaps before some options came to be:
        what it does not say has its default."""
        plain = RunConfig(
            method=self.method,
            method_options=type(self.method_options)(),
            backbone=self.backbone,
            backbone_options=type(self.backbone_options)(),
        )
        defaults = plain.as_dict()
        whole = defaults | dict(written)
        groups = (key for key in defaults if isinstance(defaults[key], dict) and isinstance(whole[key], dict))
        return whole | {key: defaults[key] | whole[key] for key in groups}

    @property
    def fingerprint(self) -> str:
        """A short hash of the configuration."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the run goes unless told otherwise."""
        return Path("runs") / f"{self.benchmark}-{self.method}-{self.seed}"


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the dataclasses hold them: JSON and YAML have lists where these have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def load_stream(config: RunConfig) -> Stream:
    """The run's stream of tasks.

    Raises:
        InputError: the data or the split is not possible.
    """
    bench = benchmark(config.benchmark)
    source = bench.source(config.data, config.label_column, config.image_size)
    classes = config.stream.classes or len(source.class_names)
    tasks = config.stream.tasks or bench.tasks or max(1, min(5, classes // 2))
    stream = make_stream(source, config.stream, tasks, config.seed)
    config.method_options.check_stream([len(task.class_names) for task in stream.tasks])
    return stream


def build_method(config: RunConfig, image_shape: tuple[int, int, int]) -> Method:
    """The untrained method on its network, for images of (channels, height, width); weights depend on the seed alone.

    Raises:
        InputError: the backbone cannot be made, or cannot take images or prototypes of this size.
    """
    channels, *size = image_shape
    require(math.prod(size) <= MAX_PIXELS, "images", f"at most {MAX_PIXELS} pixels each", "x".join(map(str, size)))
    torch.manual_seed(derived_seed(config.seed, "network"))
    network = config.method_options.build_network(partial(config.backbone_options.build, channels), image_shape)
    backbone, heads = network.backbone, network.heads
    sizes = {"images": tuple(size)}
    if isinstance(heads, GeneratedHeads):
        sizes["prototypes"] = (heads.prototypes.size, heads.prototypes.size)
    for what, (height, width) in sizes.items():
        try:
            single = _try_image(backbone, channels, height, width)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"backbone {config.backbone}: expected one that takes {what} of {height}x{width}, got: {reason}"
            ) from None
        # torch 2.14.1 on processors: two places of such a convolution's weight gradient are never written
        if single and what == "images" and config.training.precision == "bf16":
            raise InputError(
                f"precision: expected fp32 for {config.backbone} on images of {height}x{width}, which halves maps of a "
                "single pixel, got bf16; larger images or --training.precision fp32 help"
            )
    method = METHODS[config.method].method(network, config.optimizer, config.method_options)
    return method.to(memory_format=torch.channels_last)


def _try_image(backbone: Backbone, channels: int, height: int, width: int) -> bool:
    """Whether an image of this size becomes a map of one pixel that a convolution of stride 2 takes.

    Raises what the backbone raises for it; of a backbone that is shapes alone nothing is known.
    """
    weights = dict((*backbone.named_parameters(), *backbone.named_buffers()))
    if any(tensor.is_meta for tensor in weights.values()):
        return False
    where = torch.device("cpu")
    if height * width > LARGE:  # shapes alone: a check must not need the memory of a run; torch imports a second for it
        where = torch.device("meta")
        weights = {name: tensor.to(where) for name, tensor in weights.items()}
    single: list[bool] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        single.append(given[0].shape[2:] == (1, 1))

    halving = [part for part in backbone.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    hooks = [part.register_forward_pre_hook(note) for part in halving if part.kernel_size != (1, 1)]
    try:
        with torch.no_grad(), evaluating(backbone):
            functional_call(backbone, weights, torch.zeros(1, channels, height, width, device=where))
    finally:
        for hook in hooks:
            hook.remove()
    return any(single)
