"""Tests on a fake device, which refuses what a GPU would refuse: everything also works away from the CPU."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import EVENTS_PER_TASK, ONLY_AT_TASK_ENDS, assert_same_run, log, run_until_death, tiny
from fake_device import DEVICE, FakeDeviceTensor, HostReads, MixedDevicesError, fake_device
from helpers import DIGITS, digits
from pah import AugmentOptions, ContinualLearner, InputError, RunConfig, TrainingOptions, TrainState, train
from pah.cli import main
from pah.core.devices import CPU, find_device, fits_on_gpu
from pah.learner.defaults import FROM_SCRATCH
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions, Terms, descend
from pah.models.backbones import ConvNetOptions
from pah.models.modes import Precision
from pah.runs.run import resume_run, start_run
from pah.training import checkpoint
from pah.training.state import StepDone


def untrained(name: str) -> Method:
    torch.manual_seed(0)
    options = METHODS[name].options()
    network = options.build_network(partial(ConvNetOptions(width=4).build, 1), (1, 8, 8))
    return METHODS[name].method(network, OptimizerOptions(lr=3e-3), options).to(memory_format=torch.channels_last)


def train_on_digits(method: Method) -> TrainState:
    state = TrainState()
    options, augment = TrainingOptions(epochs=1, batch_size=64, flip_test=True), AugmentOptions(crop=1, flip=True)
    for _ in train(method, digits(3, classes=6), options, augment, 0, state):
        pass
    return state


def unwrap(tensor: Tensor) -> Tensor:
    return tensor.cpu_values if isinstance(tensor, FakeDeviceTensor) else tensor


def test_fake_device_refuses_mixed_devices_as_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_device(monkeypatch) as device:
        on_device, on_cpu = torch.arange(3.0).to(device), torch.arange(3.0)
        assert on_device.device == device
        assert (on_device + 1).cpu().tolist() == [1, 2, 3]
        assert on_device[torch.tensor([2])].item() == 2
        for operation in (
            lambda: on_device + on_cpu,
            lambda: torch.cat([on_device, on_cpu]),
            lambda: on_cpu[on_device.long()],
            lambda: torch.randn(3, device=device, generator=torch.Generator()),
        ):
            with pytest.raises(MixedDevicesError):
                operation()  # type: ignore[no-untyped-call]
        with pytest.raises((TypeError, RuntimeError)):
            on_device.numpy()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_same_on_the_device_and_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_method = untrained(name)
    expected = train_on_digits(cpu_method)
    with fake_device(monkeypatch):
        method = untrained(name).to(DEVICE)
        state = train_on_digits(method)
        assert all(tensor.device == DEVICE for tensor in method.state_dict().values())
        state_dict = {key: unwrap(tensor) for key, tensor in method.state_dict().items()}
    assert state.matrix == expected.matrix
    for key, tensor in cpu_method.state_dict().items():
        assert torch.equal(state_dict[key], tensor), key


def test_host_reads_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = torch.arange(3)
    with fake_device(monkeypatch) as device:
        x = on_cpu.to(device)
        empty, reads = torch.empty_like(x), HostReads()
        for operation in (
            lambda: x.sum().item(),
            lambda: bool(x.sum() > 0),
            lambda: torch.equal(x, x),
            lambda: x.cpu(),
            lambda: on_cpu.to(device),
            lambda: torch.tensor([1], device=device),
            lambda: empty.copy_(on_cpu),
            lambda: on_cpu.clone().copy_(x, non_blocking=True),
            lambda: x[on_cpu],
            lambda: x[x > 1],
            lambda: empty.index_put_((on_cpu,), x),
            lambda: x.repeat_interleave(x),
        ):
            reads.seen.clear()
            with reads:
                operation()
            assert len(reads.seen) >= 1
        reads.seen.clear()
        with reads:
            on_cpu.sum().item()
            empty.copy_(on_cpu.to(device, non_blocking=True))
            empty.copy_(on_cpu, non_blocking=True)
            empty[x] = x[x] + on_cpu.sum()
            torch.zeros(2, device=device).fill_(3)
            x.repeat_interleave(x, output_size=3)
        assert reads.seen == []


@pytest.mark.parametrize(
    ("name", "on_the_device", "precision"),
    [*((name, True, "fp32") for name in METHODS), ("pah", False, "bf16"), ("er", False, "fp32")],
)
def test_steps_do_not_wait_for_the_device(
    name: str, on_the_device: bool, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except the last step of an epoch, which reads the loss terms of all steps, and A-GEM, which reads once a step."""
    options, augment = TrainingOptions(epochs=1, batch_size=64, precision=precision), AugmentOptions(crop=1, flip=True)
    steps, state = [], TrainState()
    with fake_device(monkeypatch):
        monkeypatch.setattr("pah.data.stream.fits_on_gpu", lambda device, size: on_the_device)
        stream, method = digits(2, classes=4).to(DEVICE), untrained(name).to(DEVICE)
        with HostReads() as reads:
            for event in train(method, stream, options, augment, 0, state):
                if isinstance(event, StepDone):
                    steps.append((event, state.task, list(reads.seen)))
                reads.seen.clear()
    for event, task, operations in steps:
        last = event.steps_left == 0
        assert bool(event.terms) == last
        expected = ["aten._local_scalar_dense.default"] if name == "agem" and task else []
        assert operations == expected + last * ["aten._to_copy.default"]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # it is copied nevertheless
