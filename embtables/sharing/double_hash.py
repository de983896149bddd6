"""Double hashing: an id reads two rows of its table by independent hashes, summed or concatenated.

    e(x) = E[h1(x)] + E[h2(x)]   or   [E[h1(x)], E[h2(x)]] with rows of half the width

Paper: Zhang et al., Model Size Reduction Using Frequency Based Double Hashing for Recommender
Systems, RecSys 2020 (its part without frequencies). Two ids read the same two rows with
probability about 2/m^2 (sum, whose order does not matter) or 1/m^2 (concat). Bytes: m_f * W * bits
(sum), no map. When to use: like `hash`, with fewer exact collisions; the two rows of an id are still
shared with many others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from embtables.compressor import Combine, RowTable, Table, sharings
from embtables.sharing._combine import combination, concatenates, part_width
from embtables.sharing._hashed import HashConfig, HashedSharing, stays_exact


@sharings.register("double_hash")
class DoubleHash(HashedSharing):
    """Two hashed rows an id, of one physical table."""

    class Config(HashConfig):
        """Options of double hashing."""

        kind: Literal["double_hash"] = "double_hash"
        combine: Literal["sum", "concat"] = Field(
            default="sum", description="sum of two rows, or concat: two rows of half the width"
        )

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """Share * n_f * W numbers a table, in rows of width W (sum) or W/2 (concat)."""
        places = {}
        for table in tables:
            width = part_width(table.width, config.combine)
            rows = max(1, math.ceil(share * table.rows * table.width / width))
            if not stays_exact(table, math.ceil(rows * width / table.width), config):
                halved = concatenates(table.width, config.combine)
                # A sum of two rows must not have twice the variance of one.
                row_table = RowTable(table.name, rows, width, scale=1.0 if halved else 0.5**0.5)
                places[table.name] = (row_table, row_table)
        return places

    @property
    def combine(self) -> Combine:
        """As configured."""
        return combination(self.width, self.config.combine)
