"""DNIS: which numbers of which rows are kept is learned on validation rows, by blocks of frequency.

    e(x) = alpha[block(x)] * E[x],   alpha in [0, 1]^{L * D};   kept where |alpha * E| is large

Paper: Cheng, Shen and Huang, Differentiable Neural Input Search for Recommender Systems,
arXiv 2006.04466 (AutoSrh in its journal form). Rows are cut into blocks by training count, the block
of the rarest being half of all rows, the next one a quarter, and so on; rows of equal counts stay
together, and every table has its own alpha. Stages: warm-up; search, where rows learn from training
batches and alpha, with the network at rest, from validation batches, the gradient of each alpha[l]
divided by the running mean of its size; alpha is folded into the rows, and what is smallest is pruned
until the budget is met; retrain (retrain=found, or from the initial weights of what is left). The
published search does not know the budget, and then cuts blocks whole or not at all, for their
dimensions are alike; here alpha is projected after each step to keep as many bytes as are allowed,
which falls to the budget, so that dimensions compete. A block keeps as many dimensions as its alphas
add up to, those of the largest mean |alpha * E|, and packs as a dense table of them (form=block), or
every row keeps its own (form=element: sparse rows). Bytes: those of `rows.pruned`; needs closed
vocabularies. When to use: skewed ids, and validation rows that can be learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from embtables.compressor import Segments, Table, widths
from embtables.registry import Config
from embtables.search import Fitness, Stage, falling_rate
from embtables.width._pruned import PerRow, PrunedWidth, PruningSearch, Retrain

_SHRINKING = 0.7
"""Part of the search over which the bytes that alpha may keep fall to the budget."""
_READ = 1 + 1e-5
"""Size of the gradients of an alpha that the loss depends on, over the one of its penalty, at least."""
_LEAST = 1e-3
"""Size of the gradients of an alpha that no batch has asked for, over the mean size."""
_NEWS = 0.05
"""Weight of a step in the running mean: a block of rare rows is not in every batch."""


class DNISSearch(PruningSearch["DNIS"]):
    """Blocks, alpha, and the threshold on alpha * E."""

    counted = True

    @classmethod
    def stages(cls, config: Any) -> tuple[Stage, ...]:
        """Warm-up, search, retrain."""
        return (
            Stage("warm-up"),
            Stage("search", False, "valid", config.search_epochs, keep="last"),
            Stage("retrain", restart=config.retrain == "initial"),
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Alpha of each group, [cells, d]."""
        return [width.cells.alpha for width in self.widths if width.cells is not None]

    def begin(self, stage: Stage) -> None:
        """Cut rows into blocks and set alpha to one, for the search."""
        searches = stage.structure is not None
        self.cells = self._cells() if searches else {}
        for group, width in zip(self.groups, self.widths, strict=True):
            # Before, zeros are rounded numbers (int8 while training) and may be others again.
            width.learns = stage.name != "retrain"
            names = group.read.tables[0]
            width.set_cells(names, self.cells, self.placed[names[0]].precision.row_bytes(width.dim))
            width.to(self.device)

    def _cells(self) -> dict[str, Tensor]:
        """Return the cell of each row of each physical table, [R]: L * (place of the table) + block."""
        count = self.config.blocks
        return {
            name: block + count * place
            for place, (name, block) in enumerate(blocks(self.reads(), count).items())
        }

    def penalty(self) -> Tensor:
        """l1 * sum |alpha|."""
        sizes = [alpha.abs().sum() for alpha in self.parameters]
        return self.config.l1 * torch.stack(sizes).sum()

    @torch.no_grad()
    def step(self, step: int, steps: int) -> bool:
        """Step alpha by its gradient, each cell's divided by its mean size; the rate falls to zero."""
        cells = [cells for width in self.widths if (cells := width.cells) is not None]
        rate = falling_rate(self.config.lr, step, steps)
        for one in cells:
            assert one.alpha.grad is not None
            size = one.alpha.grad.abs().mean(dim=1, keepdim=True)
            # The mean begins with the first batch that reads the cell, which more than l1 tells.
            begun = one.size > self.config.l1 * _READ
            one.size.copy_(torch.where(begun, one.size.lerp(size, _NEWS), size))
            one.alpha.sub_(rate * one.alpha.grad / (one.size + 1e-12)).clamp_(0, 1)
        if cells:
            project(cells, 1 - (1 - self.share) * min(step / steps / _SHRINKING, 1.0))
        return False

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> None:
        """Fold alpha into the rows and prune them, at the end of the search."""
        if stage.structure is None:
            return
        rows, scores, levels = {}, {}, []
        widest = max(width.dim for width in self.widths)
        for group, width in zip(self.groups, self.widths, strict=True):
            assert width.cells is not None
            for name in dict.fromkeys(group.read.tables[0]):
                cells = self.cells[name].to(self.device)
                rows[name] = self.rows(name) * width.cells.alpha[cells]
                scores[name] = rows[name].abs()
                if self.config.form == "block":
                    worths = _worths(_mean_by(scores[name], cells), width.cells.alpha, widest)
                    scores[name] = worths[cells]
                    levels += worths.flatten().tolist()
        self.prune(rows, scores, sorted(set(levels), reverse=True))


