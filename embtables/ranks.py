"""The processes that train together, as torch.distributed knows them.

Shape letters: n rows of this rank, N rows of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def ranks() -> int:
    """Return how many processes train together; 1 where torch.distributed is not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, 0 where it is alone."""
    return dist.get_rank() if ranks() > 1 else 0


@cache
def patient() -> dist.ProcessGroup:
    """Return the group in which ranks wait for one that has long work to do, such as a file to write.

    That one has died is noticed at once in any group; only one that hangs is waited for so long.
    """
    group = dist.new_group(backend="gloo", timeout=timedelta(hours=2))
    assert isinstance(group, dist.ProcessGroup)
    return group


def on_first(act: Callable[[], T]) -> T:
    """Do something on rank 0 only; all ranks return what it returned, or raise what it raised."""
    if ranks() == 1:
        return act()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = act()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, group=patient())
    if found[1] is not None:
        raise found[1]
    return found[0]


def summed(mine: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, with gradients: each rank's reaches all of them."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(mine)


def averaged(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the means of gradients over ranks, in one collective: all give as many, of one shape."""
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= ranks()
    means = flat.split([grad.numel() for grad in grads])
    return [mean.view_as(grad) for mean, grad in zip(means, grads, strict=True)]


def gathered(mine: Tensor) -> tuple[Tensor, int]:
    """Return the rows [N, ...] of all ranks in their order, and where those of this one begin.

    Args:
        mine: [n, ...], where n may differ between ranks.
    """
    counts = mine.new_zeros(ranks(), dtype=torch.int64)
    counts[rank()] = len(mine)
    dist.all_reduce(counts)
    padded = mine.new_zeros(int(counts.max()), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(ranks())]
    dist.all_gather(parts, padded)
    whole = torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])
    return whole, int(counts[: rank()].sum())
