"""Mixed dimensions by popularity: large tables are narrow, small ones wide, projected to one width.

    W_f = D * (n_f / n_min)^(-alpha), at least 1, rounded to a power of two;   e = E[x] P_f

Paper: Ginart et al., Mixed Dimension Embeddings with Application to Memory-Efficient
Recommendation Systems, ISIT 2021. Bytes: sum of n_f * W_f * bits + W_f * D * 4 for a projection;
floor 1/D of the full table. When to use: skewed cardinalities, budgets above the floor; it saves
memory while training too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from embtables.compressor import Table, widths
from embtables.registry import Config
from embtables.width._projection import ProjectedWidth, saves


@widths.register("mde")
class MixedDimension(ProjectedWidth):
    """Power rule on cardinalities, a projection for each narrow table."""

    class Config(Config):
        """Options of mixed dimensions."""

        kind: Literal["mde"] = "mde"
        alpha: float | None = Field(
            default=None, ge=0, le=1, description="temperature; left out: solved from the budget"
        )
        power_of_two: bool = Field(default=True, description="round widths to powers of two")

    @classmethod
    def sized(cls, config: Any) -> bool:
        """Whether alpha is left to the budget."""
        return config.alpha is None

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """Power rule with alpha = 1 - share, or the alpha asked for; D where narrower saves nothing."""
        alpha = 1 - share if config.alpha is None else config.alpha
        smallest = min(table.rows for table in tables)
        return [cls._width(config, table, smallest, alpha) for table in tables]

    @classmethod
    def _width(cls, config: Any, table: Table, smallest: int, alpha: float) -> int:
        width = max(1, round(table.dim * (table.rows / smallest) ** -alpha))
        if config.power_of_two and width < table.dim:
            width = 2 ** round(math.log2(width))
        return width if saves(table, width) else table.dim
