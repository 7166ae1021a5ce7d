"""fp16: losses are scaled, overflowing steps are skipped, and a resumed run keeps its scale."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_loop import untrained
from torch import nn

from conftest import EVENTS_PER_TASK, assert_same_run, run_until_death, tiny
from helpers import digits
from pah import AugmentOptions, InputError, RunConfig, TrainingOptions, TrainState, train
from pah.core.config import NonFiniteLossError
from pah.methods.base import descend, gradients_of, step_context
from pah.models.backbones import SlimResNet18Options
from pah.runs.run import resume_run
from pah.training import checkpoint
from pah.training.config import build_method
from pah.training.state import StepDone

FP16 = TrainingOptions(epochs=1, batch_size=64, precision="fp16")


def scaler(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("name", ["pah", "si", "agem", "hat"])  # PAH, and methods that read or change gradients
def test_training_in_fp16_is_close_to_training_in_fp32(name: str) -> None:
    terms = {}
    for precision in ("fp16", "fp32"):
        options = TrainingOptions(epochs=2, batch_size=64, precision=precision)
        method, state, losses = untrained(name), TrainState(), []
        for event in train(method, digits(2, classes=4), options, AugmentOptions(), 0, state):
            if isinstance(event, StepDone):
                losses.append(event.terms["L_hm"])
        assert all(tensor.dtype != torch.float16 for tensor in method.state_dict().values())
        assert bool(state.scaler) == (precision == "fp16")
        terms[precision] = torch.tensor(losses)
    assert not torch.equal(terms["fp16"], terms["fp32"])
    assert (terms["fp16"] - terms["fp32"]).abs().mean() < 0.05


def test_scaling_preserves_gradients_too_small_for_fp16() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def loss() -> torch.Tensor:
        return (weight.half() * torch.tensor([1e-4], dtype=torch.float16)).sum().float() * 1e-4

    descend(optimizer, {"tiny": loss()})
    assert weight.item() == 1
    with step_context(1.0, scaler(2.0**16), synchronised=False):
        value, gradients = gradients_of(loss(), [weight])
        descend(optimizer, {"tiny": loss()})
    assert value.item() == pytest.approx(1e-8, rel=1e-3)
    assert gradients[0].item() == pytest.approx(1e-8, rel=1e-3)
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(1e-8, rel=1e-3)


def test_a_step_that_overflows_is_skipped_halves_the_scale_and_leaves_no_gradient() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], fused=True)
    grad_scaler = scaler(2.0**16)
    with step_context(1.0, grad_scaler, synchronised=False):
        terms = descend(optimizer, {"steep": (1e36 * weight).sum()})
        assert terms["steep"].item() == pytest.approx(1e36)
        assert weight.item() == 1
        assert grad_scaler.get_scale() == 2.0**15
        assert weight.grad is not None
        assert weight.grad.item() == 0
        descend(optimizer, {"gentle": weight.sum()})
    assert weight.item() < 1


def test_gradients_that_overflow_at_every_scale_stop_the_run() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer, grad_scaler = torch.optim.SGD([weight], lr=1.0), scaler(2.0)
    with step_context(1.0, grad_scaler, synchronised=False):
        for _ in range(2):
            weight.grad = None
            hook = weight.register_hook(lambda gradient: gradient * float("inf"))
            if grad_scaler.get_scale() > 1:
                descend(optimizer, {"loss": weight.sum()})
            else:
                with pytest.raises(NonFiniteLossError, match="gradient became inf"):
                    descend(optimizer, {"loss": weight.sum()})
            hook.remove()
    assert weight.item() == 1


def test_the_error_for_a_non_finite_loss_in_fp16_suggests_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = untrained("finetune")
    with torch.no_grad():
        method.network.backbone.body[1].weight.fill_(1e30)  # type: ignore[index]
    with pytest.raises(InputError, match=r"L_hm became .*; --precision bf16 or fp32 may help"):
        list(train(method, digits(2, classes=4), FP16, AugmentOptions(), 0, TrainState()))


def test_a_run_in_fp16_resumes_with_its_scale(
    tmp_path: Path, uninterrupted: Callable[[RunConfig], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("--precision", "fp16")
    # the scale grows every third step, so it has changed when the run dies
    grad_scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda kind: grad_scaler(kind, init_scale=4.0, growth_interval=3))
    reference = uninterrupted(config)
    run_until_death(config, tmp_path / "run", EVENTS_PER_TASK + 3, checkpoint_seconds=0)
    state = checkpoint.load(tmp_path / "run" / "checkpoint")[1]["state"]
    assert state["scaler"]["scale"] > 4
    resume_run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.parametrize(("side", "refused"), [(8, True), (16, False)])
def test_bf16_is_refused_if_a_stride_of_two_gets_a_single_pixel(side: int, refused: bool) -> None:
    config = RunConfig(
        backbone="resnet18-slim",
        backbone_options=SlimResNet18Options(width=8),
        training=TrainingOptions(precision="bf16"),
    )
    if not refused:
        build_method(config, (3, side, side))
        return
    with pytest.raises(InputError, match=r"expected fp32 for resnet18-slim on images of 8x8, .*single pixel, got bf16"):
        build_method(config, (3, side, side))
    build_method(dataclasses.replace(config, training=TrainingOptions()), (3, side, side))
