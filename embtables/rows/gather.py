"""Reading rows by the kernels: places, gathers and combinations of one group, on the CPU.

Shape letters: B rows of a batch, S segments of a group, K rows read for an id, n ids, N = n * K rows
read, O bags, d width of a row, C width of a combined vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embtables import parallel
from embtables.compressor import Bags, Combine, Segments
from embtables.rows import kernels
from embtables.rows.arena import Arena, ArenaReader, pooled
from embtables.rows.pages import in_large_pages
from embtables.rows.pruned import STRUCTURE, PrunedArena

FORMS = ("fp32", "fp16", "int8")
"""Precisions whose rows the kernels read and write; plain floats are as fp32."""

NOTHING = torch.empty(0, 1)
NO_SOURCES = torch.empty(0, dtype=torch.int32)
NO_FACTORS = torch.empty(0)


_SMALL = 2**14
"""Fewer numbers are not kept: the allocator has them at once."""


class Buffers:
    """Memory that is handed out again once nobody holds a view of it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised tensor; the one of this name if it is large enough and free."""
        size = 1
        for length in shape:
            size *= length
        if size < _SMALL:
            return torch.empty(shape, dtype=dtype)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size or _held_elsewhere(kept):
            kept = in_large_pages(torch.empty(size + size // 8, dtype=dtype))
            self._kept[name] = kept
        return kept[:size].view(shape)


def _held_elsewhere(tensor: Tensor) -> bool:
    """Return whether another tensor looks at the same memory."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) > _ALONE


def _count_alone() -> int:
    tensor = torch.empty(1)
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


_ALONE = _count_alone()


@dataclass
class Gathered:
    """What one look-up read, and what its backward needs.

    Attributes:
        place: [N] arena rows, those of an id side by side; -1 where none is read.
        vectors: [S, B, C] of bags of one or pooled features as [B, S, C], else [n, C] or [O, C].
        sources: [N] row of the gradients [.., d] for each read, or empty (`kernels.deal`).
        factors: [n] on the gradients of each read, or empty.
        bags: what is still to be added up, or None.
    """

    place: Tensor
    vectors: Tensor
    sources: Tensor = NO_SOURCES
    factors: Tensor = NO_FACTORS
    bags: Bags | None = None

    def result(self) -> Tensor:
        """Return the vectors as a store's look-up does: [S, B, C], and [n, C] or [O, C] as they are."""
        found = self.vectors
        found = found.transpose(0, 1) if found.dim() == 3 else found
        return found if self.bags is None else pooled(found, self.bags)


class Gather:
    """Reads the rows of one group and combines those of an id.

    Args:
        reader: where the group's tables are in their arena.
        arena: their rows.
    """

    def __init__(self, reader: ArenaReader, arena: Arena) -> None:
        self.reader, self.arena = reader, arena
        self.skips = reader.skips or None  # None compiles kernels that do not look
        self._memory = Buffers()

    @property
    def combine(self) -> Combine:
        """How the rows of an id become one vector."""
        return self.reader.combine

    def multiplies(self, probes: int) -> bool:
        """Return whether the vector of an id is a product of several rows."""
        return self.combine == "mult" and probes > 1

    def __call__(self, rows: Tensor, segments: Segments, bags: Bags | None) -> Gathered:
        """Read rows [K, n]."""
        probes, n = rows.shape
        side_by_side = segments.single and bags is None
        place = _places(self.reader, rows, segments, side_by_side, self._memory)
        stored, dim = stored_rows(self.arena), self.arena.values.shape[1]
        columns = probes if self.combine == "concat" else 1
        if bags is not None and not self.multiplies(probes):
            return _added_up(stored, place, self.skips, probes, columns, bags, self._memory)
        out = self._memory.take("vectors", columns * n, dim)
        if columns == probes:
            parallel.call(kernels.gather, *stored, place, self.skips, out, items=len(place))
        else:
            product = self.multiplies(probes)
            parallel.call(
                kernels.gather_combined, *stored, place, self.skips, product, out,
                items=len(place),
            )  # fmt: skip
        out = out.view(n, columns * dim)
        if side_by_side:
            out = out.view(-1, len(segments.lengths), out.shape[1])
        return Gathered(place, out, bags=bags)


