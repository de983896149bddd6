"""Batches of a prepared split: shuffled, resumable at any batch, shared among ranks, prefetched.

Shape letters: N rows of the split, W rows of a group read together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from data.batch import Batch
from data.columns import Columns, Fields
from data.order import Shuffle
from data.prefetch import prefetch
from data.store import Split, Store

WINDOW = 2**20
"""Rows shuffled together."""

GROUP = 2**14
"""Rows read together, about: a fancy index of many rows, and batches that the cache still holds."""


class Loader:
    """Iterates over the batches of one epoch; the next iteration gives the next epoch.

    The global batches do not depend on the number of ranks: rank r takes the rows r, r + world_size,
    ... of each. So every rank makes as many steps, and the sizes differ by one row at most.

    Args:
        store: a prepared data set.
        split: "train", "valid" or "test".
        batch_size: rows of a global batch (over all ranks); the last one may be short.
        shuffle: another order each epoch, by seed and epoch; else the order of the input.
        seed: of the order.
        rank: this process among world_size.
        world_size: number of processes.
        drop_last: leave out a short last batch.
        prefetch: batches made ahead in a thread; 0 makes them in the caller's.
        window: rows shuffled together where the split is larger.

    Raises:
        ValueError: unknown split, batch size below 1, or rank outside 0 .. world_size-1.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        prefetch: int = 2,
        window: int = WINDOW,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 .. {world_size - 1}, got {rank}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.prefetch = prefetch
        self.window = window
        self.epoch = 0
        self._batch = 0
        self._split = store.split(split)
        self._fields = Fields.of(store.schema)
        rows = self._split.rows
        self.rows = rows - rows % batch_size if drop_last else rows

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-self.rows // self.batch_size)

    def set_position(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin at a batch of an epoch, both counted from 0.

        Raises:
            ValueError: no such batch.
        """
        if not 0 <= batch <= len(self) or epoch < 0:
            raise ValueError(f"no batch {batch} of epoch {epoch}: an epoch has {len(self)} batches")
        self.epoch = epoch
        self._batch = batch

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield the batches of this epoch from the position on.

        A complete pass moves the position to the next epoch; a broken one leaves it.
        """
        yield from prefetch(self._batches(self.epoch, self._batch), self.prefetch)
        self.set_position(self.epoch + 1, 0)

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        per_group = max(1, GROUP // self.batch_size)
        at = first
        while at < len(self):
            stop = min(at + per_group - at % per_group, len(self))
            yield from self._group(epoch, at, stop)
            at = stop

    def _group(self, epoch: int, first: int, stop: int) -> Iterator[Batch]:
        """Yield the batches first .. stop of an epoch, their rows read at once."""
        size = self.batch_size
        rows = self._order(epoch, first * size, min(stop * size, self.rows))
        mine = np.arange(len(rows)) % size % self.world_size == self.rank
        columns = _columns(self._split, rows[mine], self._fields)
        local = len(range(self.rank, size, self.world_size))
        for batch in range(stop - first):
            yield columns.batch(batch * local, (batch + 1) * local)

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(start, stop)
        rows = self._split.rows
        return Shuffle(rows, self.batch_size, self.window, self.seed, epoch).take(start, stop)


def _columns(split: Split, rows: np.ndarray, fields: Fields) -> Columns:
    """Read the rows [W] of a split."""
    return Columns(
        label=_take(split.label, rows).astype(np.float32),
        dense=_take(split.dense, rows),
        ids=_take(split.ids, rows),
        jagged={name: _take_jagged(*pair, rows) for name, pair in split.jagged.items()},
        group=None if split.group is None else _take(split.group, rows),
        fields=fields,
    )


def _take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # The mode "clip" checks no index, and is up to twice as fast; all are in range.
    return np.take(array, rows, axis=0, mode="clip")


def _take_jagged(
    values: np.ndarray, offsets: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids [m] of rows [W] of a jagged column, and their offsets [W+1]."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    ends = np.concatenate([[0], np.cumsum(lengths)])
    source = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
    return values[source], ends
