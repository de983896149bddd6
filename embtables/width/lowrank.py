"""Low rank: every table is a product of narrow rows and one small matrix.

    e(x) = E[x] P_f,   E: n_f * r,   P_f: r * D,   r = max(1, floor(share * D))

The factorised embedding of Lan et al., ALBERT, ICLR 2020, one factor a table. Bytes: n_f * r * bits +
r * D * 4; floor 1/D of the full table. Unlike a narrower table it leaves the width of the model alone.
When to use: before any hashing wherever the budget allows a rank of two or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from embtables.compressor import Table, widths
from embtables.registry import Config
from embtables.width._projection import ProjectedWidth, saves


@widths.register("lowrank")
class LowRank(ProjectedWidth):
    """One rank for all tables, a projection for each."""

    class Config(Config):
        """No options."""

        kind: Literal["lowrank"] = "lowrank"

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """floor(share * D), at least 1; D where a product saves nothing."""
        ranks = [max(1, int(share * table.dim)) for table in tables]
        return [r if saves(t, r) else t.dim for t, r in zip(tables, ranks, strict=True)]
