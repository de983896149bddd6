"""PEP: every number has a threshold, learned with it, below which it is zero.

    e = sign(E) * relu(|E| - sigmoid(s)),   s learned for each number or each row

Paper: Liu et al., Learnable Embedding Sizes for Recommender Systems, ICLR 2021. The published first
threshold, s = -150, has neither size nor gradient in float32 and is moved by weight decay alone;
here s is the sum of what is learned, which begins as rows do, and of a rise from -7 to 2 over the
stage, at the end of which almost everything would be pruned. Stages: search, in which a row holds its
thresholds beside its numbers, over as soon as the rest packs into the budget; retrain from the
initial weights of what is left (retrain=initial, the lottery ticket of the paper), or from those
found. Bytes: those of `rows.pruned`. When to use: without training counts; element-wise
pruning at small widths is mostly indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from embtables.compressor import Segments, Table, widths
from embtables.registry import Config
from embtables.search import Fitness, Rebuild, Stage
from embtables.width._pruned import PrunedWidth, PruningSearch, Retrain

if TYPE_CHECKING:
    from embtables.tables import EmbeddingTables

FIRST, LAST = -7.0, 2.0
"""Thresholds of 0.0009 and 0.88, below and above the size of what is trained."""
_LOOKS = 100
"""How often the packed size is looked at within the stage."""


class PEPSearch(PruningSearch["PEP"]):
    """The rise of the thresholds, and the mask they leave."""

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Search, retrain."""
        return (
            Stage("search", structure="train", epochs=config.search_epochs, keep="last"),
            Stage("retrain", restart=config.retrain == "initial"),
        )

    def begin(self, stage: Stage) -> None:
        """Let thresholds work while they are learned."""
        for width in self.widths:
            width.learns = stage.structure is not None
            width.rise = torch.tensor(FIRST, device=self.device) if width.learns else None

    @torch.no_grad()
    def step(self, step: int, steps: int) -> bool:
        """Raise the thresholds; over once the rows pack into the budget."""
        learns = False
        for width in self.widths:
            if width.rise is not None:
                width.rise.fill_(FIRST + (LAST - FIRST) * step / steps)
                learns = True
        looks = step * _LOOKS // steps > (step - 1) * _LOOKS // steps
        return learns and looks and self.bytes_of(self._found()) <= self.limit

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> Rebuild | None:
        """Keep what is above its threshold, in tables without thresholds, at the end of the search."""
        if stage.structure is None:
            return None
        found = self._found()

        def first_rows(name: str) -> Tensor:
            # Of these tables: those of new ones are drawn with another shape, so other numbers.
            return self.first_rows(name)[:, : found[name].shape[1]]

        def fill(tables: EmbeddingTables) -> None:
            scores = {name: kept.abs() for name, kept in found.items()}
            PEPSearch(self.config, tables).prune(found, scores, first_rows=first_rows)

        return Rebuild({t.name: t.dim for group in self.groups for t in group.tables}, fill)

    def _found(self) -> dict[str, Tensor]:
        """Return what is read and above its threshold of each physical table, [R, D]."""
        return {
            name: self.read_in_training(name, width.above(self.rows(name)))
            for group, width in zip(self.groups, self.widths, strict=True)
            for name in dict.fromkeys(group.read.tables[0])
        }


@widths.register("pep")
class PEP(PrunedWidth):
    """Rows [E | s] above their thresholds while the search is on, pruned rows E afterwards."""

    rise: Tensor | None

    class Config(Config):
        """Options of PEP."""

        kind: Literal["pep"] = "pep"
        per: Literal["number", "row"] = Field(
            default="number", description="what has a threshold of its own"
        )
        search_epochs: int = Field(default=5, ge=1, description="epochs of the rise of thresholds")
        retrain: Retrain = "initial"

    @classmethod
    def search(cls, config: Any) -> type[PEPSearch]:
        """The stages above."""
        return PEPSearch

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        self.dim = tables[0].dim
        self.register_buffer("rise", None)

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """D numbers and their thresholds."""
        return [2 * t.dim if config.per == "number" else t.dim + 1 for t in tables]

    def above(self, rows: Tensor) -> Tensor:
        """Return sign(E) * relu(|E| - sigmoid(s)), [.., D], of rows [E | s], [.., W]."""
        assert self.rise is not None
        numbers, thresholds = rows[..., : self.dim], rows[..., self.dim :]
        return numbers.sign() * functional.relu(
            numbers.abs() - torch.sigmoid(thresholds + self.rise)
        )

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return what is above its threshold during the search, else the numbers."""
        if self.rise is not None:
            return self.above(vectors)
        if vectors.shape[-1] != self.dim:
            vectors = vectors[..., : self.dim]
        return super().decode(vectors, rows, segments)
