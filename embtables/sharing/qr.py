"""Quotient-remainder: an id reads one row for x div c and one for x mod c, and combines them.

    e(x) = Q[x div c] * R[x mod c]   (mult; or sum, or concatenated halves)

Paper: Shi et al., Compositional Embeddings Using Complementary Partitions, KDD 2020. Every id has a
(quotient, remainder) pair of its own. Bytes: (ceil(n/c) + c) * W * bits, no map; the smallest form
has c = ceil(sqrt(n)). When to use: closed vocabularies, moderate budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from embtables.compressor import Combine, RowTable, Segments, Sharing, Table, sharings
from embtables.registry import Config
from embtables.sharing._combine import combination, concatenates, part_width


@sharings.register("qr")
class QR(Sharing):
    """A quotient row and a remainder row an id."""

    divisors: Tensor

    class Config(Config):
        """Options of quotient-remainder tables."""

        kind: Literal["qr"] = "qr"
        combine: Literal["mult", "sum", "concat"] = Field(
            default="mult", description="product, sum, or concat: two rows of half the width"
        )
        collisions: int | None = Field(
            default=None,
            ge=2,
            description="one c for all tables; left out: a c for each table, solved from the budget",
        )

    @classmethod
    def allocate(
        cls, config: Any, tables: Sequence[Table], share: float
    ) -> dict[str, tuple[RowTable, ...]]:
        """The smallest c whose two tables hold at most share * n_f * W numbers; none at share 1.

        Raises:
            ValueError: a table with an open vocabulary: a quotient has no bound there.
        """
        return {table.name: pair for table in tables if (pair := cls._pair(config, table, share))}

    @classmethod
    def _pair(cls, config: Any, table: Table, share: float) -> tuple[RowTable, ...] | None:
        if table.open:
            raise ValueError(
                f"table {table.name!r}: qr divides ids of a closed vocabulary; "
                "with an open one use hash, double_hash or multiplex"
            )
        if share >= 1 and config.collisions is None:
            return None
        width = part_width(table.width, config.combine)
        target = share * table.rows * table.width / width
        c = config.collisions or divisor(table.rows, target)
        quotients = math.ceil(table.rows / c)
        if (quotients + c) * width >= table.rows * table.width:
            return None
        product = config.combine == "mult"
        # Output variance as a full table's: around one for a product, halved for a sum.
        scale = (
            0.5**0.5
            if config.combine == "sum"
            or (config.combine == "concat" and not concatenates(table.width, config.combine))
            else 1.0
        )
        return (
            RowTable(f"{table.name}/quotient", quotients, width, scale=scale),
            RowTable(f"{table.name}/remainder", c, width, scale=scale, mean=float(product)),
        )

    def __init__(
        self, config: Any, tables: Sequence[Table], places: Sequence[Sequence[RowTable]]
    ) -> None:
        super().__init__(config, tables, places)
        divisors = torch.tensor([remainder.rows for _, remainder in places])
        self.register_buffer("divisors", divisors, persistent=False)

    def encode(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return quotient and remainder rows [2, n]."""
        if ids.device.type == "cpu":
            from embtables import parallel
            from embtables.rows import kernels

            bounds = segments.bounds
            return parallel.call(kernels.divide, ids, self.divisors, bounds, items=len(ids))
        ids, divisors = segments.shape(ids), segments.spread(self.divisors)
        quotients = torch.div(ids, divisors, rounding_mode="floor")
        return torch.stack((quotients.flatten(), (ids - quotients * divisors).flatten()))

    @property
    def combine(self) -> Combine:
        """As configured."""
        return combination(self.width, self.config.combine)


def divisor(rows: int, target: float) -> int:
    """Return the smallest c with ceil(rows / c) + c <= target, or ceil(sqrt(rows)) if there is none.

    ceil(n/c) + c <= n/c + 1 + c, so c is at most one above the smaller root of c^2 - (t-1)c + n; the
    exact value is found from just below the real-valued root of c^2 - tc + n.
    """
    smallest = max(1, math.isqrt(rows - 1) + 1)
    if target * target < 4 * rows:
        return smallest
    c = max(2, math.floor((target - math.sqrt(target * target - 4 * rows)) / 2))
    while c < smallest and math.ceil(rows / c) + c > target:
        c += 1
    return min(c, smallest)
