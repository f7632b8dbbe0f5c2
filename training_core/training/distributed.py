"""Several processes (ranks) that train one model together with torch.distributed; without a launcher there is only one.

Data-parallel training splits the rows of every batch; the evaluations of a population are distributed model by model.
All ranks draw the same random numbers and apply the same updates, so they hold the same weights. Only the first rank
reports, writes checkpoints and keeps the result.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from training_core.store.atomic import write_atomically

RENDEZVOUS_HOST = "FORGE_RENDEZVOUS_HOST"  # the first rank's address, for networks that do not resolve its host name
_WAIT_S = 120.0
_TIMEOUT = timedelta(minutes=30)

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes that train this model."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Return whether this process is the one that reports, saves and keeps the result."""
    return rank() == 0


@contextmanager
def joined(meeting: Path) -> Iterator[None]:
    """Join the ranks started by `torchrun` or a Slurm step (`srun`) within the context; do nothing without either.

    `meeting` is a folder shared by all ranks. In a Slurm step the first rank writes its address there, with
    FORGE_RENDEZVOUS_HOST or else its host name as the host. On GPUs each rank uses the one with its local rank.

    Raises:
        ValueError: when the first rank's address does not appear, or there are fewer GPUs than ranks on this node.
    """
    launched, environment = _launched()
    if launched <= 1:
        yield
        return
    number, local = environment
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        visible = torch.cuda.device_count()
        if visible > 1:  # with a single visible GPU the launcher has assigned each rank its own
            if local >= visible:
                raise ValueError(
                    f"process {local} of this node has no GPU of its own: launch at most {visible} on a node, or hide "
                    "the GPUs (CUDA_VISIBLE_DEVICES=) to use the cores"
                )
            torch.cuda.set_device(local)
    if "RANK" in os.environ:
        dist.init_process_group(backend, rank=number, world_size=launched, timeout=_TIMEOUT)
    else:
        store = _meet(meeting, number, launched)
        dist.init_process_group(backend, store=store, rank=number, world_size=launched, timeout=_TIMEOUT)
    yield
    # Not in a finally: after an error it would wait for ranks that are themselves waiting for this one.
    dist.destroy_process_group()


def rows_of_this_rank(batch: Tensor) -> tuple[Tensor, float]:
    """Return this rank's rows of `batch` (batch, ...), every world_size-th, and their share of all rows.

    Raises:
        ValueError: when there are fewer rows than ranks.
    """
    size = world_size()
    if size == 1:
        return batch, 1.0
    if batch.shape[0] < size:
        raise ValueError(
            f"a batch of {batch.shape[0]} rows cannot be split among {size} processes: raise batch_size, or launch "
            "fewer processes"
        )
    own = batch[rank() :: size]
    return own, own.shape[0] / batch.shape[0]


def sum_gradients(parameters: Iterable[Tensor], share: float) -> None:
    """Replace every gradient by the sum over ranks of gradient times `share`.

    For a loss that is a mean over rows this is the gradient of the whole batch, equal to that of a single process up to
    rounding.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients]).mul_(share)
    dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def mean_scalars(values: Mapping[str, float], share: float, device: torch.device) -> dict[str, float]:
    """Return the mean over ranks of each value, weighted by each rank's `share`."""
    if world_size() == 1:
        return dict(values)
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=device) * share
    dist.all_reduce(stacked)
    return dict(zip(values, stacked.tolist(), strict=True))


def measured_by_all(measure: Callable[[T], float], items: Sequence[T], device: torch.device) -> list[float]:
    """Return `measure` of every item on all ranks, each computed by one rank and passed on exactly (float64)."""
    if world_size() == 1:
        return [measure(item) for item in items]
    measured = torch.zeros(len(items), dtype=torch.float64, device=device)
    for index in range(rank(), len(items), world_size()):
        measured[index] = measure(items[index])
    dist.all_reduce(measured)
    values: list[float] = measured.tolist()
    return values


def wait_for_all() -> None:
    """Wait until all ranks arrive; whatever the first rank wrote before is then on disk."""
    if world_size() > 1:
        dist.barrier()


def require_same(value: int, what: str, device: torch.device) -> None:
    """Check that all ranks have the same `value`.

    Raises:
        ValueError: on every rank, when they differ.
    """
    if world_size() == 1:
        return
    ends = torch.tensor([value, -value], device=device)  # one MAX reduction gives the maximum and minus the minimum
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise ValueError(
            f"{what} differs between the processes ({-int(ends[1])} to {int(ends[0])}): the forge home must lie on a "
            "file system that all nodes share"
        )


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite `tensors` with those of the first rank."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def _launched() -> tuple[int, tuple[int, int]]:
    """The number of launched processes, and this one's global and local rank."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    # SLURM_PROCID is set in batch scripts as well; only a step (srun) sets SLURM_STEP_NUM_TASKS.
    if "RANK" not in os.environ:
        names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    size, number, local = (int(os.environ.get(name, default)) for name, default in zip(names, "100", strict=True))
    return size, (number, local)


def _meet(meeting: Path, number: int, size: int) -> TCPStore:
    """The rendezvous store of a Slurm step, which the first rank opens on a free port of its host."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")  # a requeued job keeps its job id
    step = "-".join(os.environ.get(name, "0") for name in names)
    address = meeting / f"address-{step}"
    if number == 0:
        store = TCPStore("0.0.0.0", 0, size, is_master=True, timeout=_TIMEOUT, wait_for_workers=False)
        write_atomically(address, f"{os.environ.get(RENDEZVOUS_HOST) or socket.gethostname()} {store.port}")
        return store
    end = time.monotonic() + _WAIT_S
    while not address.exists():
        if time.monotonic() > end:
            raise ValueError(
                f"the first process did not write {address} within {_WAIT_S:.0f} s: it must run, and {meeting} must "
                "lie on a file system that all nodes share"
            )
        time.sleep(0.1)
    host, port = address.read_text().split()
    return TCPStore(host, int(port), size, is_master=False, timeout=_TIMEOUT)
