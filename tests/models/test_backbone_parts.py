"""The two parts of a backbone: found in models of many kinds, and together they compute what the whole does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.backbone import Backbone
from pah.models.backbone_parts import CHAIN_SHARES, find_parts
from pah.models.backbones import BACKBONES
from pah.models.modes import evaluating

TINY = {"num_classes": 0}
TRANSFORMER: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, **TINY}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet": ("resnet10t", TINY),
    "RegNet": ("regnetx_002", TINY),
    "MobileNetV2": ("mobilenetv2_035", TINY),
    "MobileNetV3": ("mobilenetv3_small_050", TINY),
    "EfficientNet": ("tf_efficientnet_lite0", TINY),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), **TINY}),
    "ViT": ("vit_tiny_patch16_224", {"depth": 8, "num_heads": 3, **TRANSFORMER}),
    "DeiT": ("deit_tiny_distilled_patch16_224", {"depth": 8, "num_heads": 3, **TRANSFORMER}),
    "Mixer": ("MlpMixer", {"num_blocks": 4, **TRANSFORMER}),
    "Swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1), **TINY}),
    "PVT": ("pvt_v2_b0", {"depths": (1, 1, 2, 1), **TINY}),
    "DenseNet": ("densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2), **TINY}),
}
WITHOUT_CHAIN: dict[str, tuple[str, dict[str, Any]]] = {  # their blocks get more than one tensor
    "CaiT": ("cait_xxs24_224", {"depth": 4, "num_heads": 3, **TRANSFORMER}),
    "EVA": ("eva02_tiny_patch14_224", {"depth": 4, "num_heads": 3, **TRANSFORMER}),
}


def model(name: str, options: dict[str, Any]) -> nn.Module:
    pytest.importorskip("timm")
    from timm import models

    torch.manual_seed(0)
    body: nn.Module = getattr(models, name)(**options)
    return body


def images_for(options: dict[str, Any]) -> Tensor:
    size = options.get("img_size", 64)
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def share_of_layers(body: nn.Module, names: tuple[str, ...]) -> float:
    layers = [name for name, module in body.named_modules() if any(p.ndim > 1 for p in module.parameters(False))]
    return sum(any(f"{layer}.".startswith(f"{name}.") for name in names) for layer in layers) / len(layers)


@pytest.mark.parametrize("family", TIMM)
def test_the_parts_of_a_model_of_timm_compute_what_it_computes(family: str) -> None:
    name, options = TIMM[family]
    body, images = model(name, options), images_for(options)
    parts = find_parts(body, (3, *images.shape[2:]), name)
    assert parts.chain is not None
    assert CHAIN_SHARES[0] < share_of_layers(body, parts.trained) < CHAIN_SHARES[1] + 0.05
    with torch.no_grad(), evaluating(body):
        outputs = parts.first(body, images)
        assert outputs.shape == (3, parts.size)
        torch.testing.assert_close(parts.last(body, outputs), body(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", WITHOUT_CHAIN)
def test_a_model_whose_blocks_are_no_chain_has_parts_and_keeps_nothing(family: str) -> None:
    name, options = WITHOUT_CHAIN[family]
    body, images = model(name, options), images_for(options)
    backbone = Backbone(body, body.num_features)  # type: ignore[arg-type]
    backbone.freeze_first_part((3, *images.shape[2:]), name)
    assert backbone.parts is not None
    assert backbone.parts.chain is None
    assert backbone.kept_size is None
    assert 0.1 < share_of_layers(body, backbone.parts.trained) < 0.5
    backbone(images).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in backbone.trained_parameters())
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)


@pytest.mark.parametrize(("name", "layers"), [("convnet", 1), ("resnet18-slim", 5), ("resnet32", 8)])
def test_the_last_part_of_an_own_backbone_has_a_quarter_of_its_convolutions(name: str, layers: int) -> None:
    body = BACKBONES[name]().build(3).body
    parts = find_parts(body, (3, 32, 32), name)
    assert parts.chain == parts.trained
    convolutions = [m for part in parts.modules(body) for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == layers
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), evaluating(body):
        torch.testing.assert_close(parts.last(body, parts.first(body, images)), body(images))


class Changing(nn.Module):
    """A block that changes its input, and then adds it to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        y += x
        return y


class Reshaping(nn.Module):
    """A body that transposes its maps between its last two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        pooled: Tensor = self.pool(x.transpose(2, 3).tanh())
        return pooled.flatten(1)


def test_a_block_that_changes_its_input_does_not_change_what_is_kept() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(*(Changing() for _ in range(8)), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    parts, images = find_parts(body, (4, 8, 8), "body"), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        outputs = parts.first(body, images.clone())
        before = outputs.clone()
        torch.testing.assert_close(parts.last(body, outputs), body(images.clone()))
    assert torch.equal(before, outputs)


def test_a_body_that_does_more_than_its_blocks_keeps_nothing() -> None:
    assert find_parts(Reshaping(), (4, 8, 8), "body").chain is None


def test_a_body_without_blocks_is_refused() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="expected all or none for tiny, which has no sequence of blocks, got last"):
        find_parts(body, (3, 8, 8), "tiny")
