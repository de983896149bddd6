"""What the training rows, the tables and the budget say: the numbers that advice depends on.

Reads are occurrences of ids in the training rows. A first-order table ``C3:linear`` has the ids of
``C3`` and is counted with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embtables.budget import plan, uncompressed_bytes
from embtables.compressor import Table, TableConfig

SMALL = 0.05
"""Part of the budget that the smallest tables may take without being compressed."""


@dataclass(frozen=True)
class Rows:
    """Rows to train and to choose on.

    Attributes:
        train: training rows.
        valid: validation rows.
        clicks: validation rows with label 1; None where ranking is measured by retrieval.
    """

    train: int
    valid: int
    clicks: int | None = None

    def auc_error(self, auc: float) -> float | None:
        """Return the standard error of a validation AUC (Hanley and McNeil, 1982), if there is one."""
        if not self.clicks or self.clicks == self.valid:
            return None
        positive, negative = self.clicks, self.valid - self.clicks
        q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
        variance = auc * (1 - auc)
        variance += (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
        return math.sqrt(variance / (positive * negative))


@dataclass(frozen=True)
class Facts:
    """Statistics of one data set under one budget. A rule of the evidence may name any of the numbers.

    Attributes:
        budget: bytes of all tables when packed.
        uncompressed: bytes of one float32 row for every id.
        rows: to train and to choose on.
        tables: number of tables.
        ids: of all tables.
        open: tables of an open vocabulary.
        dim: the widest row that the model asks for.
        narrow: what the budget leaves of it if only the width is cut; 0: that cannot meet the budget.
        largest: table with most bytes.
        share: its part of the uncompressed bytes.
        covered: part of its reads whose ids keep rows of full width if the most frequent ids of all
            tables do, byte for byte, until the budget is spent; None without counts.
        rare: part of the uncompressed bytes that is rows read at most once; None without counts.
        rare_reads: part of all reads that these rows are; None without counts.
        small: the smallest tables that together take at most `SMALL` of the budget uncompressed.
        small_bytes: what they take.
    """

    budget: int
    uncompressed: int
    rows: Rows
    tables: int
    ids: int
    open: tuple[str, ...]
    dim: int
    narrow: int
    largest: str
    share: float
    covered: float | None
    rare: float | None
    rare_reads: float | None
    small: tuple[str, ...]
    small_bytes: int

    @property
    def ratio(self) -> float:
        """The budget as a share of the uncompressed bytes."""
        return self.budget / self.uncompressed

    @property
    def retrieval(self) -> bool:
        """Whether ranking is measured by retrieval."""
        return self.rows.clicks is None

    @property
    def whole(self) -> bool:
        """Whether the full table fits the budget."""
        return self.budget >= self.uncompressed


@dataclass(frozen=True)
class _Ids:
    """The ids of one table and its first-order table: bytes of a row of both, and counts or None."""

    name: str
    rows: int
    row_bytes: int
    open: bool
    counts: np.ndarray | None

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


def facts_of(tables: Sequence[Table], budget: int, rows: Rows) -> Facts:
    """Return the facts of logical tables under a budget in bytes."""
    ids = _by_ids(tables)
    uncompressed = uncompressed_bytes(tables)
    largest = max(ids, key=lambda one: one.bytes)
    small, small_bytes = _small(ids, budget)
    counted = [one for one in ids if one.counts is not None]
    return Facts(
        budget=budget,
        uncompressed=uncompressed,
        rows=rows,
        tables=len(ids),
        ids=sum(one.rows for one in ids),
        open=tuple(one.name for one in ids if one.open),
        dim=max(table.dim for table in tables),
        narrow=_narrow(tables, budget),
        largest=largest.name,
        share=largest.bytes / uncompressed,
        covered=_covered(counted, largest, budget),
        rare=sum(_rare(one)[0] for one in counted) / uncompressed if counted else None,
        rare_reads=_rare_reads(counted),
        small=small,
        small_bytes=small_bytes,
    )


def base_of(table: str) -> str:
    """Return the table whose ids a (first-order) table has."""
    return table.partition(":")[0]


def _by_ids(tables: Sequence[Table]) -> list[_Ids]:
    dims: dict[str, int] = {}
    for table in tables:
        base = base_of(table.name)
        dims[base] = dims.get(base, 0) + table.dim
    found = {base_of(table.name): table for table in reversed(tables)}
    return [
        _Ids(base, found[base].rows, 4 * dim, found[base].open, found[base].counts)
        for base, dim in dims.items()
    ]


def _narrow(tables: Sequence[Table], budget: int) -> int:
    try:
        return max(one.table.width for one in plan(tables, TableConfig(), {}, budget).values())
    except ValueError:
        return 0


def _small(ids: Sequence[_Ids], budget: int) -> tuple[tuple[str, ...], int]:
    names, taken = [], 0
    for one in sorted(ids, key=lambda one: (one.bytes, one.name)):
        if one.open or taken + one.bytes > SMALL * budget:
            break
        names.append(one.name)
        taken += one.bytes
    return tuple(one.name for one in ids if one.name in names), taken


def _covered(counted: Sequence[_Ids], largest: _Ids, budget: int) -> float | None:
    if largest.counts is None:
        return None
    worth = np.concatenate(
        [one.counts / one.row_bytes for one in counted if one.counts is not None]
    )
    size = np.concatenate([np.full(one.rows, one.row_bytes) for one in counted])
    order = np.argsort(-worth, kind="stable")
    kept = np.zeros(len(order), bool)
    kept[order[np.cumsum(size[order]) <= budget]] = True
    start = sum(one.rows for one in counted[: [one.name for one in counted].index(largest.name)])
    mine = kept[start : start + largest.rows]
    return float(largest.counts[mine].sum() / max(1, largest.counts.sum()))


def _rare(one: _Ids) -> tuple[int, int]:
    """Return the bytes of rows read at most once, and their reads."""
    assert one.counts is not None
    return int((one.counts <= 1).sum()) * one.row_bytes, int((one.counts == 1).sum())


def _rare_reads(counted: Sequence[_Ids]) -> float | None:
    reads = sum(int(one.counts.sum()) for one in counted if one.counts is not None)
    return sum(_rare(one)[1] for one in counted) / reads if reads else None
