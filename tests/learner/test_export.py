"""An exported learner gives the learner's predictions, without pah and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from helpers import DIGITS
from pah import ContinualLearner
from pah.cli import main
from pah.data.stream_options import StreamOptions
from pah.models.backbones import ConvNetOptions
from pah.runs.run import start_run
from pah.training.config import RunConfig
from pah.training.options import TrainingOptions

SERVE = Path(__file__).resolve().parents[2] / "examples" / "serve_onnx.py"
PIXELS = DIGITS.test.pixels[:64, 0].numpy()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mirrored"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a calibrated learner of five tasks, with or without mirror images at test time."""
    path = tmp_path_factory.mktemp("run")
    config = RunConfig(
        backbone_options=ConvNetOptions(8),
        stream=StreamOptions(validation=0.1),
        training=TrainingOptions(epochs=2, batch_size=32, flip_test=request.param),
    )
    start_run(config, path)
    return path / "model"


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_onnxruntime_and_the_learner_agree(folder: Path, tmp_path: Path, batch: int) -> None:
    learner = ContinualLearner.load(folder)
    assert main(["export", str(folder), "--all", "--out", str(tmp_path / "all.onnx")]) == 0
    onnx.checker.check_model(str(tmp_path / "all.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "all.onnx")
    outputs = session.run(None, {"images": PIXELS[:batch, None]})
    assert len(outputs) == 5
    for task, probabilities in zip(learner.tasks, outputs, strict=True):
        expected = learner.predict(PIXELS[:batch], task=task.name)
        assert [task.classes[c] for c in probabilities.argmax(axis=1)] == [answer.label for answer in expected]
        assert np.abs(probabilities.max(axis=1) - [answer.probability for answer in expected]).max() < 1e-4
        assert task.temperature != 1


def test_a_tasks_graph_is_served_without_torch(folder: Path, tmp_path: Path) -> None:
    learner = ContinualLearner.load(folder)
    name, image = learner.tasks[1].name, tmp_path / "photo.png"
    Image.fromarray(PIXELS[3]).resize((20, 13)).save(image)
    assert main(["export", str(folder), "--task", name, "--out", str(tmp_path / "one.onnx")]) == 0
    blocked = "import sys, runpy; sys.modules.update(torch=None, pah=None); sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0])"]
    process = subprocess.run(
        [*command, str(SERVE), str(tmp_path / "one.onnx"), str(image)], capture_output=True, text=True, check=True
    )
    file, task, label, probability = process.stdout.strip().split("\t")
    (expected,) = learner.predict([image], task=name)
    assert (file, task, label) == (str(image), name, expected.label)
    assert float(probability) == pytest.approx(expected.probability, abs=1e-3)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert json.loads(metadata["tasks"]) == [{"name": name, "classes": list(learner.tasks[1].classes)}]


def test_bad_exports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.onnx"
    for words in ((), ("--all", "--task", "x"), ("--task", "birds"), ("--epochs", "1")):
        assert main(["export", str(folder), *words, "--out", str(out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(folder), "--all", "--out", str(out)]) == 2
    assert "pip install -e '.[onnx]'" in capsys.readouterr().err
    assert not out.exists()
