"""The backbone of vectors passes them through and has nothing to train."""

import pytest
import torch

from data_sets import refused
from pah.methods.pah_options import PAHOptions
from pah.models.backbones import backbone_options
from pah.models.vector_backbone import FeaturesOptions
from pah.training.config import RunConfig, build_method


def test_vectors_are_the_features() -> None:
    backbone = FeaturesOptions().build_for(6, (1, 1))
    x = torch.randn(5, 6, 1, 1)
    assert backbone.features == 6
    assert torch.equal(backbone(x), x.flatten(1))
    assert torch.equal(backbone(x.flatten(1)), x.flatten(1))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 0
    assert not backbone.trained_parameters()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("train", "all", "backbone.train: expected none with features, which has no weights, got 'all'"),
        ("views", 2, "backbone.views: expected 1 with features, as vectors are not augmented, got 2"),
        ("weights", "x.pth", "backbone.weights: expected none with features"),
        ("input_size", 32, "backbone.input_size: expected none with features, as vectors have no size, got 32"),
    ],
)
def test_options_without_effect_are_refused(option: str, value: object, message: str) -> None:
    with refused(message):
        backbone_options("features", {option: value})
    with refused("backbone features: expected vectors, got images of 8x8"):
        FeaturesOptions().build_for(1, (8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 8}, "image_size: expected none with backbone features, got 8"),
        ({"augment": {"crop": 2}}, "augment.crop: expected 0 with backbone features, got 2"),
        ({"augment": {"flip": True}}, "augment.flip: expected false with backbone features, got True"),
        ({"training": {"flip_test": True}}, "training.flip_test: expected false with backbone features, got True"),
        ({"method": {"name": "pah", "prototype_size": 5}}, "method.prototype_size: expected its default 10"),
        ({"method": {"name": "pah", "prototype_channels": 1}}, "method.prototype_channels: expected its default 3"),
    ],
)
def test_options_of_images_are_refused(changes: dict[str, object], message: str) -> None:
    with refused(message):
        RunConfig.from_dict({"method": {"name": "pah"}, "backbone": {"name": "features"}, **changes})


@pytest.mark.parametrize("numbers", [1, 2, 3, 4, 40])
def test_prototypes_of_vectors_pass_through_the_backbone(numbers: int) -> None:
    config = RunConfig(backbone="features", backbone_options=FeaturesOptions(), method_options=PAHOptions())
    network = build_method(config, (numbers, 1, 1)).network
    network.grow(3)
    prototypes = network.heads.task_parameters()[0]
    assert network.backbone(prototypes).shape == (3, numbers)
    assert numbers < 4 or prototypes.shape == (3, numbers, 1, 1)
    assert network(torch.randn(5, numbers, 1, 1), [0]).shape == (5, 3)
