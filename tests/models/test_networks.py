"""Tests of backbones, batch-norm folding and module modes."""

import copy
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import nn

from helpers import changed_tensors, snapshot
from pah.core.config import InputError
from pah.models.backbone import Backbone
from pah.models.backbones import BACKBONES, SlimResNet18Options
from pah.models.batch_norm_folding import fold_batch_norm
from pah.models.layers import GlobalPool, StridedPointwise, to_channels_last
from pah.models.modes import evaluating, frozen
from pah.models.timm_backbones import TimmOptions


@pytest.mark.parametrize(
    ("name", "channels", "size", "features"),
    [
        ("convnet", 1, 8, 128),
        ("convnet", 3, 32, 128),
        ("resnet18", 3, 32, 512),
        ("resnet18", 3, 64, 512),
        ("resnet18-slim", 3, 32, 256),
        ("resnet32", 3, 32, 64),
    ],
)
def test_backbones_return_features_of_the_declared_size(name: str, channels: int, size: int, features: int) -> None:
    backbone = BACKBONES[name]().build(channels)
    assert backbone.features == features
    assert backbone(torch.randn(2, channels, size, size)).shape == (2, features)
    assert backbone.eval()(torch.randn(1, channels, 5, 5)).shape == (1, features)  # a small prototype


def test_published_sizes() -> None:
    """ResNet-32 has 0.46 M parameters (He et al. 2016, table 6), ResNet-18 for CIFAR without its head 11.17 M."""
    count = {name: sum(p.numel() for p in BACKBONES[name]().build(3).parameters()) for name in BACKBONES}
    assert count["resnet32"] == pytest.approx(0.46e6, rel=0.02)
    assert count["resnet18"] == pytest.approx(11.17e6, rel=0.001)


def test_slim_options_change_the_network() -> None:
    x = torch.randn(1, 3, 32, 32)
    narrow = SlimResNet18Options(width=8).build(3)
    assert narrow.features == 64
    stem = {stride: SlimResNet18Options(width=8, stem_stride=stride).build(3) for stride in (1, 2)}
    sizes = {stride: next(iter(net.body.children()))(x).shape[-1] for stride, net in stem.items()}
    assert sizes == {1: 32, 2: 16}


def test_timm_models_are_backbones() -> None:
    pytest.importorskip("timm")
    backbone = TimmOptions(model="resnet10t").build(1)
    assert backbone(torch.randn(2, 1, 32, 32)).shape == (2, backbone.features)


@pytest.mark.parametrize(
    ("name", "size", "features"), [("mobilenetv3_small_050", 32, 1024), ("ghostnet_050", 64, 1280)]
)
def test_a_timm_model_has_as_many_features_as_it_returns(name: str, size: int, features: int) -> None:
    pytest.importorskip("timm")
    backbone = TimmOptions(model=name).build_for(3, (size, size))
    assert backbone.features == features
    assert backbone.eval()(torch.randn(2, 3, size, size)).shape == (2, features)
    with torch.device("meta"):  # as a learner's file is checked
        assert TimmOptions(model=name).build_for(3, (size, size)).features == features


def test_a_timm_model_that_allows_no_other_pooling_uses_its_own_and_refuses_other_sizes() -> None:
    pytest.importorskip("timm")
    assert TimmOptions(model="pit_ti_224").build_for(3, (224, 224)).features == 256
    with pytest.raises(InputError, match=r"timm:pit_ti_224: expected one that takes images of 64x64") as caught:
        TimmOptions(model="pit_ti_224").build_for(3, (64, 64))
    assert "\n" not in str(caught.value)


def test_counting_features_changes_neither_the_model_nor_the_random_numbers() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    expected = timm.create_model("resnet10t", num_classes=0, in_chans=3, global_pool="avg")
    following = torch.rand(3)
    torch.manual_seed(0)
    backbone = TimmOptions(model="resnet10t").build_for(3, (64, 64))
    assert torch.equal(torch.rand(3), following)
    weights = expected.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.body.state_dict().items())
    assert all(part.training for part in backbone.modules())


def randomize_batch_norm(backbone: Backbone) -> Backbone:
    """Give the batch norms of a backbone random statistics and weights, and return it."""
    for norm in (part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
    return backbone


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_folded_backbone_returns_the_same_features_without_batch_norm(name: str) -> None:
    backbone, x = randomize_batch_norm(BACKBONES[name]().build(3)), torch.randn(4, 3, 16, 16)
    before = snapshot(backbone)
    folded = fold_batch_norm(backbone)
    if name != "efficientnet-lite0":  # only the order of this project's own layers is known
        assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert not any(part.requires_grad for part in folded.parameters())
    torch.testing.assert_close(folded(x), backbone.eval()(x), rtol=1e-4, atol=1e-5)
    assert changed_tensors(backbone, before) == set()


def test_folding_keeps_a_backbone_whose_layer_order_is_unknown() -> None:
    pytest.importorskip("timm")
    backbone, x = randomize_batch_norm(TimmOptions(model="resnet10t").build(3)), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fold_batch_norm(backbone)(x), backbone.eval()(x), rtol=1e-4, atol=1e-5)


def test_folding_keeps_layers_that_compute_more_than_a_convolution_or_a_batch_norm() -> None:
    layers = pytest.importorskip("timm.layers")
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        layers.BatchNormAct2d(4),
        layers.StdConv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 6, 1),
        nn.BatchNorm2d(6),
    )
    backbone, x = randomize_batch_norm(Backbone(nn.Sequential(body, GlobalPool()), 6)), torch.randn(2, 3, 9, 9)
    folded = fold_batch_norm(backbone)
    torch.testing.assert_close(folded(x), backbone.eval()(x), rtol=1e-4, atol=1e-5)
    first, *_, last = next(folded.body.children()).children()
    assert isinstance(first, nn.Conv2d)
    assert first.bias is None
    assert isinstance(last, nn.Identity)


