"""Maps from id to row, one row number an id in as few bytes as the table needs.

Shape letters: S segments of a group, n ids, R rows of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embtables.compressor import RowTable, Segments, Table


def index_bytes(rows: int) -> int:
    """Return the bytes that hold any of R row numbers."""
    return max(1, -(-(rows - 1).bit_length() // 8))


class RowMaps(nn.Module):
    """The maps of the tables of a group, side by side in one buffer of bytes (little-endian).

    Args:
        tables: [S] logical table of each segment; those of one name share a map.
        places: [S] physical table of each.
    """

    packed: Tensor
    starts: Tensor
    widths: Tensor

    def __init__(self, tables: Sequence[Table], places: Sequence[RowTable]) -> None:
        super().__init__()
        self._cuts: dict[str, tuple[int, int, int]] = {}
        start = 0
        for table, place in zip(tables, places, strict=True):
            if table.name not in self._cuts:
                width = index_bytes(place.rows)
                self._cuts[table.name] = (start, table.rows, width)
                start += table.rows * width
        cuts = [self._cuts[table.name] for table in tables]
        self.register_buffer("packed", torch.zeros(start, dtype=torch.uint8))
        self.register_buffer("starts", torch.tensor([c[0] for c in cuts]), persistent=False)
        self.register_buffer("widths", torch.tensor([c[2] for c in cuts]), persistent=False)

    def set(self, table: str, rows: np.ndarray) -> None:
        """Set the row [ids of the table] of every id of a table."""
        start, count, width = self._cuts[table]
        digits = rows.astype("<u8").view(np.uint8).reshape(count, 8)[:, :width]
        self.packed[start : start + count * width] = torch.from_numpy(digits.reshape(-1).copy())

    def get(self, table: str) -> np.ndarray:
        """Return the row [ids of the table] of every id of a table."""
        start, count, width = self._cuts[table]
        digits = np.zeros((count, 8), np.uint8)
        digits[:, :width] = self.packed[start : start + count * width].view(count, width).cpu()
        return digits.view("<u8").reshape(-1).astype(np.int64)

    def forward(self, ids: Tensor, segments: Segments) -> Tensor:
        """Return the rows [n] of ids [n]."""
        if ids.device.type == "cpu":
            from embtables import parallel
            from embtables.rows import kernels

            return parallel.call(
                kernels.map_rows, ids, self.packed, self.starts, self.widths, segments.bounds,
                items=len(ids),
            )  # fmt: skip
        return self._by_tensors(ids, segments)

    def _by_tensors(self, ids: Tensor, segments: Segments) -> Tensor:
        width = segments.spread(self.widths)
        at = segments.spread(self.starts) + segments.shape(ids) * width
        rows = torch.zeros_like(at)
        for digit in range(int(self.widths.max())):
            inside = digit < width
            found = self.packed[torch.where(inside, at + digit, at)].long() << 8 * digit
            rows += torch.where(inside, found, 0)
        return rows.flatten()
