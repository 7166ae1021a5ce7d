"""What `torchrun` starts for test_ranks.py: methods learn in several processes, and the first one saves what came out.

torchrun --nproc-per-node 2 tests/together.py FOLDER KIND ...
"""

import sys
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from helpers import digits
from pah import AugmentOptions, TrainingOptions, TrainState, train
from pah.core import distributed
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions
from pah.models.backbones import Backbone, ConvNetOptions
from pah.training.state import StepDone

OPTIMIZER = OptimizerOptions(name="sgd", lr=0.02)
STEPS = 50
GENTLE = {name: {"strength": 1.0} for name in ("ewc", "si")}  # a steep penalty makes much of the last digit


def smooth_backbone(plain: bool) -> Backbone:
    """A small network; `plain`: without batch norm, so that an image's features depend on that image alone.

    Without the kinks of ReLU, at which the last digit decides about a gradient.
    """
    body = ConvNetOptions(width=4).build(1).body
    assert isinstance(body, nn.Sequential)
    parts = [nn.GELU() if isinstance(part, nn.ReLU) else part for part in body]
    return Backbone(nn.Sequential(*(p for p in parts if not (plain and isinstance(p, nn.BatchNorm2d)))), 16)


def made(name: str, plain: bool = False) -> Method:
    """The untrained method, on a network without batch norm if `plain`."""
    torch.manual_seed(0)
    options = METHODS[name].options(**GENTLE.get(name, {}))
    gated = name == "hat"  # its gates stand behind ReLUs
    build = partial(ConvNetOptions(width=4).build, 1) if gated else partial(smooth_backbone, plain)
    network = options.build_network(build, (1, 8, 8))
    return METHODS[name].method(network, OPTIMIZER, options).to(memory_format=torch.channels_last)


def after(kind: str) -> dict[str, Tensor]:
    """A method's state, accuracies and terms after 50 steps; `<method>-plain`: on a network without batch norm."""
    name, _, plain = kind.partition("-")
    method, state = made(name, bool(plain)), TrainState()
    # batches of 28 or 29 images: slices are of unequal size
    options = TrainingOptions(epochs=2, batch_size=30, sync_batch_norm=not plain)
    terms = []
    for event in train(method, digits(3, classes=6), options, AugmentOptions(crop=1, flip=True), 0, state):
        if isinstance(event, StepDone):
            terms.append(sum(event.terms.values()))
            if len(terms) == STEPS:
                break
    found = {key: tensor.detach().clone().contiguous() for key, tensor in method.state_dict().items()}
    assert state.task >= 1, "what old tasks do was not seen"
    return found | {"terms": torch.tensor(terms), "matrix": torch.tensor([a for row in state.matrix for a in row])}


def main(folder: Path, kinds: list[str]) -> None:
    """Learn each kind in all processes."""
    torch.set_num_threads(1)
    with distributed.joined():
        for kind in kinds:
            found = after(kind)
            for key, tensor in found.items():
                whole = tensor.clone()
                distributed.agree([whole])
                assert torch.equal(whole, tensor), f"{kind}: {key} is not the same in all processes"
            if distributed.is_first():
                safetensors.torch.save_file(found, folder / f"{kind}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    distributed.leave(0)