def _places(
    reader: ArenaReader, rows: Tensor, segments: Segments, side_by_side: bool, memory: Buffers
) -> Tensor:
    """Return the arena rows [n * K] of rows [K, n], those of an id together."""
    place = memory.take("place", rows.numel(), dtype=torch.int64)
    skips = reader.skips or None  # None compiles a kernel that does not look
    parallel.call(
        kernels.places, rows, reader.base, segments.bounds, side_by_side, skips, place,
        items=len(place),
    )  # fmt: skip
    return place


def _added_up(
    stored: tuple[Tensor, Tensor],
    place: Tensor,
    skips: bool | None,
    probes: int,
    columns: int,
    bags: Bags,
    memory: Buffers,
) -> Gathered:
    """Read rows at places [n * K] and add them up by bags, those of an id in K columns or in one."""
    count, dim = len(bags.offsets) - 1, stored[0].shape[1]
    divisors, weights = (NO_FACTORS if f is None else f for f in (bags.divisors, bags.weights))
    length = len(place) // probes if len(divisors) or len(weights) else 0
    sources = memory.take("sources", len(place), dtype=torch.int32)
    factors = memory.take("factors", length)
    out = memory.take("bags", count * columns, dim)
    together = len(bags.segments.lengths) if bags.segments.single else 0
    parallel.call(
        kernels.gather_bags, *stored, place, skips, columns,
        bags.offsets, divisors, weights, together, sources, factors, out, items=len(place),
    )  # fmt: skip
    shape = (-1, together, columns * dim) if together else (count, columns * dim)
    return Gathered(place, out.view(shape), sources=sources, factors=factors)


class PrunedGather:
    """Reads the rows of one group, one an id, from an arena without zeros.

    Args:
        reader: where the group's tables are in their arena.
        arena: their rows.
    """

    def __init__(self, reader: ArenaReader, arena: PrunedArena) -> None:
        self.reader, self.arena = reader, arena
        self._memory = Buffers()
        values = arena.values.unsqueeze(1)
        self._values = values.view(torch.int16) if values.dtype == torch.float16 else values
        self._structure = [getattr(arena, name) for name in STRUCTURE]

    def __call__(self, rows: Tensor, segments: Segments, bags: Bags | None) -> Gathered:
        """Read rows [1, n]."""
        from embtables.rows import pruned_kernels

        assert len(rows) == 1, "widths that prune need sharings that read one row an id"
        side_by_side = segments.single and bags is None
        place = _places(self.reader, rows, segments, side_by_side, self._memory)
        out = self._memory.take("vectors", len(place), self.arena.dim)
        scale = getattr(self.arena, "scale", NOTHING)
        parallel.call(
            pruned_kernels.gather_pruned, self._values, scale, *self._structure, place, out,
            items=len(place),
        )  # fmt: skip
        if bags is not None:
            every = torch.arange(len(out))
            return _added_up((out, NOTHING), every, None, 1, 1, bags, self._memory)
        if side_by_side:
            out = out.view(-1, len(segments.lengths), self.arena.dim)
        return Gathered(place, out)


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
    parallel.call(
        kernels.deal, keys, 1, NO_SOURCES, NO_FACTORS, shift, counts, entries, NO_FACTORS, starts
    )
    heads = torch.full((parallel.MOST, 1 << shift), -1, dtype=torch.int32)
    parallel.call(kernels.count_equal, shift, entries, starts, heads, found)
    return found


def stored_rows(arena: Arena) -> tuple[Tensor, Tensor]:
    """Return the stored rows of an arena and their scales (empty unless int8)."""
    return arena.values, arena.scale if "scale" in arena.names else NOTHING
