"""Full table: every id has a row of its own.

    row(x) = x

Bytes: n * W * bits. The uncompressed baseline, and with a byte budget (width `uniform`) the narrow
table that every compressor has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from embtables.compressor import RowTable, Segments, Sharing, Table, sharings
from embtables.registry import Config


@sharings.register("full")
class Full(Sharing):
    """Row = id."""

    class Config(Config):
        """No options."""

        kind: Literal["full"] = "full"

    sized = False

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """One physical table of n rows each.

        Raises:
            ValueError: a table with an open vocabulary, which has no last row.
        """
        for table in tables:
            if table.open:
                raise ValueError(
                    f"table {table.name!r}: an open vocabulary has no full table; "
                    "use a sharing that hashes (hash, double_hash, multiplex) or a closed vocabulary"
                )
        return {table.name: (RowTable(table.name, table.rows, table.width),) for table in tables}

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return ids [n] as rows [1, n]."""
        return ids.reshape(1, -1)
