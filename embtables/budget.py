"""The byte budget: one number, the share, that turns bytes into the size of every table.

`plan` decides, for each logical table, which physical tables it reads and how wide they are, so that
all of them together are as large as the budget allows. Where both sharing and width follow the
share, each takes its square root, so that together they shrink a table by the share.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
        share: what a search will leave of the bytes of the rows, at most; 1 where there is none.
    """

    table: Table
    config: TableConfig
    places: tuple[RowTable, ...]
    share: float = 1.0

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

    def row_bytes(self, place: RowTable) -> int:
        """Return the bytes of a physical table when packed."""
        # A search may hold more than the model's width while it tries widths.
        whole = place.rows * self.precision.row_bytes(min(place.dim, self.table.dim))
        search = widths.get(self.config.width.kind).search(self.config.width)
        if search is None or self.share == 1.0:
            return whole
        return max(search.least(self, place), math.floor(self.share * whole))

    @property
    def map_bytes(self) -> int:
        """Bytes of what finds its rows."""
        sharing = self.config.sharing
        return sharings.get(sharing.kind).map_bytes(sharing, self.table, self.places)

    @property
    def extra_bytes(self) -> int:
        """Bytes beside its rows: maps, and projections in float32."""
        return self.map_bytes + 4 * sum(self.extra_numbers.values())

    @property
    def extra_numbers(self) -> dict[Any, int]:
        """What -> float32 numbers of its projections; equal whats are one."""
        width = self.config.width
        found = widths.get(width.kind).extra_numbers(width, self.table)
        return {(self.group, name): numbers for name, numbers in found.items()}

    @property
    def group(self) -> tuple[Any, ...]:
        """Tables for which this is equal are handled together (`groups.build_groups`)."""
        methods = self.config.sharing, self.config.width, self.precision.config
        first = self.places[0].dim
        return *methods, len(self.places), first, self.table.width, self.granted


Plan = dict[str, Placed]


def plan_bytes(plan: Plan) -> int:
    """Return the bytes of a plan when packed: every physical table once, and what is beside them."""
    rows = {p.name: placed.row_bytes(p) for placed in plan.values() for p in placed.places}
    numbers = {name: n for placed in plan.values() for name, n in placed.extra_numbers.items()}
    maps = sum(placed.map_bytes for placed in plan.values())
    return sum(rows.values()) + maps + 4 * sum(numbers.values())


