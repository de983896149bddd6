"""The processes that train together, as torch.distributed knows them.

Shape letters: n rows of this rank, N rows of all.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Return how many processes train together; 1 where torch.distributed is not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(mine: Tensor) -> tuple[Tensor, int]:
    """Return the rows [N, ...] of all ranks, in their order, and where those [n, ...] of this one begin."""
    counts = mine.new_zeros(ranks(), dtype=torch.int64)
    counts[dist.get_rank()] = len(mine)
    dist.all_reduce(counts)
    longest = int(counts.max())
    padded = mine.new_zeros(longest, *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(ranks())]
    dist.all_gather(parts, padded)
    whole = torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])
    return whole, int(counts[: dist.get_rank()].sum())
