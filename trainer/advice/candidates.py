"""Tables that could be tried: every registered method, planned under the budget by the engine itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embtables.budget import Plan, plan, plan_bytes, smallest_plan
from embtables.compressor import (
    AXES,
    DEFAULTS,
    Table,
    TableConfig,
    parse_table,
    widths,
)
from embtables.rows.optimizers import RowOptimizer
from trainer.advice.facts import base_of
from trainer.planning import trained_bytes

Fields = dict[str, TableConfig]


@dataclass(frozen=True)
class Candidate:
    """A table that could be tried.

    Attributes:
        table: compact form.
        bytes: of all tables when packed, as planned; 0 if it cannot be.
        training: bytes of rows, optimizer state, maps and projections while training; what a search
            learns of the structure comes on top.
        least: the smallest it can be, bytes.
        searches: whether it trains in stages.
        exact: tables that are better left uncompressed beside it.
        refusal: why it cannot be tried; empty if it can.
    """

    table: str
    bytes: int = 0
    training: int = 0
    least: int = 0
    searches: bool = False
    exact: tuple[str, ...] = ()
    refusal: str = ""


def known_tables(more: Iterable[str] = ()) -> list[str]:
    """Return the compact forms of every method alone, and of others, each once; `full` comes first."""
    kinds = [kind for axis, reg in AXES.items() for kind in reg.names() if kind != DEFAULTS[axis]]
    return list(dict.fromkeys(str(parse_table(text)) for text in ("full", *kinds, *more)))


def planned(
    text: str,
    tables: Sequence[Table],
    fields: Mapping[str, TableConfig],
    budget: int,
    rows: RowOptimizer,
    small: Iterable[str] = (),
) -> Candidate:
    """Return a table as the engine sizes it.

    Args:
        text: compact form.
        tables: logical tables of the model.
        fields: what some tables are made of whatever the others are.
        budget: bytes of all tables when packed.
        rows: row optimizer, whose state is counted in training.
        small: tables that cost little uncompressed.
    """
    table = parse_table(text)
    search = widths.get(table.width.kind).search(table.width)
    exact = tuple(small) if _shares(table) else ()
    beside = {name: TableConfig() for name in exact} | dict(fields)
    try:
        found = plan(tables, table, beside, budget)
        least = plan_bytes(smallest_plan(tables, table, beside))
        if search is not None:
            searched = (one.table for one in found.values() if one.config.width == table.width)
            search.check(table.width, searched)
    except ValueError as error:
        return Candidate(text, refusal=" ".join(str(error).split()))
    shrunk = _shrunk(plan(tables, table, fields, budget)) if exact else set()
    return Candidate(
        text,
        plan_bytes(found),
        training_bytes(found, rows),
        least,
        search is not None,
        tuple(name for name in exact if name in shrunk),
    )


def training_bytes(found: Plan, rows: RowOptimizer) -> int:
    """Return the bytes of a plan while training: float32 rows, optimizer state, maps, projections."""
    physical = {row.name: row for one in found.values() for row in one.places}
    numbers = {name: n for one in found.values() for name, n in one.extra_numbers.items()}
    trained = sum(trained_bytes(rows, row.rows, row.dim) for row in physical.values())
    return trained + sum(one.map_bytes for one in found.values()) + 4 * sum(numbers.values())


def _shares(table: TableConfig) -> bool:
    return table.sharing.kind != DEFAULTS["sharing"]


def _shrunk(found: Plan) -> set[str]:
    """Return the tables whose ids share rows with other tables, or have less than half as many rows."""
    users = Counter(name for one in found.values() for name in {row.name for row in one.places})
    names = set()
    for name, one in found.items():
        rows = {row.name: row.rows for row in one.places}
        if any(users[row] > 1 for row in rows) or 2 * sum(rows.values()) < one.table.rows:
            names.add(base_of(name))
    return names
