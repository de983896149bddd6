"""From a configuration to a prepared data set, and from that to what tables and models ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from data.batch import Batch
from data.loader import Loader
from data.prepare import prepare
from data.source import sources
from data.store import Store
from embtables.features import Feature, Vocabulary
from models.base import InputField, Inputs
from trainer.config import RunConfig


def open_store(config: RunConfig) -> Store:
    """Prepare the data set unless that is done, and open it."""
    source = sources.get(config.data.kind)(config.data)
    return Store.open(prepare(source))


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


@contextmanager
def closing(loader: Loader) -> Iterator[Iterator[Batch]]:
    """Yield the batches, and end the loader's work however the block is left."""
    batches = iter(loader)
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
