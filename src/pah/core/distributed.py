"""Training of one run in several processes that `torchrun` starts: slices of batches, sums and broadcasts.

Each process takes its slice of every global batch. The main process, of rank 0, reads configurations and writes
results. With a single process, the functions here return their input or do nothing.
N: images of the global batch, n: images of this process's slice.
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
TIMEOUT = timedelta(minutes=30)  # long enough for another process to read data or to write a checkpoint


class ProcessLostError(Exception):
    """Another process of this run has ended, so that this one cannot continue."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join this process with the others that `torchrun` started; does nothing if it is the only one."""
    if not is_distributed():
        yield
        return
    # tensors on a GPU use nccl, everything else that the processes exchange uses gloo
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, process_rank, processes = _torchrun_store()
    with _communication():
        dist.init_process_group(
            backend, store=PrefixStore("group", store), rank=process_rank, world_size=processes, timeout=TIMEOUT
        )
    try:
        yield
    finally:
        dist.destroy_process_group()
        _torchrun_store.cache_clear()  # now, not when Python exits: threads of the store would live longer than it


def exit_process(status: int) -> NoReturn:
    """Exit at once with this status, without Python's own clean-up.

    Threads of torch may live longer than the process group. Python's clean-up would then sometimes abort the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_distributed() -> bool:
    """Return whether `torchrun` started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def local_rank() -> int:
    """Return the number of this process among those on its machine, from 0; it is also the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if is_distributed() else 0


def claim_error_report() -> bool:
    """Return whether this process should print the error that ends all processes; only the first caller should."""
    if not is_distributed():
        return True
    try:
        return bool(_torchrun_store()[0].add("spoken", 1) == 1)
    except (dist.DistError, RuntimeError):  # the store is lost as well
        return True


@cache
def _torchrun_store() -> tuple[Store, int, int]:
    """Return the store that torchrun keeps for its processes, this process's rank, and the number of processes."""
    store, process_rank, processes = next(iter(rendezvous("env://")))
    return store, process_rank, processes


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def own_slice(images: int) -> slice:
    """Return this process's slice of a number of images: slices are of nearly equal size, in the order of ranks."""
    sizes = [len(part) for part in torch.arange(images).tensor_split(world_size())]
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message; the sums are equal bit for bit in each."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _communication():
        dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of ranks: (n, …) -> (N, …)."""
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    all_reduce_sum([counts])
    sizes: list[int] = counts.tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    with _communication():
        dist.all_gather(gathered, padded)
    return torch.cat([padded_rows[:size] for padded_rows, size in zip(gathered, sizes, strict=True)])


def any_process(condition: bool) -> bool:
    """Return whether the condition is true in any process."""
    if world_size() == 1:
        return condition
    count = torch.tensor(int(condition))
    all_reduce_sum([count])
    return bool(count)


def run_on_main_process(function: Callable[[], T]) -> T:
    """Call `function` in the main process only, and return its result in every process.

    Raises:
        InputError: the function raised it in the main process.
    """
    if world_size() == 1:
        return function()
    result_and_error: list[Any] = [None, None]
    if is_main_process():
        try:
            result_and_error[0] = function()
        except InputError as error:
            result_and_error[1] = error
    with _communication():
        dist.broadcast_object_list(result_and_error)
    result, input_error = result_and_error
    if input_error is not None:
        raise input_error
    return result  # type: ignore[no-any-return]


def broadcast_from_main(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its value in the main process."""
    if world_size() == 1:
        return
    with _communication(), torch.no_grad():
        for tensor in tensors:
            values = tensor.contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)


@contextmanager
def _communication() -> Iterator[None]:
    """Turn a failed message between processes into a ProcessLostError."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        raise ProcessLostError("expected an answer from every process of this run, but one has ended") from error
