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

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.compressor import Segments, Table, Width, widths
from embtables.registry import Config


@widths.register("mde")
class MixedDimension(Width):
    """Power rule on cardinalities, a projection for each narrow table."""

    owner: Tensor

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
        narrow = table.rows * width + width * table.dim
        return width if narrow < table.rows * table.dim else table.dim

    @classmethod
    def extra_numbers(cls, table: Table) -> int:
        """W_f * D for a table that is projected."""
        return table.width * table.dim if table.width < table.dim else 0

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        first = tables[0]
        names = list(dict.fromkeys(table.name for table in tables))
        # Tables of a group may differ in D (first-order weights): widths equal to D need no projection.
        self.projects = first.width < first.dim
        owner = torch.tensor([names.index(table.name) for table in tables])
        self.register_buffer("owner", owner, persistent=False)
        if self.projects:
            self.projection = nn.Parameter(torch.empty(len(names), first.width, first.dim))

    def reset(self, generator: torch.Generator) -> None:
        """Draw projections that keep the variance of the rows (fan-in rule)."""
        if self.projects:
            std = self.projection.shape[1] ** -0.5
            nn.init.normal_(self.projection, std=std, generator=generator)

    def decode(self, vectors: Tensor, segments: Segments) -> Tensor:
        """Project each segment with its table's matrix."""
        if not self.projects:
            return vectors
        matrices = self.projection[self.owner]
        if segments.single:
            return torch.bmm(vectors, matrices)
        cut = vectors.split(segments.lengths)
        return torch.cat([part @ matrix for part, matrix in zip(cut, matrices, strict=True)])
