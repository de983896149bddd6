"""The byte budget: one number, the share, that turns bytes into the size of every table.

`plan` decides, for each logical table, which physical tables it reads and how wide they are, so that
all of them together are as large as the budget allows. Where both sharing and width follow the
share, each takes its square root, so that together they shrink a table by the share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embtables.compressor import (
    Precision,
    RowTable,
    Table,
    TableConfig,
    precisions,
    sharings,
    widths,
)
from embtables.registry import nearest

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_STEPS = 60  # bisection steps: the share is then exact to a float's last bits


def parse_bytes(value: int | float | str) -> int:
    """Return bytes from a number or a text such as 10MB (10^6) or 10MiB (2^20).

    Raises:
        ValueError: not a size, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*", str(value))
    unit = match[2].upper() if match else ""
    if not match or (unit and unit not in UNITS):
        raise ValueError(f"{value!r} is not a size in bytes; write e.g. 500000, 10MB or 2GiB")
    size = int(float(match[1]) * UNITS.get(unit, 1))
    if size < 1:
        raise ValueError(f"a byte budget must be positive, got {value!r}")
    return size


@dataclass(frozen=True)
class Placed:
    """What a budget has decided for one logical table.

    Attributes:
        table: the table, with its stored width.
        config: its methods; sharing is `full` where the method asked for would not shrink it.
        places: physical tables that an id reads.
    """

    table: Table
    config: TableConfig
    places: tuple[RowTable, ...]

    @property
    def granted(self) -> int:
        """Width that the model gets."""
        return widths.get(self.config.width.kind).granted(self.table)

    @property
    def precision(self) -> Precision:
        """The bits of its rows; float32 where the method asked for would take as much."""
        asked = precisions.get(self.config.precision.kind)(self.config.precision)
        dim = self.places[0].dim
        if asked.row_bytes(dim) < 4 * dim:
            return asked
        plain = precisions.get("fp32")
        return plain(plain.Config())

    @property
    def extra_bytes(self) -> int:
        """Bytes beside its rows: maps, and projections in float32."""
        sharing = self.config.sharing
        maps = sharings.get(sharing.kind).map_bytes(sharing, self.table, self.places)
        return maps + 4 * widths.get(self.config.width.kind).extra_numbers(self.table)


Plan = dict[str, Placed]


def plan_bytes(plan: Plan) -> int:
    """Return the bytes of a plan when packed: every physical table once, and what is beside them."""
    rows = {
        p.name: p.rows * placed.precision.row_bytes(p.dim)
        for placed in plan.values()
        for p in placed.places
    }
    return sum(rows.values()) + sum(placed.extra_bytes for placed in plan.values())


def uncompressed_bytes(tables: Iterable[Table]) -> int:
    """Return the float32 bytes of one full row for every id."""
    return sum(4 * table.rows * table.dim for table in tables)


def plan(
    tables: Sequence[Table],
    default: TableConfig,
    fields: Mapping[str, TableConfig],
    budget: int | None = None,
    ratio: float | None = None,
) -> Plan:
    """Decide the size of every table.

    Args:
        tables: logical tables.
        default: what tables are made of.
        fields: table name -> what that table is made of instead. A first-order table ``C3:linear``
            follows ``C3`` unless named itself.
        budget: bytes of all tables when packed.
        ratio: the same as a share of the uncompressed float32 bytes. Neither: nothing shrinks.

    Raises:
        ValueError: both given, a ratio that is not positive, an unknown table in `fields`, or a
            budget below the smallest reachable size, which the message names.
    """
    configs = _configs(tables, default, fields)
    if budget is not None and ratio is not None:
        raise ValueError("budget and ratio both give the size; choose one")
    if ratio is not None:
        if ratio <= 0:
            raise ValueError(f"ratio must be positive, got {ratio}")
        budget = max(1, int(ratio * uncompressed_bytes(tables)))
    if budget is None:
        return _at(tables, configs, 1.0)
    return _largest(tables, configs, budget)


def _configs(
    tables: Sequence[Table], default: TableConfig, fields: Mapping[str, TableConfig]
) -> dict[str, TableConfig]:
    names = [table.name for table in tables]
    for name in fields:
        if name not in names:
            raise ValueError(
                f"fields.{name}: no such table.{nearest(name, names)} Tables: {', '.join(names)}"
            )
    return {name: fields.get(name, fields.get(name.partition(":")[0], default)) for name in names}


def _largest(tables: Sequence[Table], configs: Mapping[str, TableConfig], budget: int) -> Plan:
    best = _at(tables, configs, 1.0)
    if plan_bytes(best) <= budget:
        return best
    low, high = 0.0, 1.0
    best = _at(tables, configs, low)
    if (smallest := plan_bytes(best)) > budget:
        kinds = ", ".join(sorted({str(config) for config in configs.values()}))
        raise ValueError(
            f"a budget of {budget:,} bytes cannot be met by {kinds}: the smallest reachable size is "
            f"{smallest:,} bytes (ratio {smallest / uncompressed_bytes(tables):.4f}). Raise the "
            "budget, or take methods that reach lower (hash and multiplex reach lowest)"
        )
    for _ in range(_STEPS):
        share = (low + high) / 2
        found = _at(tables, configs, share)
        if plan_bytes(found) <= budget:
            low, best = share, found
        else:
            high = share
    return best


def _at(tables: Sequence[Table], configs: Mapping[str, TableConfig], share: float) -> Plan:
    """Return the plan of a share."""
    narrows = not any(follows_share(config) for config in configs.values())
    placed: Plan = {}
    for config in dict.fromkeys(configs.values()):
        members = [table for table in tables if configs[table.name] == config]
        placed |= _place(members, config, share, narrows)
    return {table.name: placed[table.name] for table in tables}


def follows_share(config: TableConfig) -> bool:
    """Return whether a method that was asked for by name shrinks under a budget."""
    return sharings.get(config.sharing.kind).sized or _width_follows(config)


def _width_follows(config: TableConfig) -> bool:
    return widths.get(config.width.kind).sized(config.width)


def _place(tables: Sequence[Table], config: TableConfig, share: float, narrows: bool) -> Plan:
    sharing, width = sharings.get(config.sharing.kind), widths.get(config.width.kind)
    follows = _width_follows(config) or narrows
    each = share**0.5 if sharing.sized and follows else share
    stored = width.widths(config.width, tables, each if follows else 1.0)
    tables = [table.narrowed(value) for table, value in zip(tables, stored, strict=True)]
    places = sharing.allocate(config.sharing, tables, each)
    full = sharings.get("full")
    closed = [table for table in tables if not table.open or table.name not in places]
    rows = full.allocate(full.Config(), closed, 1.0)
    as_full = config.model_copy(update={"sharing": full.Config()})
    plain = {table.name: Placed(table, as_full, rows[table.name]) for table in closed}
    asked = {t.name: Placed(t, config, places[t.name]) for t in tables if t.name in places}
    users = Counter(name for one in asked.values() for name in {row.name for row in one.places})
    for name, own in plain.items():
        if name in asked and all(users[row.name] == 1 for row in asked[name].places):
            # A row's own bytes (a scale) can cost more than shorter or fewer rows save.
            asked |= {name: min(asked[name], own, key=lambda one: plan_bytes({name: one}))}
    return plain | asked