class CachedScale(nn.Module):
    """A layer that keeps what it made of its weight in eval mode, as attention with learned biases does in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.cache: torch.Tensor | None = None

    def train(self, mode: bool = True) -> "CachedScale":
        self.cache = None
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return x * (2 * self.weight)
        self.cache = 2 * self.weight if self.cache is None else self.cache
        return x * self.cache


def test_evaluating_uses_no_tensors_that_were_made_of_earlier_weights() -> None:
    layer, x = CachedScale(), torch.ones(1, 1, 2, 2)
    backbone = Backbone(layer, 1)
    for value in (1.0, 3.0):
        nn.init.constant_(layer.weight, value)
        with evaluating(backbone):
            assert torch.equal(backbone(x), 2 * value * x)
        assert all(part.training for part in backbone.modules())
        copy.deepcopy(backbone)  # a kept tensor with a graph could not be copied


def test_weights_of_more_axes_than_an_image_keep_their_layout() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3))
    to_channels_last(module)
    assert [p.is_contiguous() for p in module.parameters() if p.ndim > 1] == [False, True]


def test_weights_that_are_not_available_give_one_line_immediately(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr("pah.models.timm_backbones.hub_is_reachable", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    options = TimmOptions(pretrained=True, model="resnet10t")
    backbone = options.build(3)
    with pytest.raises(InputError, match=r"none in the cache, and no network; --backbone\.pretrained false needs none"):
        options.load_start_weights(backbone)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_weights_from_another_place_than_the_hub_are_not_downloaded_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("pah.models.timm_backbones.hub_is_reachable", lambda: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: pytest.fail("a download would begin"))
    with pytest.raises(InputError, match="none in the cache, and no network"):
        TimmOptions(pretrained=True, model="legacy_seresnet18").load_start_weights(Backbone(nn.Linear(3, 3), 3))


def module_in_mixed_modes() -> nn.Sequential:
    """Return a module whose submodules are in different modes, like a method in training with a frozen teacher."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    net.train()
    net[1].eval()
    return net


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_evaluating_changes_nothing_and_restores_each_mode(statistics: str) -> None:
    net = module_in_mixed_modes()
    before = snapshot(net)
    modes = [part.training for part in net.modules()]
    with evaluating(net, statistics=statistics):  # type: ignore[arg-type]
        x = torch.randn(8, 1, 6, 6)
        assert torch.equal(net(x), net(x))  # no dropout
    assert not changed_tensors(net, before)
    assert [part.training for part in net.modules()] == modes


def test_evaluating_restores_after_an_error() -> None:
    net = module_in_mixed_modes()
    before = snapshot(net)
    modes = [part.training for part in net.modules()]
    with pytest.raises(RuntimeError), evaluating(net, statistics="batch"):
        net(torch.randn(1))
    assert not changed_tensors(net, before)
    assert [part.training for part in net.modules()] == modes


def test_batch_statistics_are_those_of_the_batch() -> None:
    norm = nn.BatchNorm2d(3)
    x = 5 + 2 * torch.randn(16, 3, 4, 4)
    with evaluating(norm, statistics="batch"):
        out = norm(x)
    assert out.mean().item() == pytest.approx(0, abs=1e-5)
    assert out.std().item() == pytest.approx(1, abs=1e-2)


def test_gradients_flow_through_frozen_weights_which_get_none() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    with frozen(layer):
        out = layer(x).sum()
    out.backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad  # it did not require a gradient before


@pytest.mark.parametrize(("inputs", "groups", "size"), [(2, 1, 8), (3, 1, 56), (8, 1, 64), (15, 1, 7), (24, 2, 16)])
def test_a_strided_pointwise_convolution_of_few_channels_has_the_right_gradients(
    inputs: int, groups: int, size: int
) -> None:
    """For these, the kernel of torch 2.14.1 corrupts memory (channels last)."""
    torch.manual_seed(0)
    exact = nn.Conv2d(inputs, 2 * inputs, 1, 2, bias=False, groups=groups).double()
    body = nn.Sequential(nn.Conv2d(inputs, 2 * inputs, 1, 2, bias=False, groups=groups)).to(
        memory_format=torch.channels_last
    )
    body[0].load_state_dict(exact.state_dict())
    layer = Backbone(body, 2 * inputs).body
    assert isinstance(layer, nn.Sequential)
    assert type(layer[0]) is StridedPointwise
    x = torch.randn(4, inputs, size, size)
    for _ in range(3):
        x_channels_last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        x_exact = x.double().requires_grad_()
        expected, actual = exact(x_exact), layer(x_channels_last)
        torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-4)
        expected.square().sum().backward()
        actual.square().sum().backward()
        assert x_channels_last.grad is not None
        torch.testing.assert_close(x_channels_last.grad.double(), x_exact.grad, atol=1e-4, rtol=1e-4)
    gradient = next(layer.parameters()).grad
    assert gradient is not None
    torch.testing.assert_close(gradient.double(), exact.weight.grad, atol=1e-3, rtol=1e-3)


def test_wide_strided_convolutions_are_not_replaced() -> None:
    narrow, wide = (SlimResNet18Options(width=width).build(3) for width in (8, 16))
    kinds = [[type(part) for part in backbone.modules() if isinstance(part, nn.Conv2d)] for backbone in (narrow, wide)]
    assert kinds[0].count(StridedPointwise) == 1
    assert set(kinds[1]) == {nn.Conv2d}
