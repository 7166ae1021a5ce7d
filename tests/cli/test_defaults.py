"""A new learner has the same options from the command, from Python and from the page."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pah import ContinualLearner, InputError
from pah.app.lesson import Request, new_learner_config
from pah.cli.parser import config_of, parse
from pah.learner import defaults as new_learner
from pah.learner.defaults import DEFAULT_SIZE, IMAGE_SIZE, defaults, start_note
from pah.training.config import RunConfig


def by_command(*words: str) -> dict[str, Any]:
    """Return the options of a new learner of `pah learn`; its benchmark has no meaning, so it is set to "split"."""
    return {**config_of(parse([*words], "learn")).as_dict(), "benchmark": "split"}


def by_page(size: int) -> dict[str, Any]:
    return new_learner_config(Request(learner="x", folder="x", name="x", images="x", image_size=size)).as_dict()


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_command_python_and_page_agree_at_every_size(size: int) -> None:
    expected = defaults(size).as_dict()
    assert by_command(f"--image_size={size}") == expected
    assert by_page(size) == expected
    assert ContinualLearner(image_size=size).config.as_dict() == expected
    from_scratch = "convnet" if size < 32 else "resnet18-slim"
    assert expected["backbone"]["name"] == ("efficientnet-lite0" if size >= 64 else from_scratch)


def test_without_any_option_they_agree_too() -> None:
    expected = defaults().as_dict()
    assert by_command() == expected
    assert ContinualLearner().config.as_dict() == expected
    assert by_page(DEFAULT_SIZE) == expected
    assert expected["backbone"]["name"] == "efficientnet-lite0"
    assert expected["backbone"]["train"] == "none"
    assert expected["image_size"] == 224
    assert expected["method"]["prototype_start"] == "random", "semantic prototypes would show training images"


def test_without_the_extra_a_new_learner_starts_from_scratch_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert start_note(defaults()) == ("starts from pretrained weights: efficientnet-lite0, frozen, images of 224x224")
    monkeypatch.setattr(new_learner, "pretrained_is_installed", lambda: False)
    config = defaults()
    assert (config.backbone, config.image_size) == ("resnet18-slim", 64)
    assert by_command() == config.as_dict()
    assert "starts from scratch: resnet18-slim" in start_note(config)
    assert "extra `pretrained`" in start_note(config)


def test_an_option_that_only_small_backbones_have_chooses_one() -> None:
    assert by_command("--backbone.width=16")["backbone"]["name"] == "resnet18-slim"
    assert by_command("--backbone.train=last")["backbone"]["name"] == "efficientnet-lite0"


def test_a_yaml_with_only_the_epochs_changes_only_the_epochs(tmp_path: Path) -> None:
    path = tmp_path / "epochs.yaml"
    path.write_text(yaml.safe_dump({"training": {"epochs": 3}}))
    expected = defaults().as_dict()
    expected["training"]["epochs"] = 3
    assert by_command(f"--config={path}") == expected


def test_another_method_or_backbone_has_its_own_defaults() -> None:
    options = by_command("--method.name=lwf", "--backbone.name=convnet")
    own = RunConfig.from_dict({"method": {"name": "lwf"}, "backbone": {"name": "convnet"}}).as_dict()
    assert options["method"] == own["method"]
    assert options["backbone"] == own["backbone"]
    assert options["training"] == defaults().as_dict()["training"]


def test_images_have_the_size_for_which_the_backbone_was_trained_unless_another_is_given() -> None:
    pytest.importorskip("timm")
    lite0 = "--backbone.name=efficientnet-lite0"
    own = by_command(lite0)
    assert (own["image_size"], own["augment"]["crop"]) == (224, 28)
    assert ContinualLearner("efficientnet-lite0").config.as_dict() == own
    other = by_command(lite0, "--image_size=112")
    assert (other["image_size"], other["augment"]["crop"]) == (112, 14)
    assert ContinualLearner("efficientnet-lite0", image_size=112).config.as_dict() == other
    assert by_command(lite0, "--backbone.pretrained=false")["image_size"] == IMAGE_SIZE
    assert by_command("--backbone.name=timm:vit_tiny_patch16_224")["image_size"] == 224  # it takes no other size
    assert by_command("--backbone.name=timm:resnet18")["image_size"] == IMAGE_SIZE


def test_an_image_size_beside_a_config_is_refused() -> None:
    with pytest.raises(InputError, match="image_size: expected none beside a config"):
        ContinualLearner(config=defaults(32), image_size=64)
