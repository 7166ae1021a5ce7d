"""What a GPU would refuse is refused by a pretended one: everything works on a device that is not the processor."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import EVENTS_A_TASK, assert_same_run, cut_short, tiny
from elsewhere import DEVICE, Elsewhere, MixedDevicesError, pretended
from helpers import DIGITS, digits
from pah import AugmentOptions, ContinualLearner, InputError, RunConfig, TrainingOptions, TrainState, runs, train
from pah.cli import main
from pah.devices import CPU, find_device, holds
from pah.learner import DEFAULT
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions
from pah.models.backbones import ConvNetOptions


def made(name: str) -> Method:
    torch.manual_seed(0)
    options = METHODS[name].options()
    network = options.build_network(partial(ConvNetOptions(width=4).build, 1), (1, 8, 8))
    return METHODS[name].method(network, OptimizerOptions(lr=3e-3), options).to(memory_format=torch.channels_last)


def finished(method: Method) -> TrainState:
    state = TrainState()
    options, augment = TrainingOptions(epochs=1, batch_size=64, flip_test=True), AugmentOptions(crop=1, flip=True)
    for _ in train(method, digits(3, classes=6), options, augment, 0, state):
        pass
    return state


def numbers(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, Elsewhere) else tensor


def test_the_pretended_device_refuses_what_a_gpu_would(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch) as there:
        x, here = torch.arange(3.0).to(there), torch.arange(3.0)
        assert x.device == there
        assert (x + 1).cpu().tolist() == [1, 2, 3]
        assert x[torch.tensor([2])].item() == 2
        for wrong in (
            lambda: x + here,
            lambda: torch.cat([x, here]),
            lambda: here[x.long()],
            lambda: torch.randn(3, device=there, generator=torch.Generator()),
        ):
            with pytest.raises(MixedDevicesError):
                wrong()  # type: ignore[no-untyped-call]
        with pytest.raises((TypeError, RuntimeError)):
            x.numpy()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_on_a_device_as_on_the_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = made(name)
    expected = finished(here)
    with pretended(monkeypatch):
        method = made(name).to(DEVICE)
        state = finished(method)
        assert all(tensor.device == DEVICE for tensor in method.state_dict().values())
        found = {key: numbers(tensor) for key, tensor in method.state_dict().items()}
    assert state.matrix == expected.matrix
    for key, tensor in here.state_dict().items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # it is copied nevertheless
@pytest.mark.parametrize("fits", [True, False])
def test_a_run_goes_on_and_ends_on_another_device(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    """Started on the processor, continued on the device with its data there or not, ended on the processor."""
    config = tiny("--augment.crop", "1", "--snapshots", "true")
    folder = tmp_path / "run"
    cut_short(config, folder, EVENTS_A_TASK + 3, checkpoint_seconds=0)
    with pretended(monkeypatch):
        monkeypatch.setattr("pah.data.stream.holds", lambda device, size: fits and device == DEVICE and size > 0)
        go = partial(runs.resume, device=DEVICE)
        cut_short(config, folder, EVENTS_A_TASK, checkpoint_seconds=0, go=go)
    runs.resume(config, folder)
    assert_same_run(folder, uninterrupted(config))


def test_a_run_on_a_device_leaves_what_one_on_the_processor_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    config = tiny("--stream.validation", "0.2", "--training.flip_test", "true")
    with pretended(monkeypatch):
        metrics = runs.start(config, tmp_path / "run", device=DEVICE)
    assert (metrics["device"], metrics["processes"]) == ("meta", 1)
    assert_same_run(tmp_path / "run", uninterrupted(config))


def test_a_learner_learns_answers_and_is_saved_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = dataclasses.replace(DEFAULT.training, epochs=1)
    config = dataclasses.replace(
        DEFAULT, image_size=8, backbone="convnet", backbone_options=ConvNetOptions(width=4), training=training
    )
    pixels, labels = DIGITS.train.pixels[:, 0].numpy(), DIGITS.train.labels.numpy()
    names = [str(digit) for digit in range(10)]

    def taught(learner: ContinualLearner) -> ContinualLearner:
        for name, classes in (("low", names[:3]), ("high", names[5:7])):
            learner.learn(name, (pixels, labels.tolist(), names), classes=classes, max_drift=1.0)
        return learner

    here = taught(ContinualLearner(config=config))
    expected = [here.predict(pixels[:50]), here.predict(pixels[:50], task="low", unknown=True)]
    monkeypatch.setattr("pah.learner.find_device", lambda name: DEVICE if name == "cuda" else CPU)
    with pretended(monkeypatch):
        there = taught(ContinualLearner(config=config).to("cuda"))
        assert there.taught.method.device == DEVICE
        assert [there.predict(pixels[:50]), there.predict(pixels[:50], task="low", unknown=True)] == expected
        there.save(tmp_path / "learner")
        there.forget("low")
    loaded = ContinualLearner.load(tmp_path / "learner")  # outside: it tries shapes on "meta", the pretended device
    assert loaded.predict(pixels[:50]) == expected[0]
    assert loaded.taught.method.device == CPU
    with pretended(monkeypatch):
        assert loaded.to("cuda").predict(pixels[:50]) == expected[0]


@pytest.mark.parametrize("words", [("run", "--device", "cuda"), ("resume", "no-run", "--device", "cuda")])
def test_a_device_that_is_not_there_is_refused_in_one_line(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main([*words]) == 2
    assert capsys.readouterr().err == "pah: device: expected one that this machine has (cpu), got cuda\n"
    assert find_device("auto") == CPU


def test_auto_takes_a_gpu_of_its_own_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("pah.ranks.local_index", lambda: 1)
    assert find_device("auto") == torch.device("cuda", 1)
    assert find_device("cpu") == CPU
    monkeypatch.setattr("pah.ranks.local_index", lambda: 2)
    with pytest.raises(InputError, match="expected a GPU for each process on this machine, got 2, and process 3"):
        find_device("cuda")


def test_a_data_set_lies_on_a_gpu_only_where_it_takes_a_quarter_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert [holds(torch.device("cuda", 0), size) for size in (250, 251)] == [True, False]
    assert not holds(CPU, 1)
    assert not holds(torch.device("mps"), 1)
