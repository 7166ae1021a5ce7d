"""The stream and the method of a configuration whose backbone starts from trained weights."""

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

from helpers import DIGITS
from pah.core.config import InputError
from pah.models.backbones import ConvNetOptions
from pah.training.config import RunConfig, build_method, load_stream


def config_of(path: Path, channels: int) -> RunConfig:
    """Return a run on digits whose backbone starts from weights for images of that many channels."""
    safetensors.torch.save_file(ConvNetOptions(width=4).build(channels).body.state_dict(), path)
    return RunConfig(backbone_options=ConvNetOptions(width=4, weights=str(path)))


def test_grey_images_become_colour_for_weights_that_were_trained_on_colour(tmp_path: Path) -> None:
    for channels, notes in ((1, ()), (3, ("grey images become colour images",))):
        config = config_of(tmp_path / "weights.safetensors", channels)
        stream = load_stream(config)
        assert stream.source is not None
        assert stream.source.notes == notes
        assert stream.image_shape == (channels, 8, 8)
        for y in range(channels):
            assert torch.equal(stream.source.train.pixels[:, y], DIGITS.train.pixels[:, 0])
        build_method(config, stream.image_shape)


def test_a_grey_network_cannot_take_colour_weights(tmp_path: Path) -> None:
    config = config_of(tmp_path / "weights.safetensors", 3)
    expected = r"backbone convnet: expected images of 3 channels \(colour\), .* trained, got 1 channel \(grey\)"
    with pytest.raises(InputError, match=expected):
        build_method(config, (1, 8, 8))
    build_method(config, (1, 8, 8), start_weights=False)  # saved weights are loaded afterwards
    missing = dataclasses.replace(config.backbone_options, weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match=r"none\.safetensors: expected a file of weights, found none"):
        build_method(dataclasses.replace(config, backbone_options=missing), (1, 8, 8))
