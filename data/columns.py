"""Some rows of every column, cut into batches.

Shape letters: W rows, D numeric columns, F id columns (F1 of one id), M ids of all bags of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch

from data.batch import Batch
from data.schema import Schema
from embtables.torchrec_types import KeyedJaggedTensor


@dataclass(frozen=True)
class Fields:
    """Where the ids of the keys come from, in the order of the keys.

    Attributes:
        keys: names of the F id columns.
        parts: runs of neighbouring fields (columns a .. b of `ids`), or the name of a jagged column.
    """

    keys: list[str]
    parts: list[tuple[int, int] | str]

    @classmethod
    def of(cls, schema: Schema) -> Fields:
        """Return those of a prepared data set."""
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
class Columns:
    """W rows of every column. All work is NumPy's: PyTorch would wake the threads of the training step.

    Attributes:
        label: [W] float32.
        dense: [W, D] float32.
        ids: [W, F1] int32 or int64.
        jagged: column -> (ids [m], offsets [W+1] int64).
        group: [W] int64, or None.
        fields: the order of the keys.
    """

    label: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    jagged: dict[str, tuple[np.ndarray, np.ndarray]]
    group: np.ndarray | None
    fields: Fields

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Return the rows of several pieces, one after another, without groups."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        jagged = {}
        for name in first.jagged:
            pieces = [part.jagged[name] for part in parts]
            lengths = [np.diff(offsets) for _, offsets in pieces]
            ends = np.cumsum(np.concatenate([[0], *lengths]))
            jagged[name] = np.concatenate([values for values, _ in pieces]), ends
        label, dense, ids = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("label", "dense", "ids")
        )
        return cls(label, dense, ids, jagged, None, first.fields)

    def rows(self, start: int, stop: int) -> Columns:
        """Return the rows start .. stop, without groups."""
        jagged = {
            name: (
                values[offsets[start] : offsets[stop]],
                offsets[start : stop + 1] - offsets[start],
            )
            for name, (values, offsets) in self.jagged.items()
        }
        label, dense, ids = (a[start:stop] for a in (self.label, self.dense, self.ids))
        return Columns(label, dense, ids, jagged, None, self.fields)

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
        rows, keys = stop - start, self.fields.keys
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
        rows, keys = stop - start, self.fields.keys
        values, lengths = [], []
        for part in self.fields.parts:
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


def batches(blocks: Iterable[Columns], size: int) -> Iterator[Batch]:
    """Yield batches of `size` rows, wherever the blocks end; the last one may be short."""
    held: list[Columns] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) < size:
            continue
        whole = Columns.joined(held)
        stop = len(whole) - len(whole) % size
        for start in range(0, stop, size):
            yield whole.batch(start, start + size)
        held = [whole.rows(stop, len(whole))]
    if sum(map(len, held)):
        yield Columns.joined(held).batch(0, size)
