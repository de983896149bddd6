"""Arena: physical tables of one width and one stored form, one after another in one tensor.

A gather then serves any number of tables, and packing writes one tensor for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from embtables.compressor import Bags, Combine, Parts, Precision, RowTable, Segments
from embtables.rows.pages import in_large_pages
from embtables.rows.store import Read, RowStore, StoreSpec

if TYPE_CHECKING:
    from embtables.rows.pruned import PrunedArena


class Arena(nn.Module):
    """Rows of several tables.

    Args:
        tables: they all have one width.
        precision: what the parts mean; None for plain floats.
        parts: stored rows of all tables, in order.
        trainable: register plain floats as a parameter.
    """

    values: Tensor
    scale: Tensor

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
    def dim(self) -> int:
        """Numbers in a row."""
        return self.values.shape[1]

    @property
    def parts(self) -> Parts:
        """The stored rows of all tables."""
        return {name: getattr(self, name) for name in self.names}

    def table(self, name: str) -> Parts:
        """Return the stored rows of one table, as views."""
        return {key: part[self.place(name)] for key, part in self.parts.items()}

    def place(self, name: str) -> slice:
        """Return where the rows of one table are."""
        return slice(self.base[name], self.base[name] + self.rows[name])

    def gather(self, rows: Tensor, skips: bool = False) -> Tensor:
        """Return float rows [..., d] of arena rows [...]; with `skips` zeros of rows that are -1."""
        if skips:
            found = self.gather(rows.clamp(min=0))
            return torch.where((rows < 0).unsqueeze(-1), found.new_zeros(()), found)
        flat = rows.reshape(-1)
        found = {name: part.index_select(0, flat) for name, part in self.parts.items()}
        values = self.precision.decode(found) if self.precision else found["values"]
        return values.view(*rows.shape, values.shape[1])


class ArenaReader(nn.Module):
    """Turns rows of a group's tables into rows of their arena."""

    base: Tensor

    def __init__(self, read: Read, arena: Arena | PrunedArena) -> None:
        super().__init__()
        base = torch.tensor([[arena.base[name] for name in names] for names in read.tables])
        self.register_buffer("base", base, persistent=False)
        self.combine: Combine = read.combine
        self.skips = read.skips

    def forward(self, rows: Tensor, segments: Segments) -> Tensor:
        """Return arena rows [K, n] of table rows [K, n]; -1 stays -1."""
        if segments.single:
            shaped = rows.view(len(rows), len(segments.lengths), -1)
            found = (shaped + self.base.unsqueeze(-1)).view(len(rows), -1)
        else:
            found = rows + segments.spread(self.base)
        return torch.where(rows < 0, rows, found) if self.skips else found


def combined(
    vectors: Tensor, combine: Combine, segments: Segments, bags: Bags | None = None
) -> Tensor:
    """Combine [K, n, d] as a store's look-up returns it: [S, B, C], or [n, C]."""
    if combine == "sum":
        found = vectors.sum(0)
    elif combine == "mult":
        found = reduce(torch.mul, vectors.unbind(0))
    else:
        found = vectors[0] if len(vectors) == 1 else vectors.transpose(0, 1).flatten(1)
    if bags is not None:
        return pooled(found, bags)
    return found.view(len(segments.lengths), -1, found.shape[1]) if segments.single else found


def pooled(vectors: Tensor, bags: Bags) -> Tensor:
    """Add up vectors [.., C] by bags, as a store's look-up returns it: [S, B, C], or [O, C]."""
    flat, lengths = vectors.flatten(0, -2), bags.offsets.diff()
    if bags.weights is not None:
        flat = flat * bags.weights.unsqueeze(-1)
    found = torch.segment_reduce(flat, "sum", lengths=lengths, axis=0, initial=0, unsafe=True)
    if bags.divisors is not None:
        found = found / bags.divisors.unsqueeze(-1)
    cut = bags.segments
    return found.view(len(cut.lengths), -1, found.shape[1]) if cut.single else found


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


class ArenaStore(RowStore):
    """What stores that keep their rows in arenas have in common: rows, state, saving.

    A training state is the same for all of them, so that one backend continues from another.
    """

    def __init__(self, spec: StoreSpec) -> None:
        super().__init__(spec)

        def first_rows(members: list[RowTable], precision: Precision | None) -> Parts:
            count, none = sum(table.rows for table in members), torch.empty(0, members[0].dim)
            parts = {
                key: in_large_pages(
                    torch.empty(count, *part.shape[1:], dtype=part.dtype, device=spec.device)
                )
                for key, part in _stored(none.to(spec.dtype), precision).items()
            }
            start = 0
            for table in members:
                for place, rows in spec.first_rows(table):
                    for key, part in _stored(rows, precision).items():
                        parts[key][start + place.start : start + place.stop] = part
                start += table.rows
            return parts

        self.rounds = bool(spec.held)
        stored = {name: p if p.while_training else None for name, p in spec.precisions.items()}
        self.arenas, self.where = build_arenas(
            spec.tables, stored, first_rows, trainable=spec.optimizer is None
        )
        self.read_arenas = [self.where[read.tables[0][0]] for read in spec.reads]
        self.readers = nn.ModuleList(
            ArenaReader(read, self.arena(name))
            for read, name in zip(spec.reads, self.read_arenas, strict=True)
        )
        self.steps = 0
        like = torch.empty(0, dtype=spec.dtype, device=spec.device)
        self.state = {
            name: spec.optimizer.state(*arena.values.shape, like=like)
            for name, arena in self.named_arenas()
            if spec.optimizer
        }
        self.to(spec.device)

    def arena(self, name: str) -> Arena:
        """Return an arena by its name."""
        return cast(Arena, self.arenas[name])

    def named_arenas(self) -> Iterator[tuple[str, Arena]]:
        """Return every arena with its name."""
        return ((name, cast(Arena, arena)) for name, arena in self.arenas.items())

    def export(self, name: str) -> Parts:
        """Return a table as it is held, as views."""
        table = self.arena(self.where[name]).table(name)
        return {key: part.detach() for key, part in table.items()}

    @torch.no_grad()
    def load(self, name: str, rows: Tensor) -> None:
        """Set a table from float values."""
        arena = self.arena(self.where[name])
        stored = _stored(rows, arena.precision)
        for key, part in arena.table(name).items():
            part.copy_(stored[key])

    def training_state(self) -> dict[str, Tensor]:
        """Return rows and optimizer state by table, as views, and the step."""
        flat = {}
        for table, name in self.where.items():
            flat |= {f"rows.{table}.{key}": part for key, part in self.export(table).items()}
            place = self.arena(name).place(table)
            for key, tensor in self.state.get(name, {}).items():
                flat[f"optimizer.{table}.{key}"] = tensor[place]
        flat["step"] = torch.tensor(self.steps)
        return flat

    @torch.no_grad()
    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in place."""
        super().load_training_state(state)
        self.steps = int(state["step"])

    def restart(self) -> None:
        """Forget the optimizer's state, and count steps from one again."""
        super().restart()
        self.steps = 0


def _stored(rows: Tensor, precision: Precision | None) -> Parts:
    """Return float rows as an arena holds them."""
    return precision.encode(rows) if precision else {"values": rows}