class Cells(nn.Module):
    """Alpha of the cells, a cell being a block of a physical table.

    Args:
        names: [S] physical tables that are read.
        cells: cell of each row of every physical table, [R].
        dim: d.
        row_bytes: of a row.

    Attributes:
        alpha: [cells, d].
        bytes: of a dimension of each, [cells, 1].
        size: running mean of the mean size of their gradients, [cells, 1].
    """

    bytes: Tensor
    size: Tensor

    def __init__(
        self, names: Sequence[str], cells: dict[str, Tensor], dim: int, row_bytes: int
    ) -> None:
        super().__init__()
        count = max(int(cell.max()) for cell in cells.values()) + 1
        own = torch.cat([cells[name] for name in dict.fromkeys(names)])
        rows = torch.bincount(own, minlength=count).float().unsqueeze(1)
        self.place = PerRow(names, cells)
        self.alpha = nn.Parameter(torch.ones(count, dim))
        self.register_buffer("bytes", rows * row_bytes / dim, persistent=False)
        self.register_buffer("size", torch.zeros(count, 1))

    def forward(self, rows: Tensor, segments: Segments) -> Tensor:
        """Return alpha [S, B, d] or [n, d] of rows [1, n]."""
        return functional.embedding(self.place(rows, segments), self.alpha)


@widths.register("dnis")
class DNIS(PrunedWidth):
    """Rows weighted by alpha while the search is on, pruned ones afterwards."""

    class Config(Config):
        """Options of DNIS."""

        kind: Literal["dnis"] = "dnis"
        form: Literal["block", "element"] = Field(
            default="block", description="what is pruned: dimensions of a block, or single numbers"
        )
        blocks: int = Field(default=8, ge=1, le=32, description="blocks of rows by frequency")
        search_epochs: int = Field(default=2, ge=1, description="epochs of the search")
        lr: float | None = Field(
            default=None,
            gt=0,
            description="first learning rate of alpha; null: 0.01, more in fewer than 2,000 steps",
        )
        retrain: Retrain = "found"
        l1: float = Field(default=1e-5, ge=0, description="weight of sum |alpha| in its loss")

    @classmethod
    def search(cls, config: Any) -> type[DNISSearch]:
        """The stages above."""
        return DNISSearch

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        self.dim = tables[0].width
        self.cells: Cells | None = None

    def set_cells(self, names: Sequence[str], cells: dict[str, Tensor], row_bytes: int) -> None:
        """Give each cell an alpha of ones, or take alpha away.

        Args:
            names: [S] physical tables that are read.
            cells: cell of each row of every physical table, [R]; empty takes alpha away.
            row_bytes: of a row.
        """
        self.cells = Cells(names, cells, self.dim, row_bytes) if cells else None

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return alpha times the vectors during the search, else the vectors."""
        if self.cells is None:
            return super().decode(vectors, rows, segments)
        return vectors * self.cells(rows, segments)


def blocks(reads: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the block 0 .. count - 1 of each row of each table, 0 the most frequent: [R].

    Args:
        reads: training count of each row, [R].
        count: blocks at most; equal training counts are never split.
    """
    falling = torch.cat(list(reads.values())).sort(descending=True).values
    places = [(len(falling) >> k) - 1 for k in range(1, count)]
    bounds = falling[[place for place in places if place >= 0]].unique()
    # A row is behind every bound above its count.
    return {
        name: len(bounds) - torch.searchsorted(bounds, read, right=True)
        for name, read in reads.items()
    }


def _mean_by(numbers: Tensor, cells: Tensor) -> Tensor:
    """Return the means [cells, d] of numbers [R, d] over the rows of each cell."""
    rows = torch.bincount(cells).clamp(min=1).unsqueeze(1)
    return numbers.new_zeros(len(rows), numbers.shape[1]).index_add_(0, cells, numbers) / rows


def _worths(means: Tensor, alpha: Tensor, widest: int) -> Tensor:
    """Return the worths [cells, d] of dimensions of mean size `means`; 0 where there is nothing.

    They fall by one from a dimension to the next smaller one, and are above `widest`, which is the same
    for all groups, up to the width of their cell: the sum of its alphas.
    """
    place = means.argsort(dim=1, descending=True).argsort(dim=1)
    width = alpha[: len(means)].sum(1, keepdim=True)
    return torch.where(means > 0, widest + width - place, 0.0)


def project(cells: Sequence[Cells], allowed: float) -> None:
    """Lower alphas so that they keep at most a part `allowed` of the bytes.

    It is the step that costs the loss least where that is a quadratic of curvature `size` in alpha:
    all pay one price, bytes / size times it, the least that is enough. With the k alphas that last
    longest, sum bytes * alpha - price * sum bytes * cost are left, and of all k that which has most.
    """
    typical = torch.cat([one.size for one in cells]).mean()
    costs = [one.bytes / (one.size + _LEAST * typical + 1e-12) for one in cells]
    number = _flat(cells, [one.bytes for one in cells])
    alpha, cost = _flat(cells, [one.alpha for one in cells]), _flat(cells, costs)
    order = (alpha / cost).argsort(descending=True)
    kept = (number * alpha)[order].cumsum(0)
    paid = (number * cost)[order].cumsum(0)
    price = ((kept - allowed * number.sum()) / paid).max().clamp(min=0)
    for one, own in zip(cells, costs, strict=True):
        one.alpha.sub_(price * own).clamp_(min=0)


def _flat(cells: Sequence[Cells], parts: Sequence[Tensor]) -> Tensor:
    """Return one tensor of parts [cells, 1] or [cells, d], a number for each alpha."""
    spread = [part.expand_as(one.alpha) for one, part in zip(cells, parts, strict=True)]
    return torch.cat([part.flatten() for part in spread])
