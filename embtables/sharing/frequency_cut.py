"""Frequency cut: the most frequent ids keep their rows, all others read one row for rare ids.

    row(x) = 1 + place(x)                 for ids among the ceil(share * N) most frequent of all tables
    row(x) = 0                            for all others       (rest=zero: no row, a vector of zeros)

The usual minimum count, solved from the budget: one threshold for all tables, where the last count
is not kept whole but by order of tables and ids, so that any size is met (VLDB 2024 benchmark,
arXiv 2311.15578, on how much of a vocabulary is that rare). A table keeps at least one id, a
dictionary its id 0 for unknown values. Bytes: (kept_f + 1) * W * bits, and a map of the kept ids:
1.06 bits an id (`_kept`), none where ids come by falling training count. When to use: the baseline
of every method that learns which rows to drop.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from embtables.compressor import RowTable, Segments, Sharing, Table, sharings
from embtables.registry import Config
from embtables.sharing._kept import Kept, require_counts


@sharings.register("frequency_cut")
class FrequencyCut(Sharing):
    """An own row, or the row of rare ids."""

    counted = True

    class Config(Config):
        """Options of the frequency cut."""

        kind: Literal["frequency_cut"] = "frequency_cut"
        rest: Literal["row", "zero"] = Field(
            default="row", description="what rare ids read: one trained row of the table, or zeros"
        )

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__(config, tables, places)
        rare = _rare_rows(config)
        self.kept = Kept(tables, [place.rows - rare for (place,) in places], [rare] * len(tables))

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """The ids of all tables above one count; a table that keeps all of its ids stays plain.

        Raises:
            ValueError: a table with an open vocabulary, or without training counts.
        """
        falling = []
        for table in tables:
            counts = require_counts(config.kind, table)
            falling.append(counts if table.ordered else np.sort(counts)[::-1])
        total = sum(table.rows for table in tables)
        rare = _rare_rows(config)
        return {
            table.name: (RowTable(table.name, kept + rare, table.width),)
            for table, kept in zip(tables, _cut(falling, math.ceil(share * total)), strict=True)
            if kept + rare < table.rows
        }

    @classmethod
    def map_bytes(cls, config: Any, table: Table, places: Sequence[RowTable]) -> int:
        """Return the bytes of the map of kept ids."""
        return Kept.bytes(table)

    @property
    def skips(self) -> bool:
        """With zeros for the rest, rare ids read no row."""
        return self.config.rest == "zero"

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return own rows, or that of rare ids, [1, n] of ids [n]."""
        rare = torch.full((1, len(ids)), _rare_rows(self.config) - 1, device=ids.device)
        return self.kept(rare, ids, segments)


def _rare_rows(config: Any) -> int:
    """Return the rows of a table that stand for its rare ids; they come first."""
    return int(config.rest == "row")


def _cut(falling: Sequence[np.ndarray], kept: int) -> list[int]:
    """Return how many ids of each table are among the most frequent of all, at least one.

    Args:
        falling: counts of each table, falling from the second on; the first is always kept.
        kept: ids to keep of all tables; of equal counts those of earlier tables.
    """

    def at_least(count: int) -> list[int]:
        return [bisect_right(one, -count, lo=1, key=lambda value: -int(value)) for one in falling]

    most = max(int(one[:2].max()) for one in falling)
    count = bisect_left(range(most + 2), True, key=lambda count: sum(at_least(count)) <= kept)
    sizes, left = at_least(count), kept - sum(at_least(count))
    for table, more in enumerate(at_least(count - 1)):
        extra = min(more - sizes[table], max(left, 0))
        sizes[table], left = sizes[table] + extra, left - extra
    return sizes
