"""The script that test_distributed.py starts with `torchrun`: several processes train methods, the main one saves them.

torchrun --nproc-per-node 2 tests/distributed_worker.py FOLDER KIND ...

A kind is the name of a method, or `<method>-plain` for a network without batch norm.
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
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions
from pah.training.state import StepDone

OPTIMIZER = OptimizerOptions(name="sgd", lr=0.02)
STEPS = 50
# a large penalty amplifies rounding errors
METHOD_OPTIONS = {name: {"strength": 1.0} for name in ("ewc", "si")}


def smooth_backbone(plain: bool) -> Backbone:
    """Return a small network without ReLU, whose gradient jumps at zero and so amplifies rounding errors.

    With `plain` it has no batch norm either, so an image's features depend on that image alone.
    """
    body = ConvNetOptions(width=4).build(1).body
    assert isinstance(body, nn.Sequential)
    parts = [nn.GELU() if isinstance(part, nn.ReLU) else part for part in body]
    return Backbone(nn.Sequential(*(p for p in parts if not (plain and isinstance(p, nn.BatchNorm2d)))), 16)


def untrained_method(name: str, plain: bool = False) -> Method:
    """Return the untrained method, on a network without batch norm if `plain`."""
    torch.manual_seed(0)
    options = METHODS[name].options(**METHOD_OPTIONS.get(name, {}))
    gated = name == "hat"  # its gates need the ReLUs
    build = partial(ConvNetOptions(width=4).build, 1) if gated else partial(smooth_backbone, plain)
    network = options.build_network(build, (1, 8, 8))
    return METHODS[name].method(network, OPTIMIZER, options).to(memory_format=torch.channels_last)


def train_kind(kind: str) -> dict[str, Tensor]:
    """Return the state dict, the accuracies and the loss terms of a method after 50 steps."""
    name, _, plain = kind.partition("-")
    method, state = untrained_method(name, bool(plain)), TrainState()
    # batches have 28 or 29 images, so the slices of the processes have unequal sizes
    options = TrainingOptions(epochs=2, batch_size=30, sync_batch_norm=not plain)
    terms = []
    for event in train(method, digits(3, classes=6), options, AugmentOptions(crop=1, flip=True), 0, state):
        if isinstance(event, StepDone):
            terms.append(sum(event.terms.values()))
            if len(terms) == STEPS:
                break
    state_dict = {key: tensor.detach().clone().contiguous() for key, tensor in method.state_dict().items()}
    assert state.task >= 1, "old tasks must take part"
    return state_dict | {"terms": torch.tensor(terms), "matrix": torch.tensor([a for row in state.matrix for a in row])}


def main(folder: Path, kinds: list[str]) -> None:
    """Train each kind in all processes, and save the results of the main process."""
    torch.set_num_threads(1)
    with distributed.process_group():
        for kind in kinds:
            results = train_kind(kind)
            for key, tensor in results.items():
                of_main_process = tensor.clone()
                distributed.broadcast_from_main([of_main_process])
                assert torch.equal(of_main_process, tensor), f"{kind}: {key} differs between processes"
            if distributed.is_main_process():
                safetensors.torch.save_file(results, folder / f"{kind}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    distributed.exit_process(0)
