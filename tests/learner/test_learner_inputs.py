"""Images become the network's input in the same way in lessons, predictions, the page and an exported graph."""

import dataclasses
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import Tensor

from helpers import QUICK_LEARNER
from pah import ContinualLearner, InputError
from pah.app.answers import AcceptedLearner
from pah.data.preprocessing import DEFAULT_RESIZING, Interpolation, Resizing
from pah.data.task import Normalization
from pah.learner.export import export
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions
from pah.training.config import build_method

SIDE = 32
SERVE = Path(__file__).resolve().parents[2] / "examples" / "serve_onnx.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two classes, ten photos each."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        (folder / name).mkdir()
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for k in range(10):
            photo.crop((20 * k, 0, 20 * k + 300, 200)).save(folder / name / f"{k}.png")
    return folder


@dataclass(frozen=True)
class Pretrained(ConvNetOptions):
    """A small backbone with the properties of a pretrained one."""

    @property
    def interpolation(self) -> Interpolation:
        return "bicubic"

    @property
    def resizing(self) -> Resizing:
        return Resizing("bicubic", 0.875)

    def start_channels(self) -> int | None:
        return 3

    def normalization(self, channels: int) -> Normalization | None:
        return Normalization((0.5,) * channels, (0.25,) * channels)


@pytest.fixture(scope="module")
def learner(photos: Path) -> ContinualLearner:
    options = Pretrained(width=4, train="none", views=1, input_size=48)
    learner = ContinualLearner(config=dataclasses.replace(QUICK_LEARNER, image_size=SIDE, backbone_options=options))
    learner.learn("photos", photos)
    return learner


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that receives each image (C, H, W) that passes through a backbone."""
    seen: list[Tensor] = []
    forward = Backbone.forward

    def record(self: Backbone, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.device.type == "cpu":
            seen.extend(x.detach().clone())
        return forward(self, x)

    monkeypatch.setattr(Backbone, "forward", record)
    return seen


def test_a_photo_is_the_same_input_in_a_lesson_in_answers_and_on_the_page(
    learner: ContinualLearner, photos: Path, inputs: list[Tensor], tmp_path: Path
) -> None:
    learner.save(tmp_path / "learner")
    loaded = ContinualLearner.load(tmp_path / "learner")
    record = loaded.predictor.record
    assert record.resizing == learner.predictor.record.resizing == Resizing("bicubic", 0.875)
    assert loaded.predictor.method.network.backbone.interpolation == "bicubic"
    assert type(loaded.config.backbone_options) is ConvNetOptions  # what is stored decides
    file = photos / "china" / "3.png"
    photo = Image.open(file)
    pixels = np.array(ImageOps.fit(photo, (SIDE, SIDE), Image.Resampling.BICUBIC, bleed=0.0625))
    expected = record.normalization(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    ways: dict[str, Callable[[], object]] = {
        "file": lambda: loaded.predict(file),
        "PIL image": lambda: loaded.predict([photo]),
        "array": lambda: loaded.predict(np.asarray(photo)[None]),
        "skip_unreadable": lambda: loaded.predict([file], skip_unreadable=True),
        "evaluate": lambda: loaded.evaluate(([file], ["china"]), "photos"),
        "page": lambda: AcceptedLearner(tmp_path / "learner").ask([str(file)]),
        "page, each": lambda: AcceptedLearner(tmp_path / "learner").ask_each([str(file)]),
        "lesson": lambda: loaded.learn("again", photos),
        "held out": lambda: loaded.learn("more", photos, held_out={"photos": ([file], ["china"])}),
    }
    for way, ask in ways.items():
        inputs.clear()
        ask()
        assert any(torch.equal(x, expected) for x in inputs), way


def test_an_exported_graph_with_the_callers_resizing_gives_the_same_answers(
    learner: ContinualLearner,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(learner, tmp_path / "photos.onnx", "photos")
    files = [str(photos / name / "3.png") for name in ("china", "flower")]
    monkeypatch.setattr(sys, "argv", [str(SERVE), str(tmp_path / "photos.onnx"), *files])
    runpy.run_path(str(SERVE))
    served = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    answers = learner.predict(files, "photos")
    for (_, _, label, probability), answer in zip(served, answers, strict=True):
        assert label == answer.label
        assert float(probability) == pytest.approx(answer.probability, abs=1e-3)


def test_the_graph_scales_images_as_the_backbone_does(photos: Path, tmp_path: Path) -> None:
    learner = ContinualLearner(
        config=dataclasses.replace(QUICK_LEARNER, image_size=SIDE, backbone_options=Pretrained(width=4, input_size=24))
    )
    learner.learn("photos", photos)
    export(learner, tmp_path / "photos.onnx", "photos")
    pixels = learner.predictor.record.decode(sorted(photos.rglob("*.png")))
    (probabilities,) = onnxruntime.InferenceSession(tmp_path / "photos.onnx").run(None, {"images": pixels})
    with torch.inference_mode():
        (logits,) = learner.predictor.logits(torch.from_numpy(pixels), [0])
    np.testing.assert_allclose(probabilities, logits.softmax(dim=1), atol=1e-5)


def test_grey_photos_become_colour_for_a_backbone_that_was_trained_on_colour(
    learner: ContinualLearner, photos: Path
) -> None:
    grey = np.stack([np.asarray(Image.open(file).convert("L")) for file in sorted(photos.rglob("*.png"))])
    labels = ["china"] * 10 + ["flower"] * 10
    new = ContinualLearner(config=learner.config)
    for images in (grey, list(map(Image.fromarray, grey))):
        notes = new.learn(f"grey {len(new.tasks)}", (images, labels)).notes
        assert "grey images become colour images" in notes
    assert new.predictor.record.image_shape == (3, SIDE, SIDE)
    one = [prediction.label for prediction in new.predict(grey, "grey 0")]
    assert one == [prediction.label for prediction in new.predict(grey[..., None].repeat(3, 3), "grey 0")]


def test_only_what_cannot_be_done_is_refused(learner: ContinualLearner) -> None:
    with pytest.raises(
        InputError, match=r"expected images of 3 channels \(colour\), with which .* got 1 channel \(grey\)"
    ):
        build_method(learner.config, (1, SIDE, SIDE))
    assert ContinualLearner(config=QUICK_LEARNER).config.backbone_options.resizing == DEFAULT_RESIZING
