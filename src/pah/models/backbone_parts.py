"""The body of a backbone as two parts: a first part that stays as it is, and a last part that lessons train.

The parts of any model are found by recording which of its modules run, and in which order, for an example. No list of
models is needed.
B: number of images, K: number of values that the first part returns for an image, D: number of features.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pah.core.config import InputError, generator
from pah.models.modes import evaluating

LAST_SHARE = 0.25  # share of the layers with weights that the last part has, as nearly as the blocks allow
CHAIN_SHARES = (0.05, 0.5)  # smallest and largest such share of a last part whose input can be kept
MAX_CHECKS = 3  # possible parts that are checked
TOLERANCE = 1e-4  # largest difference of features, relative to the largest feature, that counts as rounding
EXAMPLES = 2  # images of the example

Key = tuple[int, int]  # a tensor at one moment: its number, and how often it was changed in place


@dataclass(frozen=True)
class Parts:
    """The two parts of a body. Modules are given by their names, so that a copy of the body has the same parts.

    Args:
        start: The module with which the last part begins. Its input is the output of the first part.
        chain: The modules that lead from that output to the features, each applied to the result of the one before.
            It is None if the body is no such chain behind its first part, so that images must pass through all of it.
        shape: The shape of the first part's output for one image. K is the number of its values.
        trained: The modules of the last part.
    """

    start: str
    chain: tuple[str, ...] | None
    shape: tuple[int, ...]
    trained: tuple[str, ...]

    @property
    def size(self) -> int:
        """K, the number of values that the first part returns for an image."""
        return prod(self.shape)

    def modules(self, body: nn.Module) -> list[nn.Module]:
        """Return the modules of the last part of a body."""
        return [body.get_submodule(name) for name in self.trained]

    @torch.no_grad()
    def first(self, body: nn.Module, images: Tensor) -> Tensor:
        """Return the output of the first part, without gradients: (B, channels, H, W) -> (B, K)."""
        outputs: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            outputs.append(inputs[0])
            raise _FirstPartDoneError

        hook = body.get_submodule(self.start).register_forward_pre_hook(stop)
        try:
            body(images)
        except _FirstPartDoneError:
            pass
        finally:
            hook.remove()
        return outputs[0].flatten(1)

    def last(self, body: nn.Module, outputs: Tensor) -> Tensor:
        """Return the features for outputs of the first part: (B, K) -> (B, D)."""
        assert self.chain is not None, "the body is a chain behind its first part"
        x = outputs.unflatten(1, self.shape)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for name in self.chain:
            x = body.get_submodule(name)(x)
        return body.forward_head(x) if _has_parts_of_timm(body) else x  # type: ignore[operator,no-any-return]


def find_parts(body: nn.Module, image_shape: tuple[int, int, int], name: str) -> Parts:
    """Return the parts of a body: the last one has about `LAST_SHARE` of the layers with weights.

    A part begins where a block, a stage or another layer of a sequence begins.

    Args:
        body: The body, not on the meta device. It is run on an example.
        image_shape: Channels, height and width of the images that it takes.
        name: Name of the backbone, for messages.

    Raises:
        InputError: the body cannot be divided.
    """
    device = next(body.parameters()).device
    example = torch.randn(EXAMPLES, *image_shape, generator=generator(0, "example")).to(device)
    with torch.no_grad(), evaluating(body), torch.random.fork_rng(devices=[]):
        candidates = _candidates(body, *_record(body, example))
        if not candidates:
            raise InputError(
                f"backbone.train: expected all or none for {name}, which has no sequence of blocks, got last"
            )
        chains = [parts for parts in candidates if parts.chain is not None]
        for parts in chains[:MAX_CHECKS]:
            if _is_exact(body, parts, example):
                return parts
    return dataclasses.replace(candidates[0], chain=None)


class _FirstPartDoneError(Exception):
    """The first part has returned its output."""


@dataclass
class _Call:
    """One call of a module.

    Args:
        name: Name of the module in the body.
        source: The tensor that it got, if it got one tensor and nothing else.
        shape: The shape of that tensor for one image; empty without such a tensor.
        target: The tensor that it returned, if it returned one.
    """

    name: str
    source: Key | None
    shape: tuple[int, ...]
    target: Key | None = None


_numbers = itertools.count()


def _key(tensor: object) -> Key | None:
    """Return the key of a tensor as it is now; None for anything else."""
    if not isinstance(tensor, Tensor):
        return None
    if not hasattr(tensor, "pah_number"):  # not `id`, which another tensor may get later
        tensor.pah_number = next(_numbers)  # type: ignore[attr-defined]
    return tensor.pah_number, tensor._version  # type: ignore[attr-defined]


def _record(body: nn.Module, images: Tensor) -> tuple[list[_Call], Key | None]:
    """Run a body and return the calls of its modules, and the tensor to which the last part must lead.

    For a model with timm's methods `forward_features` and `forward_head`, it is the input of the latter.
    """
    calls: list[_Call] = []
    open_calls: list[_Call] = []

    def begin(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        single = len(args) == 1 and not any(value is not None for value in kwargs.values())
        source = _key(args[0]) if single else None
        shape = tuple(args[0].shape[1:]) if source is not None else ()
        open_calls.append(_Call(name, source, shape))
        calls.append(open_calls[-1])

    def end(output: object) -> None:
        open_calls.pop().target = _key(output)

    with ExitStack() as stack:
        for name, module in body.named_modules():
            if module is body:
                continue
            hooks = (
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: begin(name, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda _, args, output: end(output)),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        if _has_parts_of_timm(body):
            maps = body.forward_features(images)  # type: ignore[operator]
            last_key = _key(maps)
            body.forward_head(maps)  # type: ignore[operator]
        else:
            last_key = _key(body(images))
    return calls, last_key


def _candidates(body: nn.Module, calls: Sequence[_Call], last_key: Key | None) -> list[Parts]:
    """Return the possible parts, those nearest to `LAST_SHARE` first; chains have a share within `CHAIN_SHARES`."""
    modules, counts = dict(body.named_modules()), Counter(call.name for call in calls)
    first_calls: dict[str, int] = {}
    for position, call in enumerate(calls):
        first_calls.setdefault(call.name, position)
    layers = [position for name, position in first_calls.items() if _has_own_weights(modules[name])]
    found: list[tuple[float, Parts]] = []
    for position, call in enumerate(calls):
        share = sum(layer >= position for layer in layers) / max(1, len(layers))
        if counts[call.name] > 1 or not 0 < share < 1 or not _begins_part(body, modules, call.name):
            continue
        chain = None
        if call.source is not None and CHAIN_SHARES[0] <= share <= CHAIN_SHARES[1]:
            chain = _chain(calls, call.source, position, last_key)
        trained = _outermost([name for name, first in first_calls.items() if first >= position])
        found.append((abs(share - LAST_SHARE), Parts(call.name, chain, call.shape, trained)))
    return [parts for _, parts in sorted(found, key=lambda entry: entry[0])]


def _begins_part(body: nn.Module, modules: dict[str, nn.Module], name: str) -> bool:
    """Return whether a part may begin with a module: one that has weights and is part of a sequence."""
    parent = modules[name.rpartition(".")[0]]
    is_in_sequence = parent is body or isinstance(parent, nn.Sequential | nn.ModuleList)
    return is_in_sequence and any(p.ndim > 1 for p in modules[name].parameters())


def _chain(calls: Sequence[_Call], source: Key, position: int, last_key: Key | None) -> tuple[str, ...] | None:
    """Return the modules that lead from the tensor `source` to `last_key`, the largest ones; None if there are none."""
    reaching = {last_key}
    for call in reversed(calls[position:]):
        if call.target in reaching and call.source is not None:
            reaching.add(call.source)
    chain: list[str] = []
    key: Key | None = source
    for call in calls[position:]:  # an outer module begins before those inside of it
        if key == last_key:
            break
        if call.source == key != call.target and call.target in reaching:
            chain.append(call.name)
            key = call.target
    return tuple(chain) if key == last_key and chain else None


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that are not inside of another one of them, in the same order."""
    outside = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return tuple(outside)


def _is_exact(body: nn.Module, parts: Parts, images: Tensor) -> bool:
    """Return whether the two parts, one after the other, compute what the body computes, and change no input."""
    whole = body(images)
    outputs = parts.first(body, images)
    kept = outputs.clone()
    try:
        features = parts.last(body, outputs)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):  # e.g. a chain that skips a reshape
        return False
    same_shape = features.shape == whole.shape and torch.equal(kept, outputs)
    return same_shape and bool((features - whole).abs().max() <= TOLERANCE * whole.abs().max())


def _has_own_weights(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def _has_parts_of_timm(body: nn.Module) -> bool:
    return all(hasattr(body, method) for method in ("forward_features", "forward_head"))
