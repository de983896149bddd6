"""Reading rows by the kernels: places, gathers and combinations of one group, on the CPU.

Shape letters: B rows of a batch, S segments of a group, K rows read for an id, n ids, N = n * K rows
read, d width of a row, C width of a combined vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embtables import parallel
from embtables.compressor import Combine, Segments
from embtables.rows import kernels
from embtables.rows.arena import Arena, ArenaReader

FORMS = ("fp32", "fp16", "int8")
"""Precisions whose rows the kernels read and write; plain floats are as fp32."""

NOTHING = torch.empty(0, 1)


class Buffers:
    """Memory that is handed out again once nobody holds a view of it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised tensor; the one of this name if it is large enough and free."""
        size = 1
        for length in shape:
            size *= length
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size or _held_elsewhere(kept):
            kept = self._kept[name] = torch.empty(size + size // 8, dtype=dtype)
        return kept[:size].view(shape)


def _held_elsewhere(tensor: Tensor) -> bool:
    """Return whether another tensor looks at the same memory."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) > _ALONE


def _count_alone() -> int:
    tensor = torch.empty(1)
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


_ALONE = _count_alone()


class Gather:
    """Reads the rows of one group and combines those of an id.

    Args:
        reader: where the group's tables are in their arena.
        arena: their rows.
    """

    def __init__(self, reader: ArenaReader, arena: Arena) -> None:
        self.reader, self.arena = reader, arena
        self._memory = Buffers()

    @property
    def combine(self) -> Combine:
        """How the rows of an id become one vector."""
        return self.reader.combine

    def __call__(
        self, rows: Tensor, segments: Segments, factors: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return places [N], vectors [B, S, C] or [n, C], and the factors [N, d] of products."""
        probes, n = rows.shape
        dim, stored = self.arena.values.shape[1], stored_rows(self.arena)
        place = self._memory.take("place", probes * n, dtype=torch.int64)
        parallel.call(
            kernels.places, rows, self.reader.base, segments.bounds, segments.single, place
        )
        kept = NOTHING
        if self.combine == "concat" or probes == 1:
            out = self._memory.take("vectors", probes * n, dim)
            parallel.call(kernels.gather, *stored, place, out)
            out = out.view(n, probes * dim)
        else:
            how = kernels.SUM if self.combine == "sum" else kernels.MULT
            if factors and self.combine == "mult":
                kept = self._memory.take("factors", probes * n, dim)
            out = self._memory.take("vectors", n, dim)
            parallel.call(kernels.gather_combined, *stored, place, how, kept, out)
        if segments.single:
            out = out.view(-1, len(segments.lengths), out.shape[1])
        return place, out, kept


def bucket_shift(rows: int) -> int:
    """Return log2 of the rows of a bucket, for `kernels.deal`."""
    return max(0, (rows - 1).bit_length() - kernels.BUCKET_BITS)


def occurrences(keys: Tensor, rows: int) -> Tensor:
    """Return [n], how often each of the keys [n] in 0 .. rows - 1 occurs, on the CPU."""
    shift, threads = bucket_shift(rows), parallel.thread_count()
    buckets = (rows - 1 >> shift) + 1
    counts = torch.empty(threads, buckets, dtype=torch.int64)
    entries, found = torch.empty_like(keys), torch.empty_like(keys)
    starts = torch.empty(buckets + 1, dtype=torch.int64)
    parallel.call(kernels.deal, keys, shift, counts, entries, starts)
    heads = torch.full((parallel.MOST, 1 << shift), -1, dtype=torch.int32)
    parallel.call(kernels.count_equal, shift, entries, starts, heads, found)
    return found


def stored_rows(arena: Arena) -> tuple[Tensor, Tensor]:
    """Return the stored rows of an arena and their scales (empty unless int8)."""
    return arena.values, getattr(arena, "scale", NOTHING)


def as_vectors(found: Tensor) -> Tensor:
    """Return vectors as a store's look-up does: [S, B, C] of [B, S, C], and [n, C] as they are."""
    return found.transpose(0, 1) if found.dim() == 3 else found
