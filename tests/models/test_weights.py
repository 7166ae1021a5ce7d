"""Weights from files: what fits is loaded, anything else is refused with one line, and no code ever runs."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pah.core.config import InputError
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions
from pah.models.weights import read_weights, stem_channels


def convnet(width: int = 4, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return ConvNetOptions(width=width).build(3)


def load(path: Path, width: int = 4) -> Backbone:
    options = ConvNetOptions(width=width, weights=str(path))
    backbone = options.build(3)
    options.load_start_weights(backbone)
    return backbone


def test_the_channels_of_the_images_are_read_from_the_first_convolution(tmp_path: Path) -> None:
    path, body = tmp_path / "w.safetensors", convnet().body
    for channels, expected in ((1, 1), (3, 3), (4, None)):
        tensors = ConvNetOptions(width=4).build(channels).body.state_dict()
        safetensors.torch.save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, path)
        assert stem_channels(body, path) == ConvNetOptions(weights=str(path)).start_channels() == expected
    safetensors.torch.save_file({"other": torch.zeros(2)}, path)
    assert stem_channels(body, path) is None
    assert stem_channels(body, tmp_path / "none.safetensors") is None
    assert ConvNetOptions().start_channels() is None


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.body.", "model."])
def test_weights_load_under_the_usual_prefixes_and_without_a_classifier(tmp_path: Path, prefix: str) -> None:
    original = convnet()
    tensors = {prefix + name: tensor for name, tensor in original.body.state_dict().items()}
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({**tensors, prefix + "fc.weight": torch.zeros(5, 16)}, path)
    loaded = load(path)
    for name, tensor in original.body.state_dict().items():
        assert torch.equal(loaded.body.state_dict()[name], tensor)


def test_a_pth_file_with_a_state_dict_inside_a_checkpoint_loads(tmp_path: Path) -> None:
    original = convnet()
    torch.save({"epoch": 3, "state_dict": original.body.state_dict()}, tmp_path / "w.pth")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load(tmp_path / "w.pth").eval()(x), original.eval()(x))


def test_weights_of_another_width_are_refused_with_the_first_tensor_and_both_shapes(tmp_path: Path) -> None:
    torch.save(convnet(width=8).body.state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: .*0\.weight has the shape \[4, 3, 3, 3\], got \[8, 3, 3, 3\]$"):
        load(tmp_path / "w.pth")


def test_a_missing_and_an_unknown_tensor_are_refused(tmp_path: Path) -> None:
    state = convnet().body.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name != "3.weight"}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"whose 3\.weight has the shape \[8, 4, 3, 3\], got none$"):
        load(tmp_path / "w.pth")
    torch.save({**state, "more.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"whose more\.weight has the shape none, got \[2\]$"):
        load(tmp_path / "w.pth")


def test_tensors_of_other_parts_than_the_backbone_are_refused_unless_a_classifier_has_them(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in convnet().body.state_dict().items()}
    torch.save({**state, "last_linear.weight": torch.zeros(2, 16)}, tmp_path / "w.pth")
    assert load(tmp_path / "w.pth").features == 16
    torch.save({**state, "decoder.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"whose decoder\.weight has the shape none, got \[2\]$"):
        load(tmp_path / "w.pth")


class Payload:
    """An object whose unpickling would write a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("ran"),))


def test_objects_in_a_file_of_weights_are_named_and_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": convnet().body.state_dict(), "made": Payload()}, "w.pth")
    with pytest.raises(InputError, match=r"^w\.pth: .* got other content, which may be code \(\S+\); it was not run$"):
        read_weights(Path("w.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("cut", [0, 100, 3000])
def test_a_file_that_was_cut_off_is_called_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.pth"
    torch.save(convnet().body.state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"got a file that is damaged or of another kind$"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", pickle.dumps(Payload())])
def test_a_damaged_file_and_one_that_holds_code_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"^w\.\w+: expected .*, got.+$") as error:
            read_weights(Path(name))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_one_of_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file of weights, found none"):
        read_weights(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected tensors by name, got list"):
        read_weights(tmp_path / "w.pth")


def test_a_frozen_backbone_stays_in_inference_mode_and_passes_features_on() -> None:
    backbone = convnet()
    backbone.freeze()
    nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    features = torch.rand(3, backbone.features)
    assert backbone(features) is features


def test_images_of_another_size_are_scaled_to_the_input_size() -> None:
    backbone, x = convnet().eval(), torch.rand(2, 3, 10, 10)
    own = backbone(x)
    backbone.input_size = (20, 20)
    scaled = nn.functional.interpolate(x, (20, 20), mode="bilinear", align_corners=False)
    assert torch.equal(backbone(x), backbone.body(scaled))
    assert not torch.equal(backbone(x), own)
