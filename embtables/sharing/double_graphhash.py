"""Double GraphHash: an id reads the row of its cluster and a hashed row of the same table, summed.

    e(x) = E[cluster(x)] + E[h(x)]

Paper: Wu et al., GraphHash, WWW 2025, which proposes it for click-through rates. Two ids of a cluster
then differ by their hashed rows. Bytes: as `graphhash`. When to use: like `graphhash`, where
the ids of a cluster must be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from embtables.compressor import Combine, RowTable, Segments, Table, sharings
from embtables.sharing._graph import GraphConfig, GraphSharing
from embtables.sharing._hashed import HashedRows


@sharings.register("double_graphhash")
class DoubleGraphHash(GraphSharing):
    """A cluster row and a hashed row an id."""

    class Config(GraphConfig):
        """Options of double GraphHash."""

        kind: Literal["double_graphhash"] = "double_graphhash"

    @classmethod
    def rows_of(cls, table: Table, rows: int) -> tuple[RowTable, ...]:
        """The table twice; a sum of two rows must not have twice the variance of one."""
        row_table = RowTable(table.name, rows, table.width, scale=0.5**0.5)
        return row_table, row_table

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__(config, tables, places)
        self.hashed = HashedRows(tables, [place[:1] for place in places])

    @property
    def combine(self) -> Combine:
        """Summed."""
        return "sum"

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return cluster and hashed row [2, n] of ids [n]."""
        return torch.cat([super().encode(ids, segments), self.hashed(ids, segments)])
