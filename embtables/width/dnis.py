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
dimensions are alike; here every byte has a price besides, which rises while alpha keeps more bytes than
the budget and falls otherwise, so that dimensions compete. A block loses whole dimensions and packs as
a dense table of those it keeps (form=block), or every row its own (form=element: sparse rows). Bytes:
those of `rows.pruned`; needs closed vocabularies. When to use: skewed ids, and validation rows that can
be learned from.
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
from embtables.search import Fitness, Stage
from embtables.width._pruned import PerRow, PrunedWidth, PruningSearch, Retrain

_SHRINKING = 0.7
"""Part of the search over which the bytes that alpha may keep fall to the budget."""
_FIRST_PRICE, _RISE = 0.01, 1.03
"""Price of a byte, first over the mean size of alpha's gradients, and its factor a step."""
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
            width.set_cells(group.read.tables[0], self.cells)
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
        """Step alpha by its gradient, each row's divided by its mean size; the rate falls to zero."""
        cells = [cells for width in self.widths if (cells := width.cells) is not None]
        if cells:
            self._set_price(cells, step / steps)
        for one in cells:
            assert one.alpha.grad is not None
            grad = one.alpha.grad + one.price * one.rows
            size = grad.abs().mean(dim=1, keepdim=True)
            one.size.copy_(torch.where(one.size > 0, one.size.lerp(size, _NEWS), size))
            rate = self.config.lr * (1 - step / steps)
            one.alpha.sub_(rate * grad / (one.size + 1e-12)).clamp_(0, 1)
        return False

    def _set_price(self, cells: Sequence[Cells], done: float) -> None:
        """Raise or lower the price of a byte after a part of the search."""
        allowed = 1 - (1 - self.share) * min(done / _SHRINKING, 1.0)
        kept = sum(float((one.rows * one.alpha).sum()) for one in cells)
        kept /= sum(float(one.rows.sum()) * one.alpha.shape[1] for one in cells)
        for one in cells:
            if self.share < 1 and not one.price and one.alpha.grad is not None:
                one.price.copy_(_FIRST_PRICE * one.alpha.grad.abs().mean())
            one.price.mul_(_RISE if kept > allowed else 1 / _RISE)

    @torch.no_grad()
    def end(self, stage: Stage, fitness: Fitness) -> None:
        """Fold alpha into the rows and prune them, at the end of the search."""
        if stage.structure is None:
            return
        rows, scores, levels = {}, {}, []
        for group, width in zip(self.groups, self.widths, strict=True):
            assert width.cells is not None
            for name in dict.fromkeys(group.read.tables[0]):
                cells = self.cells[name].to(self.device)
                rows[name] = self.rows(name) * width.cells.alpha[cells]
                scores[name] = rows[name].abs()
                if self.config.form == "block":
                    means = _mean_by(scores[name], cells)
                    scores[name] = means[cells]
                    levels += means.flatten().tolist()
        self.prune(rows, scores, sorted(set(levels), reverse=True))


class Cells(nn.Module):
    """Alpha of the cells, a cell being a block of a physical table.

    Args:
        names: [S] physical tables that are read.
        cells: cell of each row of every physical table, [R].
        dim: d.

    Attributes:
        alpha: [cells, d].
        rows: [cells, 1] of each, over the mean of those that have any.
        size: running mean of the mean size of their gradients, [cells, 1].
        price: of a byte, in units of the loss.
    """

    rows: Tensor
    size: Tensor
    price: Tensor

    def __init__(self, names: Sequence[str], cells: dict[str, Tensor], dim: int) -> None:
        super().__init__()
        count = max(int(cell.max()) for cell in cells.values()) + 1
        own = torch.cat([cells[name] for name in dict.fromkeys(names)])
        rows = torch.bincount(own, minlength=count).double().unsqueeze(1)
        self.place = PerRow(names, cells)
        self.alpha = nn.Parameter(torch.ones(count, dim))
        self.register_buffer("rows", (rows / rows[rows > 0].mean()).float(), persistent=False)
        self.register_buffer("size", torch.zeros(count, 1))
        self.register_buffer("price", torch.zeros(()))

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
        lr: float = Field(default=0.01, gt=0, description="first learning rate of alpha")
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

    def set_cells(self, names: Sequence[str], cells: dict[str, Tensor]) -> None:
        """Give each cell an alpha of ones, or take alpha away.

        Args:
            names: [S] physical tables that are read.
            cells: cell of each row of every physical table, [R]; empty takes alpha away.
        """
        self.cells = Cells(names, cells, self.dim) if cells else None

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
