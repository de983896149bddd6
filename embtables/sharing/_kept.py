"""Which ids of closed tables are kept, and the place of each among the kept ones of its table.

    kept(x) = the k ids with the largest training counts, of equal counts the smaller ids
    place(x) = number of kept ids below x

A table whose ids come by falling count keeps a prefix, ids 0 .. k - 1, and needs no map. Any other
has a bit for each id in 64-bit words, and for each 512 ids the number of kept ids before them:
8 * ceil(n / 64) + 4 * ceil(n / 512) bytes, 1.06 bits an id (Jacobson, Space-efficient Static Trees
and Graphs, FOCS 1989).

Shape letters: S segments of a group, K rows read for an id, n ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embtables.compressor import Segments, Table

_WORD, _BLOCK = 64, 512
_PREFIX = -1


def require_counts(kind: str, table: Table) -> np.ndarray:
    """Return the training counts of a table.

    Raises:
        ValueError: an open vocabulary, no counts, or not one for each id.
    """
    if table.open:
        raise ValueError(
            f"table {table.name!r}: {kind} keeps ids of a closed vocabulary; "
            "with an open one use hash, double_hash or multiplex"
        )
    if table.counts is None:
        raise ValueError(
            f"table {table.name!r}: {kind} keeps the most frequent ids, but there are no training "
            "counts; give them as Vocabulary(counts=...), or use hash, which needs none"
        )
    if len(table.counts) != table.rows:
        raise ValueError(
            f"table {table.name!r}: {len(table.counts):,} training counts for {table.rows:,} ids; "
            "Vocabulary(counts=...) takes one for each id"
        )
    return table.counts


def most_frequent(counts: np.ndarray, kept: int) -> np.ndarray:
    """Return [n], whether an id is among the k with the largest counts [n], ties by smaller id."""
    n = len(counts)
    if kept >= n:
        return np.ones(n, bool)
    last = np.partition(counts, n - kept)[n - kept]
    chosen = counts > last
    chosen[np.flatnonzero(counts == last)[: kept - np.count_nonzero(chosen)]] = True
    return chosen


class Kept(nn.Module):
    """The kept ids of the tables of a group.

    Args:
        tables: [S] logical table of each segment; those of one name share a map. Without counts the
            map is empty until a saved one is loaded.
        kept: [S] number of ids that are kept.
        first: [S] row of the first kept id; the others follow.
    """

    words: Tensor
    ranks: Tensor
    layout: Tensor

    def __init__(self, tables: Sequence[Table], kept: Sequence[int], first: Sequence[int]) -> None:
        super().__init__()
        starts: dict[str, tuple[int, int]] = {}
        words, ranks = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        word = block = 0
        for table, count in zip(tables, kept, strict=True):
            if table.name in starts:
                continue
            starts[table.name] = (_PREFIX, _PREFIX) if table.ordered else (word, block)
            if not table.ordered:
                chosen = np.zeros(table.rows, bool)
                if table.counts is not None:
                    chosen = most_frequent(table.counts, count)
                for held, new in zip((words, ranks), rank_directory(chosen), strict=True):
                    held.append(new)
                word, block = word + len(words[-1]), block + len(ranks[-1])
        self.register_buffer("words", torch.from_numpy(np.concatenate(words)))
        self.register_buffer("ranks", torch.from_numpy(np.concatenate(ranks)))
        places = zip(*(starts[table.name] for table in tables), strict=True)
        layout = torch.tensor([list(kept), list(first), *map(list, places)])
        self.register_buffer("layout", layout, persistent=False)

    @staticmethod
    def bytes(table: Table) -> int:
        """Return the bytes of the map of a table."""
        return 0 if table.ordered else 8 * -(-table.rows // _WORD) + 4 * -(-table.rows // _BLOCK)

    def forward(self, rows: Tensor, ids: Tensor, segments: Segments) -> Tensor:
        """Send kept ids to rows of their own.

        Args:
            rows: [K, n] what the other ids read; may be written to.
            ids: [n].
            segments: how they are cut into S segments.

        Returns:
            [K, n]: (first + place, -1, ..., -1) of a kept id, the given rows of any other.
        """
        if ids.device.type == "cpu":
            from embtables import parallel
            from embtables.rows import kernels

            return parallel.call(
                kernels.put_kept, rows, ids, self.words, self.ranks, self.layout, segments.bounds,
                items=len(ids),
            )  # fmt: skip
        return self.put(rows, ids, segments)

    def put(self, rows: Tensor, ids: Tensor, segments: Segments) -> Tensor:
        """Do the same in tensor code."""
        places = self.places(ids, segments)
        own = torch.full_like(rows, -1)
        own[0] = (places + segments.spread(self.layout[1])).flatten()
        return torch.where(places.flatten() < 0, rows, own)

    def places(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return the place of ids [n] among the kept ones, -1 of others: [S, B] or [n]."""
        ids = segments.shape(ids).long()
        kept, _, word, block = segments.spread(self.layout)
        prefix = torch.where(ids < kept, ids, -1)
        if not len(self.words):
            return prefix
        eight = torch.arange(_BLOCK // _WORD, device=ids.device)
        # Ids of a prefix table are computed too, and dropped: they may point anywhere.
        block = (block + ids // _BLOCK).clamp(0, len(self.ranks) - 1)
        at = (word + ids // _BLOCK * len(eight)).unsqueeze(-1) + eight
        bits = self.words[at.clamp(0, len(self.words) - 1)]
        below = (ids % _BLOCK).unsqueeze(-1) - _WORD * eight
        before = torch.where(below >= _WORD, -1, (1 << below.clamp(0, _WORD - 1)) - 1)
        place = self.ranks[block] + ones(bits & before).sum(-1)
        inside = (below >= 0) & (below < _WORD)
        own = (bits >> below.clamp(0, _WORD - 1) & 1).bool() & inside
        found = torch.where(own.any(-1), place, -1)
        return torch.where(word == _PREFIX, prefix, found)


def rank_directory(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the words and ranks of bits [n]: int64 [ceil(n / 64)] and int32 [ceil(n / 512)]."""
    padded = np.zeros(-(-len(chosen) // _WORD) * _WORD, bool)
    padded[: len(chosen)] = chosen
    words = np.packbits(padded, bitorder="little").view("<i8")
    counts = np.add.reduceat(chosen, np.arange(0, len(chosen), _BLOCK), dtype=np.int64)
    return words, (np.cumsum(counts) - counts).astype(np.int32)


def ones(bits: Tensor) -> Tensor:
    """Return the number of ones in each int64 (Warren, Hacker's Delight, section 5-1)."""
    bits = bits - ((bits >> 1) & 0x5555555555555555)
    bits = (bits & 0x3333333333333333) + ((bits >> 2) & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (bits * 0x0101010101010101) >> 56
