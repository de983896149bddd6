"""Hashing trick: ids share the rows of their table by a salted hash.

    row(x) = h(x) mod m_f,   m_f = ceil(share * n_f)

Paper: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009.
Bytes: m_f * W * bits, no map. When to use: the cheapest baseline; takes open vocabularies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from embtables.compressor import RowTable, Table, sharings
from embtables.sharing._hashed import HashConfig, HashedSharing, stays_exact


@sharings.register("hash")
class Hash(HashedSharing):
    """One hashed row an id."""

    class Config(HashConfig):
        """Options of the hashing trick."""

        kind: Literal["hash"] = "hash"

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """ceil(share * n_f) rows a table."""
        return {
            table.name: (RowTable(table.name, rows, table.width),)
            for table in tables
            if not stays_exact(table, rows := max(1, math.ceil(share * table.rows)), config)
        }
