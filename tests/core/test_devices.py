"""What a GPU would refuse is refused by a pretended one: everything works on a device that is not the processor."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import EVENTS_A_TASK, ONLY_TASK_ENDS, assert_same_run, cut_short, log, tiny
from elsewhere import DEVICE, Elsewhere, HostReads, MixedDevicesError, pretended
from helpers import DIGITS, digits
from pah import AugmentOptions, ContinualLearner, InputError, RunConfig, TrainingOptions, TrainState, train
from pah.cli import main
from pah.core.devices import CPU, find_device, holds
from pah.learner.learner import DEFAULT
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions, Terms, descend
from pah.models.backbones import ConvNetOptions
from pah.models.modes import Precision
from pah.runs.run import resume_run, start_run
from pah.training import checkpoint
from pah.training.state import StepDone


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


def test_host_reads_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.arange(3)
    with pretended(monkeypatch) as there:
        x = here.to(there)
        empty, waiting = torch.empty_like(x), HostReads()
        for wrong in (
            lambda: x.sum().item(),
            lambda: bool(x.sum() > 0),
            lambda: torch.equal(x, x),
            lambda: x.cpu(),
            lambda: here.to(there),
            lambda: torch.tensor([1], device=there),
            lambda: empty.copy_(here),
            lambda: here.clone().copy_(x, non_blocking=True),
            lambda: x[here],
            lambda: x[x > 1],
            lambda: empty.index_put_((here,), x),
            lambda: x.repeat_interleave(x),
        ):
            waiting.seen.clear()
            with waiting:
                wrong()
            assert len(waiting.seen) >= 1
        waiting.seen.clear()
        with waiting:
            here.sum().item()
            empty.copy_(here.to(there, non_blocking=True))
            empty.copy_(here, non_blocking=True)
            empty[x] = x[x] + here.sum()
            torch.zeros(2, device=there).fill_(3)
            x.repeat_interleave(x, output_size=3)
        assert waiting.seen == []


@pytest.mark.parametrize(
    ("name", "on_the_device", "precision"),
    [*((name, True, "fp32") for name in METHODS), ("pah", False, "bf16"), ("er", False, "fp32")],
)
def test_no_step_waits_for_the_device(
    name: str, on_the_device: bool, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the last one of an epoch, which fetches the loss terms of all; and A-GEM's, which asks once a step."""
    options, augment = TrainingOptions(epochs=1, batch_size=64, precision=precision), AugmentOptions(crop=1, flip=True)
    steps, state = [], TrainState()
    with pretended(monkeypatch):
        monkeypatch.setattr("pah.data.stream.holds", lambda device, size: on_the_device)
        stream, method = digits(2, classes=4).on(DEVICE), made(name).to(DEVICE)
        with HostReads() as waiting:
            for event in train(method, stream, options, augment, 0, state):
                if isinstance(event, StepDone):
                    steps.append((event, state.task, list(waiting.seen)))
                waiting.seen.clear()
    for event, task, seen in steps:
        last = event.steps_left == 0
        assert bool(event.terms) == last
        asked = ["aten._local_scalar_dense.default"] if name == "agem" and task else []
        assert seen == asked + last * ["aten._to_copy.default"]


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
        go = partial(resume_run, device=DEVICE)
        cut_short(config, folder, EVENTS_A_TASK, checkpoint_seconds=0, go=go)
    resume_run(config, folder)
    assert_same_run(folder, uninterrupted(config))


@pytest.mark.parametrize("seconds", [0, ONLY_TASK_ENDS])
def test_a_loss_that_is_not_finite_on_a_device_is_told_before_anything_of_it_is_saved(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checkpoint that would hold it, or by the end of the epoch: in its third step, in the second task."""
    config, folder = tiny("--method", "finetune"), tmp_path / "run"
    steps = itertools.count(1)

    def broken(optimizer: torch.optim.Optimizer, terms: Terms) -> Terms:
        return descend(optimizer, {"L_hm": terms["L_hm"] * (math.nan if next(steps) == 10 + 5 + 3 else 1.0)})

    with pretended(monkeypatch) as device:
        monkeypatch.setattr("pah.methods.bounds.descend", broken)
        message = r"^loss term L_hm became nan in task 2, epoch 2, step 3 of 5: expected a finite loss; a lower"
        with pytest.raises(InputError, match=message):
            start_run(config, folder, checkpoint_seconds=seconds, device=device)
    assert next(steps) - 1 == (18 if seconds == 0 else 20)
    assert len(log(folder)) == 3
    tensors, facts = checkpoint.load(folder / "checkpoint")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert (facts["state"]["task"], facts["state"]["step"]) == ((1, 2) if seconds == 0 else (1, 0))
    assert all(map(math.isfinite, facts["state"]["term_sums"].values()))


def test_a_run_on_a_device_leaves_what_one_on_the_processor_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    config = tiny("--stream.validation", "0.2", "--training.flip_test", "true")
    with pretended(monkeypatch):
        metrics = start_run(config, tmp_path / "run", device=DEVICE)
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
    monkeypatch.setattr("pah.learner.learner.find_device", lambda name: DEVICE if name == "cuda" else CPU)
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
    monkeypatch.setattr("pah.core.distributed.local_index", lambda: 1)
    assert find_device("auto") == torch.device("cuda", 1)
    assert find_device("cpu") == CPU
    monkeypatch.setattr("pah.core.distributed.local_index", lambda: 2)
    with pytest.raises(InputError, match="expected a GPU for each process on this machine, got 2, and process 3"):
        find_device("cuda")


def test_a_data_set_lies_on_a_gpu_only_where_it_takes_a_quarter_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert [holds(torch.device("cuda", 0), size) for size in (250, 251)] == [True, False]
    assert not holds(CPU, 1)
    assert not holds(torch.device("mps"), 1)