def with_widths(plan: Plan, found: Mapping[str, int]) -> Plan:
    """Return the plan with other stored widths, which a search has found.

    Args:
        plan: the plan of the search.
        found: logical table -> stored width; tables left out stay as they are.
    """

    def widened(one: Placed, width: int) -> Placed:
        # The K rows of an id are parts of a concatenation, or each as wide as the vector.
        part = -(-width // len(one.places)) if one.places[0].dim < one.table.width else width
        places = tuple(replace(place, dim=part) for place in one.places)
        # Narrower rows have their bytes; rows that are pruned have them when that is done.
        left = one.share if widths.get(one.config.width.kind).prunes else 1.0
        return replace(one, table=one.table.narrowed(width), places=places, share=left)

    return {name: widened(one, found[name]) if name in found else one for name, one in plan.items()}


def uncompressed_bytes(tables: Iterable[Table]) -> int:
    """Return the float32 bytes of one full row for every id."""
    return sum(4 * table.rows * table.dim for table in tables)


def byte_budget(
    tables: Iterable[Table], budget: int | None = None, ratio: float | None = None
) -> int | None:
    """Return the bytes that a budget or a ratio of the uncompressed bytes allows; None: any.

    Raises:
        ValueError: both given, or a ratio that is not positive.
    """
    if budget is not None and ratio is not None:
        raise ValueError("budget and ratio both give the size; choose one")
    if ratio is None:
        return budget
    if ratio <= 0:
        raise ValueError(f"ratio must be positive, got {ratio}")
    return max(1, int(ratio * uncompressed_bytes(tables)))


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
        ValueError: both given, a ratio that is not positive, an unknown table in `fields`, methods
            that do not go together, or a budget below the smallest reachable size, which the message
            names.
    """
    configs = table_configs(tables, default, fields)
    budget = byte_budget(tables, budget, ratio)
    if budget is None:
        return _at(tables, configs, 1.0)
    return _largest(tables, configs, budget)


def smallest_plan(
    tables: Sequence[Table], default: TableConfig, fields: Mapping[str, TableConfig]
) -> Plan:
    """Return the plan of the fewest bytes that the methods reach; arguments and errors as `plan`."""
    return _smallest(tables, table_configs(tables, default, fields))


def _smallest(tables: Sequence[Table], configs: Mapping[str, TableConfig]) -> Plan:
    # What a method needs beside rows (a projection) can cost a tiny table more than it saves.
    return min((_at(tables, configs, share) for share in (0.0, 1.0)), key=plan_bytes)


def table_configs(
    tables: Sequence[Table], default: TableConfig, fields: Mapping[str, TableConfig]
) -> dict[str, TableConfig]:
    """Return what each table is made of.

    Raises:
        ValueError: an unknown table in `fields`.
    """
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
    if plan_bytes(best) > budget:
        smallest = plan_bytes(_smallest(tables, configs))
        kinds = ", ".join(sorted({str(config) for config in configs.values()}))
        whole = uncompressed_bytes(tables)
        ratio = math.ceil(1e4 * smallest / whole) / 1e4
        ratio = min(1.0, ratio if int(ratio * whole) >= smallest else ratio + 1e-4)
        raise ValueError(
            f"a budget of {budget:,} bytes cannot be met by {kinds}: the smallest reachable size is "
            f"{smallest:,} bytes (ratio {ratio:.4f}). Raise the budget, or take methods that reach "
            "lower (hash+int8 and multiplex+int8 reach lowest)"
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
    _check_needs(config, width.needs(config.width), tables, places)
    full = sharings.get("full")
    closed = [table for table in tables if not table.open or table.name not in places]
    rows = full.allocate(full.Config(), closed, 1.0)
    as_full = config.model_copy(update={"sharing": full.Config()})
    left = 1.0 if width.search(config.width) is None else each
    plain = {table.name: Placed(table, as_full, rows[table.name], left) for table in closed}
    asked = {t.name: Placed(t, config, places[t.name], left) for t in tables if t.name in places}
    users = Counter(name for one in asked.values() for name in {row.name for row in one.places})
    for name, own in plain.items():
        if name in asked and all(users[row.name] == 1 for row in asked[name].places):
            # A row's own bytes (a scale) can cost more than shorter or fewer rows save.
            asked |= {name: min(asked[name], own, key=lambda one: plan_bytes({name: one}))}
    return plain | asked


def _check_needs(
    config: TableConfig,
    needs: str,
    tables: Sequence[Table],
    places: Mapping[str, tuple[RowTable, ...]],
) -> None:
    """Raise ValueError unless a sharing offers the rows that a width needs."""
    most = max(map(len, places.values()), default=1)
    users = Counter(row.name for rows in places.values() for row in rows)
    shared = max(users.values(), default=1) > 1
    # Rows of one width for all tables have no room for what a search holds beside D numbers.
    narrow = any(places[t.name][0].dim < t.width for t in tables if t.name in places)
    if needs == "any rows":
        return
    if most == 1 and not narrow and (needs == "one row" or not shared):
        return
    does = "lets several tables read one row"
    if most > 1:
        does = f"makes one vector of {most} rows"
    elif narrow:
        does = "has rows of the model's width alone"
    own = "rows of its own" if needs == "own rows" else needs
    raise ValueError(
        f"{config.width.kind} takes a sharing that reads {own} an id, and {config.sharing.kind} {does}; "
        "use one that does, such as full, hash or frequency_cut, or another width"
    )
