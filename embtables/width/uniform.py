"""One width for all tables: the model's own, or under a byte budget a narrower one.

    W = max(1, floor(share * D))

The model is built at the narrower width, without projection. `full` with this width under a budget
is the baseline that every compressor has to beat. Bytes: n * W * bits; floor 1/D of the full table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from embtables.compressor import Segments, Table, Width, widths
from embtables.registry import Config


@widths.register("uniform")
class Uniform(Width):
    """Stored width = the model's width."""

    class Config(Config):
        """No options."""

        kind: Literal["uniform"] = "uniform"

    @classmethod
    def sized(cls, config: Any) -> bool:
        """It narrows only where no other method follows the share."""
        return False

    @classmethod
    def widths(cls, config: Any, tables: Sequence[Table], share: float) -> list[int]:
        """floor(share * D), at least 1."""
        return [max(1, int(share * table.dim)) for table in tables]

    @classmethod
    def granted(cls, table: Table) -> int:
        """The stored width: the model is built narrower."""
        return table.width

    def decode(self, vectors: Tensor, rows: Tensor, segments: Segments) -> Tensor:
        """Return the vectors as they are."""
        return vectors
