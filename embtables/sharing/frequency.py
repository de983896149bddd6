"""Frequency split: the most frequent ids have rows of their own, all others share hashed rows.

    row(x) = m_f - k_f + place(x)         for the k_f = floor(private * m_f) most frequent ids
    row(x) = h(x) mod (m_f - k_f)         for all others,      m_f = max(2, ceil(share * n_f))

Paper: Zhang et al., Model Size Reduction Using Frequency Based Double Hashing for Recommender
Systems, RecSys 2020 (with a single hash). No id collides with a frequent one, in either direction.
Bytes: m_f * W * bits, and a map of the frequent ids: 1.06 bits an id (`_kept`), none where ids come
by falling training count, as those of a dictionary do. When to use: closed vocabularies with a few
ids that make most of the data, at any budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from embtables.compressor import RowTable, Segments, Sharing, Table, sharings
from embtables.registry import Config
from embtables.sharing._hashed import HashedRows
from embtables.sharing._kept import Kept, require_counts


class FrequencyConfig(Config):
    """Options of a split by frequency."""

    private: float = Field(
        default=0.5, gt=0, lt=1, description="part of the rows that belong to one id each"
    )


@sharings.register("frequency")
class Frequency(Sharing):
    """A private row or a hashed row an id, of one physical table: shared rows first."""

    counted = True

    class Config(FrequencyConfig):
        """Options of the frequency split."""

        kind: Literal["frequency"] = "frequency"

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__(config, tables, places)
        private = [private_rows(config, place.rows) for place, *_ in places]
        shared = [place.rows - k for (place, *_), k in zip(places, private, strict=True)]
        hashed = [
            tuple(replace(place, rows=rows) for place in column)
            for column, rows in zip(places, shared, strict=True)
        ]
        self.hashed = HashedRows(tables, hashed)
        self.kept = Kept(tables, private, first=shared)

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """max(2, ceil(share * n_f)) rows a table.

        Raises:
            ValueError: a table with an open vocabulary, or without training counts.
        """
        places = {}
        for table in tables:
            require_counts(config.kind, table)
            rows = max(2, math.ceil(share * table.rows))
            if rows < table.rows:
                places[table.name] = (RowTable(table.name, rows, table.width),)
        return places

    @classmethod
    def map_bytes(cls, config: Any, table: Table, places: Sequence[RowTable]) -> int:
        """Return the bytes of the map of frequent ids."""
        return Kept.bytes(table)

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return private or hashed rows [K, n] of ids [n]."""
        return self.kept(self.hashed(ids, segments), ids, segments)


def private_rows(config: FrequencyConfig, rows: int) -> int:
    """Return how many of a table's rows are private: at least one, and not all."""
    return min(max(math.floor(config.private * rows), 1), rows - 1)
