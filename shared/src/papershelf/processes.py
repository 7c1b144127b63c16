"""One training run in several processes: those that ``torchrun`` starts, those that read data, and how all stop.

Without torchrun there is one process, and :class:`Place` does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from papershelf.devices import device_named
from papershelf.errors import UserError


class Place(NamedTuple):
    """Where this process stands: its device, its number, and how many there are."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def summed(self, x: Tensor) -> Tensor:
        """The sum over all processes, in each of them; of a copy."""
        x = x.detach().clone()
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def any(self, condition: bool) -> bool:
        """Whether the condition holds in some process."""
        if self.world == 1:
            return condition
        return bool(self.summed(torch.tensor(float(condition), device=self.device)))


@contextmanager
def joined(device: str) -> Iterator[Place]:
    """This process's place among those that torchrun started, or alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each process of a machine takes a GPU of its own.

    Raises:
        UserError: no such device.
    """
    chosen = device_named(device)
    if "WORLD_SIZE" not in os.environ or "LOCAL_RANK" not in os.environ:
        yield Place(chosen)
        return
    backend = "gloo"
    if chosen.type == "cuda":
        backend, chosen = "nccl", torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group(backend, device_id=chosen if backend == "nccl" else None)
    try:
        yield Place(chosen, dist.get_rank(), dist.get_world_size())
        dist.barrier()  # gloo aborts now and then where one process goes while another still talks
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a question to be asked between steps; a second one kills."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals(_: int = 0) -> None:
    """For processes that read data: Ctrl-C is their parent's business, and they end when told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read(samples: Dataset, place: Place, workers: int, **options: object) -> Iterator:
    """What a DataLoader reads, in processes of its own where there are workers.

    Args:
        samples: what is read.
        place: where the batches go; their memory is pinned for a GPU.
        workers: processes that read.
        options: of the DataLoader, such as a sampler.

    Raises:
        UserError: of the samples, without the worker's traceback that PyTorch puts around it.
    """
    pin = place.device.type == "cuda"
    try:
        yield from DataLoader(samples, num_workers=workers, worker_init_fn=leave_signals, pin_memory=pin, **options)
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from error
