"""Batches of a prepared split: shuffled, resumable at any batch, shared among ranks, prefetched.

Shape letters: N rows of the split, W rows of a group read together, B rows of a batch on this rank,
D numeric columns, F id columns (F1 of one id), M ids of all bags of a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch

from data.batch import Batch
from data.order import Shuffle
from data.prefetch import prefetch
from data.schema import Schema
from data.store import Split, Store
from embtables.torchrec_types import KeyedJaggedTensor

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
        self._layout = _Layout.of(store.schema)
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
        columns = _Columns.of(self._split, rows[mine], self._layout)
        local = len(range(self.rank, size, self.world_size))
        for batch in range(stop - first):
            yield columns.batch(batch * local, (batch + 1) * local)

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(start, stop)
        rows = self._split.rows
        return Shuffle(rows, self.batch_size, self.window, self.seed, epoch).take(start, stop)


@dataclass(frozen=True)
class _Layout:
    """Where the ids of the keys come from, in the order of the keys.

    Attributes:
        keys: names of the F id columns.
        parts: runs of neighbouring fields (columns a .. b of `ids`), or the name of a jagged column.
    """

    keys: list[str]
    parts: list[tuple[int, int] | str]

    @classmethod
    def of(cls, schema: Schema) -> _Layout:
        parts: list[tuple[int, int] | str] = []
        at = 0
        for column in schema.fields:
            if column.kind != "categorical":
                parts.append(column.name)
                continue
            last = parts[-1] if parts else None
            if isinstance(last, tuple):
                parts[-1] = (last[0], at + 1)
            else:
                parts.append((at, at + 1))
            at += 1
        return cls([column.name for column in schema.fields], parts)


@dataclass(frozen=True)
class _Columns:
    """W rows of every column, in the order of an epoch.

    All work is NumPy's: PyTorch would wake its own threads, which belong to the training step.
    """

    label: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    jagged: dict[str, tuple[np.ndarray, np.ndarray]]
    group: np.ndarray | None
    layout: _Layout

    @classmethod
    def of(cls, split: Split, rows: np.ndarray, layout: _Layout) -> _Columns:
        """Read the rows [W] of a split."""
        return cls(
            label=_take(split.label, rows).astype(np.float32),
            dense=_take(split.dense, rows),
            ids=_take(split.ids, rows),
            jagged={name: _take_jagged(*pair, rows) for name, pair in split.jagged.items()},
            group=None if split.group is None else _take(split.group, rows),
            layout=layout,
        )

    def batch(self, start: int, stop: int) -> Batch:
        """Return the rows start .. stop as a batch."""
        stop = min(stop, len(self.label))
        return Batch(
            torch.from_numpy(self.dense[start:stop]),
            self._several(start, stop) if self.jagged else self._singles(start, stop),
            torch.from_numpy(self.label[start:stop]),
            None if self.group is None else torch.from_numpy(self.group[start:stop]),
        )

    def _singles(self, start: int, stop: int) -> KeyedJaggedTensor:
        """Return the features where every bag holds one id."""
        rows, keys = stop - start, self.layout.keys
        values = np.empty((len(keys), rows), np.int64)
        values[...] = self.ids[start:stop].T
        lengths, offsets = _ones(len(keys), rows)
        return KeyedJaggedTensor(
            keys,
            torch.from_numpy(values.reshape(-1)),
            lengths=lengths,
            offsets=offsets,
            stride=rows,
            length_per_key=[rows] * len(keys),
            offset_per_key=[key * rows for key in range(len(keys) + 1)],
        )

    def _several(self, start: int, stop: int) -> KeyedJaggedTensor:
        """Return the features where some bags hold any number of ids."""
        rows, keys = stop - start, self.layout.keys
        values, lengths = [], []
        for part in self.layout.parts:
            if isinstance(part, str):
                ids, offsets = self.jagged[part]
                values.append(ids[offsets[start] : offsets[stop]])
                lengths.append(np.diff(offsets[start : stop + 1]))
            else:
                first, last = part
                values.append(self.ids[start:stop, first:last].T.reshape(-1))
                lengths.append(np.ones((last - first) * rows, np.int64))
        length = np.concatenate(lengths)
        offsets = np.zeros(len(length) + 1, np.int64)
        np.cumsum(length, out=offsets[1:])
        per_key = length.reshape(len(keys), rows).sum(axis=1).tolist()
        return KeyedJaggedTensor(
            keys,
            torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            lengths=torch.from_numpy(length),
            offsets=torch.from_numpy(offsets),
            stride=rows,
            length_per_key=per_key,
            offset_per_key=list(accumulate(per_key, initial=0)),
        )


@lru_cache(maxsize=8)
def _ones(keys: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lengths [keys*rows] and offsets [keys*rows + 1] of bags of one id, made once."""
    return torch.ones(keys * rows, dtype=torch.int64), torch.arange(keys * rows + 1)


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