@pytest.mark.filterwarnings("ignore:.*resumed with device")
@pytest.mark.parametrize("fits", [True, False])
def test_a_run_continues_on_another_device(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    """It starts on the CPU, continues on the device, with or without the data there, and ends on the CPU."""
    config = tiny("--augment.crop", "1", "--snapshots", "true")
    folder = tmp_path / "run"
    run_until_death(config, folder, EVENTS_PER_TASK + 3, checkpoint_seconds=0)
    with fake_device(monkeypatch):
        monkeypatch.setattr("pah.data.stream.fits_on_gpu", lambda device, size: fits and device == DEVICE and size > 0)
        go = partial(resume_run, device=DEVICE)
        run_until_death(config, folder, EVENTS_PER_TASK, checkpoint_seconds=0, run=go)
    resume_run(config, folder)
    assert_same_run(folder, uninterrupted(config))


@pytest.mark.parametrize("seconds", [0, ONLY_AT_TASK_ENDS])
def test_non_finite_loss_on_a_device_is_reported_before_it_is_saved(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step of task 2, epoch 2 fails; the next checkpoint or the end of the epoch reports it."""
    config, folder = tiny("--method", "finetune"), tmp_path / "run"
    steps = itertools.count(1)

    def broken(optimizer: torch.optim.Optimizer, terms: Terms) -> Terms:
        return descend(optimizer, {"L_hm": terms["L_hm"] * (math.nan if next(steps) == 10 + 5 + 3 else 1.0)})

    with fake_device(monkeypatch) as device:
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


def test_a_run_on_a_device_writes_the_same_files_as_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    config = tiny("--stream.validation", "0.2", "--training.flip_test", "true")
    with fake_device(monkeypatch):
        metrics = start_run(config, tmp_path / "run", device=DEVICE)
    assert (metrics["device"], metrics["processes"]) == ("meta", 1)
    assert_same_run(tmp_path / "run", uninterrupted(config))


def test_a_learner_learns_predicts_and_is_saved_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = dataclasses.replace(FROM_SCRATCH.training, epochs=1)
    config = dataclasses.replace(
        FROM_SCRATCH, image_size=8, backbone="convnet", backbone_options=ConvNetOptions(width=4), training=training
    )
    pixels, labels = DIGITS.train.pixels[:, 0].numpy(), DIGITS.train.labels.numpy()
    names = [str(digit) for digit in range(10)]

    def teach(learner: ContinualLearner) -> ContinualLearner:
        for name, classes in (("low", names[:3]), ("high", names[5:7])):
            learner.learn(name, (pixels, labels.tolist(), names), classes=classes, max_drift=1.0)
        return learner

    cpu_learner = teach(ContinualLearner(config=config))
    expected = [cpu_learner.predict(pixels[:50]), cpu_learner.predict(pixels[:50], task="low", unknown=True)]
    monkeypatch.setattr("pah.learner.learner.find_device", lambda name: DEVICE if name == "cuda" else CPU)
    with fake_device(monkeypatch):
        device_learner = teach(ContinualLearner(config=config).to("cuda"))
        assert device_learner.predictor.method.device == DEVICE
        assert [
            device_learner.predict(pixels[:50]),
            device_learner.predict(pixels[:50], task="low", unknown=True),
        ] == expected
        device_learner.save(tmp_path / "learner")
        device_learner.forget("low")
    loaded = ContinualLearner.load(tmp_path / "learner")  # outside: it tries shapes on "meta", the fake device
    assert loaded.predict(pixels[:50]) == expected[0]
    assert loaded.predictor.method.device == CPU
    with fake_device(monkeypatch):
        assert loaded.to("cuda").predict(pixels[:50]) == expected[0]


@pytest.mark.parametrize("words", [("run", "--device", "cuda"), ("resume", "no-run", "--device", "cuda")])
def test_a_missing_device_is_refused_in_one_line(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main([*words]) == 2
    assert capsys.readouterr().err == "pah: device: expected one that this machine has (cpu), got cuda\n"
    assert find_device("auto") == CPU


def test_each_process_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("pah.core.distributed.local_rank", lambda: 1)
    assert find_device("auto") == torch.device("cuda", 1)
    assert find_device("cpu") == CPU
    monkeypatch.setattr("pah.core.distributed.local_rank", lambda: 2)
    with pytest.raises(InputError, match="expected a GPU for each process on this machine, got 2, and process 3"):
        find_device("cuda")


def test_a_data_set_fits_on_a_gpu_if_it_takes_at_most_a_quarter_of_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert [fits_on_gpu(torch.device("cuda", 0), size) for size in (250, 251)] == [True, False]
    assert not fits_on_gpu(CPU, 1)
    assert not fits_on_gpu(torch.device("mps"), 1)
