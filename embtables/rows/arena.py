"""Arena: physical tables of one width and one stored form, one after another in one tensor.

A gather then serves any number of tables, and packing writes one tensor for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from embtables.compressor import Parts, Precision, RowTable, Segments
from embtables.rows.store import Read


class Arena(nn.Module):
    """Rows of several tables.

    Args:
        tables: they all have one width.
        precision: what the parts mean; None for plain floats.
        parts: stored rows of all tables, in order.
        trainable: register plain floats as a parameter.
    """

    values: Tensor

    def __init__(
        self,
        tables: Sequence[RowTable],
        precision: Precision | None,
        parts: Parts,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.names = tuple(parts)
        self.base: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        start = 0
        for table in tables:
            self.base[table.name], self.rows[table.name] = start, table.rows
            start += table.rows
        for name, tensor in parts.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    @property
    def parts(self) -> Parts:
        """The stored rows of all tables."""
        return {name: getattr(self, name) for name in self.names}

    def table(self, name: str) -> Parts:
        """Return the stored rows of one table, as views."""
        start = self.base[name]
        return {key: part[start : start + self.rows[name]] for key, part in self.parts.items()}

    def gather(self, rows: Tensor) -> Tensor:
        """Return float rows [..., d] of arena rows [...]."""
        flat = rows.reshape(-1)
        found = {name: part.index_select(0, flat) for name, part in self.parts.items()}
        values = self.precision.decode(found) if self.precision else found["values"]
        return values.view(*rows.shape, values.shape[1])


class ArenaReader(nn.Module):
    """Turns rows of a group's tables into rows of their arena."""

    base: Tensor

    def __init__(self, read: Read, arena: Arena) -> None:
        super().__init__()
        base = torch.tensor([[arena.base[name] for name in names] for names in read.tables])
        self.register_buffer("base", base, persistent=False)

    def forward(self, rows: Tensor, segments: Segments) -> Tensor:
        """Return arena rows [K, n] of table rows [K, n]."""
        if segments.equal and segments.total:
            shaped = rows.view(len(rows), len(segments.lengths), -1)
            return (shaped + self.base.unsqueeze(-1)).view(len(rows), -1)
        return rows + segments.spread(self.base)


def build_arenas(
    tables: Sequence[RowTable],
    stored: dict[str, Precision | None],
    make: Callable[[list[RowTable], Precision | None], Parts],
    trainable: bool = False,
) -> tuple[nn.ModuleDict, dict[str, str]]:
    """Return the arenas by name, and the arena name of each table."""
    members: dict[str, list[RowTable]] = {}
    where: dict[str, str] = {}
    for table in tables:
        precision = stored[table.name]
        form = precision.config.kind if precision else "float"
        where[table.name] = f"{form}x{table.dim}"
        members.setdefault(where[table.name], []).append(table)
    arenas = nn.ModuleDict()
    for name, group in members.items():
        precision = stored[group[0].name]
        arenas[name] = Arena(group, precision, make(group, precision), trainable)
    return arenas, where
