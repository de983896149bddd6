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
    def shared(cls, config: Any) -> bool:
        """Whether tables of one W and one D have one projection."""
        return False

    @classmethod
    def biased(cls, config: Any) -> bool:
        """Whether a vector is added behind the projection."""
        return False

    @classmethod
    def extra_numbers(cls, config: Any, table: Table) -> dict[str, int]:
        """W_f * D for a table that is projected, and D for what is added."""
        if table.width >= table.dim:
            return {}
        owner = f"{table.width}x{table.dim}" if cls.shared(config) else table.name
        return {owner: (table.width + cls.biased(config)) * table.dim}

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        first = tables[0]
        self.names = list(dict.fromkeys(table.name for table in tables))
        # Tables of a group may differ in D (first-order weights): widths equal to D need no projection.
        self.projects = first.width < first.dim
        shared = self.shared(config)
        owner = [0 if shared else self.names.index(table.name) for table in tables]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        if self.projects:
            count = 1 if shared else len(self.names)
            self.projection = nn.Parameter(torch.empty(count, first.width, first.dim))
            if self.biased(config):
                self.bias = nn.Parameter(torch.zeros(count, first.dim))

    def reset(self, generator: torch.Generator) -> None:
        """Draw projections that keep the variance of the rows (fan-in rule)."""
        if self.projects:
            std = self.projection.shape[1] ** -0.5
            nn.init.normal_(self.projection, std=std, generator=generator)

    @property
    def linear(self) -> bool:
        """Not where a vector is added to that of each id."""
        return not (self.projects and self.biased(self.config))

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Project each segment with its table's matrix."""
        if not self.projects:
            return vectors
        found = project(vectors, self.projection[self.owner], segments)
        if not self.biased(self.config):
            return found
        return found + segments.spread_vectors(self.bias[self.owner])


def project(vectors: Tensor, matrices: Tensor, segments: Segments) -> Tensor:
    """Return vectors [.., W] times the matrix of their segment, [S, W, D]: [.., D]."""
    if segments.single:
        return torch.bmm(vectors, matrices)
    cut = vectors.split(segments.lengths)
    return torch.cat([part @ matrix for part, matrix in zip(cut, matrices, strict=True)])
