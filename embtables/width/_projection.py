"""What widths that project rows have in common: a matrix for each table, W numbers to D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from embtables.compressor import Segments, Table, Width


def saves(table: Table, width: int) -> bool:
    """Return whether rows of this width and their projection hold fewer numbers than plain rows."""
    return table.rows * width + width * table.dim < table.rows * table.dim


class ProjectedWidth(Width):
    """Rows of width W, projected to the width D that the model asked for."""

    owner: Tensor

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
