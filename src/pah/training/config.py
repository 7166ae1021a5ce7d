"""The configuration of a run, and what is built from it: the stream of tasks and the untrained method."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pah.core.config import InputError, derived_seed, require, require_types, unknown_name_error
from pah.data.augment import AugmentOptions
from pah.data.benchmarks import find_benchmark
from pah.data.lesson import with_channels
from pah.data.read_options import ReadOptions
from pah.data.sources import Source
from pah.data.stream import Stream, make_stream
from pah.data.stream_options import StreamOptions
from pah.methods import METHODS
from pah.methods.base import Method, MethodOptions, OptimizerOptions
from pah.methods.pah_options import PAHOptions
from pah.models.backbone import Backbone, BackboneOptions
from pah.models.backbones import ConvNetOptions, backbone_options
from pah.models.layers import to_channels_last
from pah.models.network import GeneratedHeads, Network
from pah.training.options import TrainingOptions
from pah.training.single_pixels import halves_single_pixel
from pah.training.vector_options import refuse_image_options, require_kind

MAX_PIXELS = 2**20  # in an image that a network accepts: 1024x1024
PRETRAINED_LR_FACTOR = 0.1  # of the learning rate of a backbone that starts from pretrained weights
OPTION_GROUPS = {  # the groups of options that every run has
    "stream": StreamOptions,
    "augment": AugmentOptions,
    "optimizer": OptimizerOptions,
    "training": TrainingOptions,
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; two runs of equal configuration are the same run.

    Args:
        benchmark: Name of the data set and its split, one of `pah.data.benchmarks.BENCHMARKS`.
        data: Folder or hub id of the images; the benchmark's own source if None.
        label_column: Name of the column with the labels, for data in which it cannot be inferred.
        test_split: Name of the split with the test images, as in `pah.data.read_options.ReadOptions`.
        skip_unreadable: Whether to leave out images that cannot be read.
        follow_links: Whether to read images to which a link leads out of the data set's folder.
        max_megapixels: Largest number of pixels of one image, in millions.
        image_size: Pixels a side to which every image is resized, 1 to 1024; images keep their size if None. It is None
            for vectors.
        column: Name of the column with the vectors, for data in tables.
        seed: Decides class order, initial weights, batches and augmentation; 0 to 2^63 - 1.
        snapshots: Whether to save the network after each task.
        method: Name of the method, one of `pah.methods.METHODS`.
        method_options: Options of the method, of the class that `METHODS` names for it.
        backbone: Name of the backbone, one of `pah.models.backbones.BACKBONES` or `timm:<name>`.
        backbone_options: Options of the backbone, of the class that `BACKBONES` names for it.
        stream: How the data set is split into tasks.
        augment: How training images are augmented.
        optimizer: Which optimizer every method uses.
        training: How long to train, and on which images to evaluate.

    Raises:
        InputError: a seed, a size or a combination is out of range.
    """

    benchmark: str = "split-digits"
    data: str | None = None
    label_column: str | None = None
    test_split: str | None = None
    skip_unreadable: bool = False
    follow_links: bool = False
    max_megapixels: int = 50
    column: str | None = None
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
        _ = self.read_options  # refuses values that are out of range
        require(self.image_size is None or 1 <= self.image_size <= 1024, "image_size", "1 to 1024", self.image_size)
        has_evaluation_images = self.training.evaluate_on == "test" or self.stream.validation > 0
        require(
            has_evaluation_images,
            "training.evaluate_on validation",
            "stream.validation above 0",
            self.stream.validation,
        )
        for option in ("patience", "keep_best"):
            value = getattr(self.training, option)
            usable = not value or self.stream.validation > 0
            require(usable, f"training.{option}", "0 or false, or a stream.validation above 0", value)
        without_effect = self.backbone_options.train != "all" and self.training.test_batch_norm == "batch"
        require(not without_effect, "training.test_batch_norm", "running with a frozen backbone", "batch")
        if self.takes_vectors:
            refuse_image_options(self.image_size, self.augment, self.training.flip_test, self.method_options)

    @property
    def takes_vectors(self) -> bool:
        """Whether the data are vectors and not images."""
        return self.backbone_options.takes_vectors

    @property
    def read_options(self) -> ReadOptions:
        """How the data set is read."""
        names = (option.name for option in fields(ReadOptions))
        return ReadOptions(**{name: getattr(self, name) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as `config.yaml` stores it."""
        values = asdict(self)
        for key in ("method", "backbone"):
            values[key] = {"name": values[key], **values.pop(f"{key}_options")}
        values["backbone"].pop("model", None)  # it is part of the name, timm:<model>
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]  # tuples become lists

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration that `as_dict` describes; missing options have their defaults.

        Raises:
            InputError: the method, the backbone or an option is unknown, or an option is out of range.
        """
        given: dict[str, Any] = {
            key: _with_tuples(value) if isinstance(value, Mapping) else value for key, value in values.items()
        }
        method, backbone = given["method"].pop("name"), given["backbone"].pop("name")
        if method not in METHODS:
            raise unknown_name_error("method", method, METHODS)
        try:
            groups: dict[str, Any] = {
                "method_options": METHODS[method].options(**given["method"]),
                "backbone_options": backbone_options(backbone, given["backbone"]),
                **{group: options(**given.get(group, {})) for group, options in OPTION_GROUPS.items()},
            }
            for options in groups.values():
                require_types(options)
            return cls(**{**given, **groups, "method": method, "backbone": backbone})
        except TypeError as error:
            raise InputError(f"configuration: expected options of this pah, got: {error}") from None

    def completed(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return a stored configuration of this method and backbone with defaults for the options that it lacks.

        A configuration that an older version wrote may lack options that were added later.
        """
        defaults = RunConfig(
            method=self.method,
            method_options=type(self.method_options)(),
            backbone=self.backbone,
            backbone_options=type(self.backbone_options)(),
        ).as_dict()
        complete = defaults | dict(written)
        groups = (key for key in defaults if isinstance(defaults[key], dict) and isinstance(complete[key], dict))
        return complete | {key: defaults[key] | complete[key] for key in groups}

    @property
    def fingerprint(self) -> str:
        """A short hash of what decides the training: without the place of the data, and without `stream.first`.

        The data are compared by their own fingerprint, and a run on the first tasks may go on to more of them.
        """
        return fingerprint_of(self.as_dict())

    @property
    def folder(self) -> Path:
        """The default folder of the run."""
        return Path("runs") / f"{self.benchmark}-{self.method}-{self.seed}"


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """Return the fingerprint of a configuration as `RunConfig.as_dict` returns it or `config.yaml` holds it."""
    kept = {key: value for key, value in values.items() if key != "data"}
    if isinstance(kept.get("stream"), Mapping):
        kept["stream"] = {key: value for key, value in kept["stream"].items() if key != "first"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with tuples in place of lists: JSON and YAML have lists where the dataclasses have tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def load_stream(config: RunConfig) -> Stream:
    """Return the run's stream of tasks.

    Raises:
        InputError: the data cannot be read, or cannot be split as asked.
    """
    source = find_benchmark(config.benchmark).load_source(
        config.data,
        config.image_size,
        config.read_options,
        config.backbone_options.resizing,
        only_vectors=config.takes_vectors,
    )
    require_kind(config.backbone, config.backbone_options, source)
    return stream_of(config, source)


def stream_of(config: RunConfig, source: Source) -> Stream:
    """Return a data set as the run's stream of tasks; InputError if it cannot be split as asked.

    Its images get the channels for which the start weights of the backbone were trained.
    """
    if (channels := config.backbone_options.start_channels()) is not None:
        source = with_channels(source, channels)
    order = config.stream.class_order
    classes = config.stream.classes or len(order if isinstance(order, tuple) else source.class_names)
    tasks = config.stream.tasks or find_benchmark(config.benchmark).tasks or max(1, min(5, classes // 2))
    normalization = config.backbone_options.normalization(source.train.pixels.shape[1])
    stream = make_stream(source, config.stream, tasks, config.seed, normalization=normalization)
    if config.training.evaluate_on == "test" and not any(len(task.test) for task in stream.tasks):
        raise InputError(f"{source.origin}: expected test images, got none in any class")
    config.method_options.check_stream([len(task.class_names) for task in stream.tasks])
    return stream


def build_method(config: RunConfig, image_shape: tuple[int, int, int], start_weights: bool = True) -> Method:
    """Return the untrained method on its network; the initial weights depend on the seed and on `weights` alone.

    Args:
        config: The run's configuration.
        image_shape: Channels, height and width of the images.
        start_weights: Whether to load the pretrained weights that the configuration names. It is not needed if saved
            weights are loaded afterwards.

    Raises:
        InputError: the backbone or its weights cannot be had, or it does not accept images or prototypes of this size.
    """
    channels, *size = image_shape
    require(math.prod(size) <= MAX_PIXELS, "images", f"at most {MAX_PIXELS} pixels each", "x".join(map(str, size)))
    torch.manual_seed(derived_seed(config.seed, "network"))
    build_backbone = partial(_build_backbone, config, image_shape, start_weights)
    network = config.method_options.build_network(build_backbone, image_shape)
    backbone, heads = network.backbone, network.heads
    shares_features = type(network) is Network
    expected = "all, or a method whose tasks share the features"
    require(config.backbone_options.train == "all" or shares_features, "backbone.train", expected, config.method)
    sizes = {"images": tuple(size)}
    if isinstance(heads, GeneratedHeads):
        sizes["prototypes"] = (heads.prototypes.size, heads.prototypes.size)
    for kind, (height, width) in sizes.items():
        try:
            single_pixel = halves_single_pixel(backbone, channels, height, width)
        except Exception as error:  # models of other libraries raise many types of exceptions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"backbone {config.backbone}: expected one that takes {kind} of {height}x{width}, got: {reason}"
            ) from None
        # torch 2.14.1 on CPUs: two entries of such a convolution's weight gradient are never written
        if single_pixel and kind == "images" and config.training.precision == "bf16":
            raise InputError(
                f"precision: expected fp32 for {config.backbone} on images of {height}x{width}, which halves maps of a "
                "single pixel, got bf16; larger images or --training.precision fp32 help"
            )
    method = METHODS[config.method].method(network, config.optimizer, config.method_options)
    to_channels_last(method)
    return method


def _build_backbone(config: RunConfig, image_shape: tuple[int, int, int], start_weights: bool) -> Backbone:
    """Return the backbone with its start weights, its input size, and frozen if the configuration says so."""
    options, (channels, height, width) = config.backbone_options, image_shape
    side = options.input_size or config.image_size or options.own_input_size
    if options.has_fixed_input_size and side != options.own_input_size:
        raise InputError(
            f"{'image_size' if options.input_size is None else 'backbone.input_size'}: expected "
            f"{options.own_input_size}, the only size that {config.backbone} takes, got {side}"
        )
    expected = options.start_channels() if start_weights else None
    if expected not in (None, channels):
        kinds = {1: "1 channel (grey)", 3: "3 channels (colour)"}
        raise InputError(
            f"backbone {config.backbone}: expected images of {kinds[expected]}, with which its weights were trained, "
            f"got {kinds.get(channels, f'{channels} channels')}"
        )
    input_size = (height, width) if side is None else (side, side)
    backbone = options.build_for(channels, input_size)
    if options.scales_prototypes:
        backbone.input_size, backbone.interpolation = input_size, options.interpolation
    if start_weights:
        options.load_start_weights(backbone)
    if options.is_pretrained:
        backbone.lr_factor = PRETRAINED_LR_FACTOR
    if options.train == "none":
        backbone.freeze()
    elif options.train == "last" and not next(backbone.parameters()).is_meta:  # shapes alone have no parts
        backbone.freeze_first_part((channels, *input_size), config.backbone)
    return backbone
