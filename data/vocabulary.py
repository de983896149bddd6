"""Dictionaries of raw keys: counted in pieces, ordered by frequency, looked up by hashing.

Shape letters: n values of one window, V distinct keys, R rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data.hashing import MISSING
from data.splits import splitmix64

Counted = tuple[np.ndarray, np.ndarray]
"""Sorted distinct keys [V] int64 and how often each occurs [V] int64."""


class Lookup:
    """Finds keys among V distinct ones by hash tables in which nobody probes for a free slot.

    The keys that lose their slot of the first table to another key go to a second, smaller one, and
    so on. So whole arrays go through each table at once, and nearly all are done after the first.

    Args:
        keys: [V] int64, no two alike.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self._tables: list[tuple[_Hash, np.ndarray]] = []
        left = np.arange(len(keys), dtype=np.int32)
        while len(left):
            bits = len(left).bit_length()
            hashed = _Hash.of(len(self._tables), bits)
            slots = np.zeros(1 << bits, np.int32)
            at = hashed(keys[left])
            slots[at] = left
            self._tables.append((hashed, slots))
            left = left[slots[at] != left]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return [n] int32, the place of each key [n], or -1 where it is not among the V."""
        if not self._tables:
            return np.full(len(keys), -1, np.int32)
        hashed, slots = self._tables[0]
        found = slots[hashed(keys)]
        missed = np.flatnonzero(self.keys[found] != keys)
        for hashed, slots in self._tables[1:]:
            asked = keys[missed]
            candidate = slots[hashed(asked)]
            found[missed] = candidate
            missed = missed[self.keys[candidate] != asked]
        found[missed] = -1
        return found


@dataclass(frozen=True)
class _Hash:
    """The upper bits of a product: any two keys meet with probability 2 / slots or less."""

    factor: np.uint64
    shift: np.uint64

    @classmethod
    def of(cls, number: int, bits: int) -> _Hash:
        """Return the hash of the table of this number, which has 2**bits slots."""
        (factor,) = splitmix64(np.array([number], np.uint64)) | np.uint64(1)
        return cls(factor, np.uint64(64 - bits))

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        return keys.view(np.uint64) * self.factor >> self.shift


def count_keys(pieces: Iterable[np.ndarray]) -> Counted:
    """Return the distinct keys of a stream of arrays; memory grows with them, not with the stream."""
    keys, counts = merge([])
    known = Lookup(keys)
    pending: list[Counted] = []
    for piece in pieces:
        found = known.find(piece)
        old = found >= 0
        counts += np.bincount(found[old], minlength=len(keys))
        pending.append(np.unique(piece[~old], return_counts=True))
        # Waiting until the new parts outweigh the old keeps the work at O(V log V).
        if sum(len(new) for new, _ in pending) > len(keys):
            keys, counts = merge([(keys, counts), *pending])
            known, pending = Lookup(keys), []
    return merge([(keys, counts), *pending])


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


def by_frequency(counted: Counted, min_count: int) -> Counted:
    """Return the keys of a closed table [R] int64 and their counts [R] int64, one for each id.

    Id 0 is the out-of-vocabulary row: its key is void, its count that of the training keys that occur
    less than `min_count` times. The other ids are the other training keys, and `MISSING` if it occurs
    at all, by falling count, then key.
    """
    keys, counts = counted
    kept = (counts >= min_count) | (keys == MISSING)
    rare = counts[~kept].sum(dtype=np.int64)
    keys, counts = keys[kept], counts[kept]
    # The keys are in rising order, and a stable sort keeps them so among equal counts.
    order = np.argsort(-counts, kind="stable")
    zero = np.zeros(1, np.int64)
    return np.concatenate([zero, keys[order]]), np.concatenate([zero + rare, counts[order]])


class Dictionary:
    """The ids of a closed table: 0 for any key that it does not know.

    Args:
        keys: [R] int64 raw key of each id; keys[0] is void.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self._lookup = Lookup(keys[1:])

    def ids(self, keys: np.ndarray) -> np.ndarray:
        """Return the ids [n] int32 of raw keys [n]."""
        return self._lookup.find(keys) + np.int32(1)
