"""From a configuration to a prepared data set, and from that to what tables and models ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.batch import Batch
from data.prepare import open_source, prepare
from data.source import SourceConfig
from data.store import Store
from embtables.compressor import Pairs
from embtables.features import Feature, Vocabulary
from embtables.registry import nearest
from models.base import InputField, Inputs
from trainer.config import RunConfig
from trainer.progress import Preparing


def prepared(config: SourceConfig) -> Path:
    """Prepare a data set unless that is done, showing how far it is; return its folder."""
    with Preparing() as progress:
        return prepare(open_source(config), progress=progress)


def open_store(config: RunConfig) -> Store:
    """Prepare the data set of a run unless that is done, and open it."""
    return Store.open(prepared(config.data))


def check_same_data(trained_on: str, store: Store) -> None:
    """Raise ValueError unless a store is the one that a run was trained on.

    Ids are places in a dictionary: of other data they would mean other rows.
    """
    if store.content != trained_on:
        raise ValueError(
            f"the run was trained on {trained_on}, and the raw files or options now give "
            f"{store.content}: bring back the files of then, or train again with --fresh"
        )


def model_inputs(store: Store) -> Inputs:
    """Return what a prepared data set offers to a model."""
    fields = tuple(InputField(c.name, c.table_name, c.kind) for c in store.schema.fields)
    return Inputs(store.schema.numeric, fields)


def vocabularies(store: Store, features: list[Feature]) -> dict[str, Vocabulary]:
    """Return the vocabulary of every logical table that the features read."""
    tables = {table.name: table for table in store.schema.tables}
    columns = {column.name: tables[column.table_name] for column in store.schema.fields}
    found = {}
    for feature in features:
        table = columns[feature.key]
        found[feature.table] = Vocabulary(
            rows=table.rows,
            open=table.vocabulary == "open",
            counts=store.counts.get(table.name),
        )
    return found


class StoreInteractions:
    """Which ids of the tables that features read occur together in the training rows.

    Only columns with one id a row take part.
    """

    def __init__(self, store: Store, features: list[Feature]) -> None:
        columns = [column.name for column in store.schema.fields if column.kind == "categorical"]
        place = {name: position for position, name in enumerate(columns)}
        self._column = {f.table: place[f.key] for f in features if f.key in place}
        rows = {table.name: table.rows for table in store.schema.tables}
        self._rows = {c.name: rows[c.table_name] for c in store.schema.fields if c.name in place}
        self._names = columns
        self._split = store.split("train")

    def partner(self, table: str, named: str | None = None) -> str:
        """Return the named table, or the largest, of another column than the table's."""
        own = self._find(table)
        if named is not None and self._find(named) != own:
            return named
        others = {t: c for t, c in self._column.items() if c != own}
        if not others:
            raise ValueError(f"table {table!r}: there is no other column to learn against")
        return max(others, key=lambda name: self._rows[self._names[others[name]]])

    def pairs(self, left: str, right: str) -> Pairs:
        """Return the ids of two tables, one pair a training row."""
        ids = self._split.ids
        return Pairs(ids[:, self._find(left)], ids[:, self._find(right)], self._split.label)

    def _find(self, table: str) -> int:
        if table not in self._column:
            known = list(self._column)
            raise ValueError(
                f"table {table!r} has no column with one id a row.{nearest(table, known)} "
                f"Tables that have: {', '.join(known)}"
            )
        return self._column[table]


@contextmanager
def closing(loader: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
    """Yield the batches, and end the loader's work however the block is left."""
    batches = iter(loader)
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
