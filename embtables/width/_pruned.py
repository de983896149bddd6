"""What widths that prune have in common: rows in which some numbers are zeros that stay zero.

A number that a search has pruned is exactly zero in its row, and no gradient reaches it, so that no
optimizer moves it: the pruned table is what is trained and what is packed (`rows.pruned`). No mask is
kept beside the rows.

Shape letters: S segments of a group, R rows of a physical table, d numbers in a row, n ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import isinf
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from embtables.compressor import Segments, Table, Width
from embtables.rows.pruned import pruned_bytes
from embtables.search import Search, counted

Retrain = Annotated[
    Literal["initial", "found"],
    Field(description="weights that training goes on from after the search"),
]

_STEPS = 40
"""Bisection steps of a threshold."""
_MORE = 64
"""Levels below the threshold that are tried."""


class PrunedWidth(Width):
    """Rows as wide as the model's vectors, with zeros where a search has pruned.

    Attributes:
        learns: a stage is on in which zeros may become other numbers.
    """

    prunes: ClassVar[bool] = True

    def __init__(self, config: Any, tables: Sequence[Table]) -> None:
        super().__init__(config, tables)
        self.learns = False

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """D: what is left of a row is the search's to find."""
        return [table.dim for table in tables]

    @classmethod
    def needs(cls, config: Any) -> Literal["one row"]:
        """Rows are pruned as they are stored."""
        return "one row"

    @property
    def linear(self) -> bool:
        """Only once nothing is trained: gradients are held back by the zeros of each id."""
        return not (self.training or self.learns)

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return the vectors; while training no gradient reaches their zeros."""
        if self.learns or not self.training:
            return vectors
        return torch.where(vectors != 0, vectors, vectors.new_zeros(()))


class PerRow(nn.Module):
    """A constant for each physical row that a group reads, looked up by the rows of a batch.

    Args:
        names: [S] physical table of each segment.
        constants: [R] of each of them, by name.
    """

    base: Tensor
    values: Tensor

    def __init__(self, names: Sequence[str], constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        tables = list(dict.fromkeys(names))
        ends = accumulate(len(constants[name]) for name in tables)
        starts = dict(zip(tables, [0, *ends], strict=False))
        base = torch.tensor([starts[name] for name in names])
        self.register_buffer("base", base, persistent=False)
        values = torch.cat([constants[name] for name in tables])
        self.register_buffer("values", values, persistent=False)

    def forward(self, rows: Tensor, segments: Segments) -> Tensor:
        """Return the constants of rows [1, n]: [S, B] or [n]; of -1, no row, that of another row."""
        places = segments.shape(rows[0]) + segments.spread(self.base)
        return self.values[places.clamp(min=0)]


P = TypeVar("P", bound=PrunedWidth)


class PruningSearch(Search[P]):
    """A search that ends with zeros in the rows, as many as the byte budget asks for."""

    @cached_property
    def share(self) -> float:
        """The budget over the bytes of the unpruned rows, at most 1."""
        dense = sum(
            table.rows * self.placed[name].precision.row_bytes(table.dim)
            for name, table in self.physical.items()
        )
        return min(self.limit / dense, 1.0)

    @cached_property
    def unread(self) -> dict[str, Tensor]:
        """Which rows [R, 1] training never reads, by physical table, where some must go."""
        tables = (table for group in self.groups for table in group.tables)
        if isinf(self.limit) or not all(map(counted, tables)):
            return {}
        never = {name: reads == 0 for name, reads in self.reads().items()}
        return {n: rows.unsqueeze(1).to(self.device) for n, rows in never.items() if rows.any()}

    def read_in_training(self, name: str, rows: Tensor) -> Tensor:
        """Return rows [R, d] of a physical table with zeros in those that training never reads.

        Public implementations lose such rows to the weight decay of a dense optimizer; one that is
        row-sparse leaves them as they were drawn, larger than much that is trained.
        """
        return rows.masked_fill(self.unread[name], 0.0) if name in self.unread else rows

    def prune(
        self,
        rows: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        levels: Sequence[float] = (),
        first_rows: Callable[[str], Tensor] | None = None,
    ) -> None:
        """Set the rows, with zeros at the smallest scores, so many that they pack into the budget.

        Args:
            rows: physical table -> what its rows would be unpruned, [R, d].
            scores: physical table -> worth of each number, [R, d] or [R, 1], not negative; what is
                worth 0 goes first.
            levels: scores that many numbers have in common, falling. Where they are few and large, those
                that still fit below the threshold are kept.
            first_rows: what `retrain=initial` goes on from, by name; default: those of these tables.

        Raises:
            ValueError: not even rows of zeros would pack into the budget.
        """
        threshold = smallest(
            lambda value: self.bytes_of(_above(rows, scores, value)) <= self.limit,
            max(float(score.max()) for score in scores.values()),
        )
        if threshold is None:
            raise ValueError(
                f"a budget of {self.tables.budget:,} bytes leaves {self.limit:,.0f} for the rows of "
                f"{self.config.kind}, and not even empty tables pack into them; raise the budget"
            )
        kept = _above(rows, scores, threshold)
        below = [level for level in levels if 0 < level <= threshold]
        for level in below[:_MORE]:
            more = {
                name: torch.where(score == level, rows[name], kept[name])
                for name, score in scores.items()
                if bool((score == level).any())
            }
            if self.bytes_of(kept | more) <= self.limit:
                kept |= more
        for name, table in kept.items():
            if self.config.retrain == "initial":
                table = torch.where(table != 0, (first_rows or self.first_rows)(name), 0.0)
            self.set_rows(name, table)

    def bytes_of(self, rows: Mapping[str, Tensor]) -> int:
        """Return the bytes that physical tables with zeros where these rows [R, d] have may take.

        Numbers that a precision would round to zero count: retraining may make them larger.
        """
        return sum(
            pruned_bytes((table != 0).float(), self.placed[name].precision)
            for name, table in rows.items()
        )


def smallest(fits: Callable[[float], bool], most: float) -> float | None:
    """Return about the smallest threshold in [-1, most] that fits, or None if none does."""
    if fits(-1.0):
        return -1.0
    if not fits(most):
        return None
    low, high = 0.0, most
    if fits(low):
        return low
    for _ in range(_STEPS):
        # Worths span orders of magnitude: halve the ratio, once both ends are above zero.
        middle = (low * high) ** 0.5 if low > 0 else high / 16
        if middle in (low, high) or middle < most * 1e-12:
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _above(
    rows: Mapping[str, Tensor], scores: Mapping[str, Tensor], threshold: float
) -> dict[str, Tensor]:
    return {name: torch.where(scores[name] > threshold, rows[name], 0.0) for name in rows}
