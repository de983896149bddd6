"""Dictionaries of raw keys: counted in pieces, ordered by frequency, looked up by bisection.

Shape letters: n values of one window, V distinct keys, R rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.hashing import MISSING

Counted = tuple[np.ndarray, np.ndarray]
"""Sorted distinct keys [V] int64 and how often each occurs [V] int64."""

CACHED = 2**17
"""Keys of a dictionary that the processor's cache holds, about."""


def count_keys(pieces: Iterable[np.ndarray]) -> Counted:
    """Return the distinct keys of a stream of arrays; memory grows with them, not with the stream."""
    total = merge([])
    pending: list[Counted] = []
    for piece in pieces:
        pending.append(np.unique(piece, return_counts=True))
        # Merging once the new parts outweigh the old keeps the work at O(V log V) a doubling.
        if sum(len(keys) for keys, _ in pending) > len(total[0]):
            total, pending = merge([total, *pending]), []
    return merge([total, *pending])


def merge(parts: list[Counted]) -> Counted:
    """Add up the counts of several sorted key lists."""
    parts = [part for part in parts if len(part[0])]
    if len(parts) < 2:
        return parts[0] if parts else (np.empty(0, np.int64), np.empty(0, np.int64))
    keys, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts, first)


@dataclass(frozen=True)
class Dictionary:
    """The ids of a closed table.

    Id 0 is the out-of-vocabulary row: any key not below. The other ids are the training keys with
    at least `min_count` occurrences, and `MISSING` if it occurs at all, by falling count, then key.

    Attributes:
        keys: [R] int64 raw key of each id; keys[0] stands for nothing.
        counts: [R] int64 occurrences in the training rows; counts[0] are those of the rare keys.
        sorted_keys: [R-1] the known keys in rising order.
        sorted_ids: [R-1] the id of each.
    """

    keys: np.ndarray
    counts: np.ndarray
    sorted_keys: np.ndarray
    sorted_ids: np.ndarray

    @classmethod
    def of(cls, counted: Counted, min_count: int) -> Dictionary:
        """Build the dictionary of counted training keys."""
        keys, counts = counted
        kept = (counts >= min_count) | (keys == MISSING)
        rare = counts[~kept].sum(dtype=np.int64)
        keys, counts = keys[kept], counts[kept]
        order = np.lexsort((keys, -counts))
        ids = np.empty(len(keys), np.int64)
        ids[order] = np.arange(1, len(keys) + 1)
        zero = np.zeros(1, np.int64)
        by_id = np.concatenate([zero, keys[order]]), np.concatenate([zero + rare, counts[order]])
        return cls(*by_id, keys, ids)

    def ids(self, keys: np.ndarray) -> np.ndarray:
        """Return the ids [n] int64 of raw keys [n]."""
        if len(self.sorted_keys) == 0:
            return np.zeros(len(keys), np.int64)
        if len(self.sorted_keys) < CACHED:
            return self._bisect(keys)
        # Bisecting a large table in random order misses the cache at every step (4 times slower).
        distinct, inverse = np.unique(keys, return_inverse=True)
        return self._bisect(distinct)[inverse]

    def _bisect(self, keys: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self.sorted_keys, keys)
        at[at == len(self.sorted_keys)] = 0
        return np.where(self.sorted_keys[at] == keys, self.sorted_ids[at], 0)
