"""Packed tables: the form that is served. One safetensors file, no pickle, no training code.

The file holds each arena of rows in its packed bits, the parameters and maps of the methods, and as
JSON metadata the features, vocabularies and plan from which the look-up is built again. Its bytes
are those of its tensors (the header of a few kilobytes is not counted).

Tables whose width prunes (`Width.prunes`) go to arenas that leave out zeros (`rows.pruned`); a file
that has such is of format 2.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from embtables.budget import Placed, Plan
from embtables.compressor import (
    Bags,
    Parts,
    Precision,
    RowTable,
    Segments,
    Table,
    parse_table,
    widths,
)
from embtables.features import Feature, Vocabulary
from embtables.groups import Group, as_packed
from embtables.rows.arena import Arena, ArenaReader, combined
from embtables.rows.gather import FORMS, Gather, PrunedGather
from embtables.rows.pruned import PrunedArena, pack_rows, prunable
from embtables.rows.store import Read, RowStore, float_rows
from embtables.tables import EmbeddingTables, Lookup

FORMAT = 2
"""Newest format that is read: 1 has plain arenas alone."""

_KEY = "embtables"
_PRUNED = "pruned-"
"""What the names of arenas without zeros begin with."""

_MANY_ZEROS = 0.2
"""Share of zeros from which on one expects that leaving them out saves bytes."""

log = logging.getLogger("embtables")


class PackedTables(Lookup):
    """Read-only tables from a packed file."""

    @classmethod
    def load(cls, path: Path | str) -> PackedTables:
        """Open a packed file; rows stay memory-mapped.

        Raises:
            ValueError: not a packed file, or of a later format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: not a file of packed embtables ({error})") from None
        if _KEY not in metadata:
            raise ValueError(f"{path}: not a file of packed embtables (no {_KEY!r} metadata)")
        return cls(tensors, json.loads(metadata[_KEY]))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> PackedTables:
        """Build from what `EmbeddingTables.pack_tensors` returned."""
        return cls(tensors, metadata)

    def __init__(self, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
        if metadata["format"] > FORMAT:
            raise ValueError(
                f"packed format {metadata['format']} is newer than this embtables reads ({FORMAT}); "
                "upgrade embtables"
            )
        features = [Feature(**feature) for feature in metadata["features"]]
        vocabularies = {n: Vocabulary(**v) for n, v in metadata["vocabularies"].items()}
        decided = {name: _placed(one) for name, one in metadata["plan"].items()}
        super().__init__(features, vocabularies, decided)
        self.file_bytes = _bytes_of(tensors)
        below = {
            k.removeprefix("groups."): t for k, t in tensors.items() if k.startswith("groups.")
        }
        self.groups.load_state_dict(below)
        reads = [cast(Group, group).read for group in self.groups]
        self.store = cast(RowStore, _FrozenStore(decided, reads, tensors, metadata["arenas"]))
        self.eval().requires_grad_(False)


class _FrozenStore(nn.Module):
    """Look-ups in packed arenas; nothing of a row store that trains."""

    weighs = True

    def __init__(
        self,
        decided: Plan,
        reads: Sequence[Read],
        tensors: Mapping[str, Tensor],
        arenas: Mapping[str, Sequence[str]],
    ) -> None:
        super().__init__()
        physical = {row.name: (row, one) for one in decided.values() for row in one.places}
        self.arenas = nn.ModuleDict()
        where = {}
        for name, members in arenas.items():
            prefix = f"rows.{name}."
            parts = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            precision = physical[members[0]][1].precision
            kind = PrunedArena if name.startswith(_PRUNED) else Arena
            self.arenas[name] = kind([physical[member][0] for member in members], precision, parts)
            where |= dict.fromkeys(members, name)
        held = [cast(Arena | PrunedArena, self.arenas[where[read.tables[0][0]]]) for read in reads]
        self.readers = nn.ModuleList(map(ArenaReader, reads, held))
        self._gathers = [
            Gather(reader, arena) if isinstance(arena, Arena) else PrunedGather(reader, arena)
            for reader, arena in zip(cast(list[ArenaReader], list(self.readers)), held, strict=True)
        ]
        self._by_kernels = [cast(Precision, one.precision).config.kind in FORMS for one in held]

    def lookup(
        self,
        rows: Sequence[Tensor],
        segments: Sequence[Segments],
        bags: Sequence[Bags | None],
    ) -> list[Tensor]:
        """Return the combined vectors of every group, as a row store does."""
        return list(map(self._read, self._gathers, self._by_kernels, rows, segments, bags))

    def _read(
        self,
        gather: Gather | PrunedGather,
        by_kernels: bool,
        rows: Tensor,
        segments: Segments,
        bags: Bags | None,
    ) -> Tensor:
        if by_kernels and rows.device.type == "cpu":
            return gather(rows, segments, bags).result()
        arena = gather.arena
        vectors = arena.gather(gather.reader(rows, segments), gather.reader.skips)
        return combined(vectors, gather.reader.combine, segments, bags)


def pack_tensors(tables: EmbeddingTables) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the packed form and the metadata that says how to read them."""
    physical = {row.name: (row, one) for one in tables.plan.values() for row in one.places}
    members: dict[str, list[str]] = {}
    for name, (row, one) in physical.items():
        members.setdefault(_arena_of(row, one), []).append(name)
    arenas: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for arena, names in members.items():
        precision = physical[names[0]][1].precision
        parts = _pack_plain(tables.store, names, precision)
        if arena.startswith(_PRUNED):
            pruned = _pack_pruned(tables.store, names, precision)
            smaller = _bytes_of(pruned) < _bytes_of(parts)
            arena, parts = (arena, pruned) if smaller else (f"whole-{arena}", parts)
        arenas[arena] = names
        tensors |= {f"rows.{arena}.{part}": tensor for part, tensor in parts.items()}
    for key, value in tables.groups.state_dict().items():
        tensors[f"groups.{key}"] = as_packed(value.detach()).cpu().contiguous()
    return tensors, {
        "format": FORMAT if any(arena.startswith(_PRUNED) for arena in arenas) else 1,
        "features": [asdict(feature) for feature in tables.features],
        "vocabularies": {
            name: {"rows": v.rows, "open": v.open, "oov": v.oov}
            for name, v in tables.vocabularies.items()
            if name in tables.plan
        },
        "plan": {
            name: {
                "table": asdict(replace(one.table, counts=None)),
                "config": one.config.model_dump(mode="json"),
                "places": [asdict(row) for row in one.places],
            }
            for name, one in tables.plan.items()
        },
        "arenas": arenas,
    }


def save(tables: EmbeddingTables, path: Path) -> int:
    """Write packed tables to a file; return the bytes of its tensors."""
    tensors, metadata = pack_tensors(tables)
    save_file(tensors, path, metadata={_KEY: json.dumps(metadata)})
    return _bytes_of(tensors)


def _bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _arena_of(row: RowTable, one: Placed) -> str:
    """Return the name of the arena of a physical table."""
    name = f"{one.precision.config.kind}x{row.dim}"
    prunes = widths.get(one.config.width.kind).prunes and prunable(one.precision, row.dim)
    return f"{_PRUNED}{name}" if prunes else name


def _pack_plain(store: RowStore, members: Sequence[str], precision: Precision) -> Parts:
    """Return the rows of tables one after another."""
    packed = [_packed_rows(store, name, precision) for name in members]
    return {part: torch.cat([one[part] for one in packed]).cpu() for part in packed[0]}


def _pack_pruned(store: RowStore, members: Sequence[str], precision: Precision) -> Parts:
    """Return the rows of tables without their zeros; say where that saves nothing."""
    rows = (
        (float_rows(store, name, precision), _packed_rows(store, name, precision))
        for name in members
    )
    parts, forms = pack_rows(rows, precision)
    futile = [
        name
        for name, form in zip(members, forms, strict=True)
        if form.dense and form.zeros >= _MANY_ZEROS
    ]
    if futile:
        log.warning(
            "pruning saved no bytes: packed forms without the zeros of %s would be larger than the "
            "dense table, which is packed instead; prune more, or whole rows or columns",
            ", ".join(futile),
        )
    return parts


def _packed_rows(store: RowStore, name: str, precision: Precision) -> Parts:
    held = store.export(name)
    stored = precision.encode(torch.zeros(1, 1))
    if held.keys() == stored.keys() and _same(held, stored):
        return held
    return precision.encode(as_packed(held["values"]))


def _same(held: Parts, stored: Parts) -> bool:
    return all(held[part].dtype == stored[part].dtype for part in held)


def _placed(one: dict[str, Any]) -> Placed:
    return Placed(
        Table(**one["table"]),
        parse_table(one["config"]),
        tuple(RowTable(**row) for row in one["places"]),
    )
