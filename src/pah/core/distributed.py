"""Several processes that learn one run together, started by `torchrun`: who takes which part, and what they add up to.

Each process takes its slice of every batch. Where there is one process, everything here leaves things as they are.
N: images of a whole batch, n: of a process's slice.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pah.core.config import InputError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # a process may wait so long for another, which reads data or writes a checkpoint


class LostError(Exception):
    """Another process of this run ended, so that this one cannot go on."""


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process and the others that `torchrun` started are one group; alone it is nothing."""
    if not launched():
        yield
        return
    # tensors on a GPU go through nccl, what the processes agree on otherwise through gloo
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, processes = _meeting()
    with _reaching_others():
        dist.init_process_group(
            backend, store=PrefixStore("group", store), rank=rank, world_size=processes, timeout=PATIENCE
        )
    try:
        yield
    finally:
        dist.destroy_process_group()
        _meeting.cache_clear()  # now, and not when Python ends: threads of the store would outlive it


def leave(status: int) -> NoReturn:
    """End this process, one of several, at once: torch's threads may outlive the group, and Python's own end would then
    abort the process now and then, though all is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def launched() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def local_index() -> int:
    """Which of the processes on its machine this is, from 0: it has the GPU of that number."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def first_to_speak() -> bool:
    """Whether this process is the first of its group to ask: what ends them all is said once."""
    if not launched():
        return True
    try:
        return bool(_meeting()[0].add("spoken", 1) == 1)
    except (dist.DistError, RuntimeError):  # the store is gone as well
        return True


@cache
def _meeting() -> tuple[Store, int, int]:
    """The store that torchrun keeps for its processes, which of them this is, and how many there are."""
    store, rank, processes = next(iter(rendezvous("env://")))
    return store, rank, processes


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return index() == 0


def own_part(images: int) -> slice:
    """This process's slice of so many images: the slices are of nearly equal size and in the order of processes."""
    sizes = [len(part) for part in torch.arange(images).tensor_split(count())]
    start = sum(sizes[: index()])
    return slice(start, start + sizes[index()])


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, bit for bit the same in each; in one message."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _reaching_others():
        dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def together(part: Tensor) -> Tensor:
    """The rows (n, …) of all processes, in their order: (N, …)."""
    if count() == 1:
        return part
    rows = torch.zeros(count(), dtype=torch.int64, device=part.device)
    rows[index()] = len(part)
    add_up([rows])
    sizes: list[int] = rows.tolist()
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    with _reaching_others():
        dist.all_gather(parts, padded)
    return torch.cat([rows_of[:size] for rows_of, size in zip(parts, sizes, strict=True)])


def any_says(yes: bool) -> bool:
    """Whether any process says yes."""
    if count() == 1:
        return yes
    said = torch.tensor(int(yes))
    add_up([said])
    return bool(said)


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, or the InputError that it raises there: the others do not call it."""
    if count() == 1:
        return make()
    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = make()
        except InputError as error:
            box[1] = error
    with _reaching_others():
        dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]  # type: ignore[no-any-return]


def agree(tensors: Sequence[Tensor]) -> None:
    """Give each tensor the value that it has in the first process."""
    if count() == 1:
        return
    with _reaching_others(), torch.no_grad():
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


@contextmanager
def _reaching_others() -> Iterator[None]:
    """Inside, a message that does not get through says that another process is gone."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise LostError("expected an answer from every process of this run, but one has ended") from error
