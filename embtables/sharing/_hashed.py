"""What the hashing methods have in common: salted rows, and which tables they leave exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.compressor import RowTable, Segments, Sharing, Table
from embtables.hashing import MAX_ROWS, hash_rows, salt
from embtables.registry import Config


class HashConfig(Config):
    """Options of every hashing method."""

    exact_rows: int | None = Field(
        default=None,
        ge=0,
        description="tables of at most so many rows stay exact; "
        "left out: those that hashing would not shrink",
    )


def stays_exact(table: Table, rows: int, config: HashConfig) -> bool:
    """Return whether a table stays exact instead of taking `rows` hashed rows."""
    if table.open:
        return False
    if config.exact_rows is None:
        return rows >= table.rows
    return table.rows <= config.exact_rows


class HashedRows(nn.Module):
    """Salted rows of the tables of a group.

    Salts depend on the logical table, so that features of one table agree.

    Args:
        tables: [S] logical table of each segment.
        places: [S][K] physical tables of each.

    Raises:
        ValueError: a table with more rows than a hash can address.
    """

    salts: Tensor
    rows: Tensor

    def __init__(self, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]) -> None:
        super().__init__()
        for place in (place for column in places for place in column):
            if place.rows > MAX_ROWS:
                raise ValueError(
                    f"table {place.name!r}: {place.rows:,} rows are more than a hash addresses "
                    f"({MAX_ROWS:,}); lower the budget or use more tables (multiplex: subtables)"
                )
        probes = range(len(places[0]))
        salts = [[salt(table.name, probe) for table in tables] for probe in probes]
        rows = [[place[probe].rows for place in places] for probe in probes]
        self.register_buffer("salts", torch.tensor(salts), persistent=False)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return hashed rows [K, n] of ids [n]."""
        if ids.device.type == "cpu":
            from embtables import parallel
            from embtables.rows import kernels

            return parallel.call(
                kernels.hash_rows, ids, self.salts, self.rows, segments.bounds, items=len(ids)
            )
        found = hash_rows(
            segments.shape(ids), segments.spread(self.salts), segments.spread(self.rows)
        )
        return found.reshape(found.shape[0], -1)


class HashedSharing(Sharing):
    """A sharing whose K rows of an id are salted hashes."""

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__(config, tables, places)
        self.hashed = HashedRows(tables, places)

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return hashed rows [K, n] of ids [n]."""
        return self.hashed(ids, segments)
