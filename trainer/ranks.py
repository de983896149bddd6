"""Several processes that train one model: how those that torchrun started meet and part."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from embtables.ranks import averaged, patient, rank, ranks

_MEETINGS = count()


def is_first() -> bool:
    """Return whether this process writes what a run leaves behind: rank 0, or one alone."""
    return int(os.environ.get("RANK", 0)) == 0


def job_size() -> int:
    """Return how many processes torchrun started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(device: torch.device, seconds: int) -> Iterator[None]:
    """Meet the other processes of the job; nothing to do for one alone.

    Args:
        device: what this rank computes on.
        seconds: that ranks wait for each other before they take one for lost.
    """
    if job_size() == 1:
        yield
        return
    for told in ("Please use DTensor", "`torch.distributed"):  # about PyTorch's own calls
        warnings.filterwarnings("ignore", told, FutureWarning)
    if not is_first():
        logging.getLogger("embtables").setLevel(logging.ERROR)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=seconds)
    try:
        store, rank, size = _meeting_place(wait / 2)  # it is tried twice
        # torchrun may keep one store over restarts, with the addresses of ranks that are dead.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"embtables/{attempt}/{next(_MEETINGS)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise OSError(
                "another rank has ended or no longer answers; its own message says why. The same "
                f"command goes on from the last checkpoint ({str(error).splitlines()[0]})"
            ) from error
        raise
    except KeyboardInterrupt:
        _part()  # all ranks stop together
        raise
    _part()


def _part() -> None:
    """Leave the other ranks."""
    gc.collect()  # TorchRec's modules must be gone before the group is: else the process may abort
    patient.cache_clear()
    dist.destroy_process_group()


@cache
def _meeting_place(wait: timedelta) -> tuple[Store, int, int]:
    """Return the store through which the processes find each other, rank and number of ranks.

    One for all meetings: a store of its own for each would be found by ranks that are late or early.
    """
    return next(iter(rendezvous("env://", timeout=wait)))


def own_seed(seed: int) -> None:
    """Seed what this rank draws, other numbers on every rank; those of rank 0 are one process's."""
    if rank() > 0:
        torch.manual_seed(seed + rank())


def average_gradients(weights: list[nn.Parameter]) -> None:
    """Average gradients over ranks; a weight that this rank did not use has zeros."""
    if ranks() == 1 or not weights:
        return
    for weight in weights:
        if weight.grad is None and weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    grads = [weight.grad for weight in weights if weight.grad is not None]
    for grad, mean in zip(grads, averaged(grads), strict=True):
        grad.copy_(mean)


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks."""
    if ranks() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether a flag is set on some rank."""
    return flag if ranks() == 1 else bool(total(torch.tensor(float(flag), device=device)) > 0)
