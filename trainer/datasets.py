"""From a configuration to a prepared data set, and from that to what tables and models ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.batch import Batch
from data.loader import Loader
from data.prepare import open_source, prepare
from data.source import SourceConfig
from data.store import Store
from embtables.compressor import Interactions, Pairs
from embtables.features import Feature, Vocabulary
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
    if store.path.name != trained_on:
        raise ValueError(
            f"the run was trained on {trained_on}, and the raw files or options now give "
            f"{store.path.name}: bring back the files of then, or train again with --fresh"
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


def interactions(store: Store, features: list[Feature]) -> Interactions:
    """Return a function that says which ids of two tables occur together in the training rows.

    Raises, when it is called:
        ValueError: a table whose ids are not those of a column with one value a row.
    """
    names = [column.name for column in store.schema.fields if column.kind == "categorical"]
    split = store.split("train")

    def ids(table: str) -> np.ndarray:
        keys = [feature.key for feature in features if feature.table == table]
        found = next((key for key in keys if key in names), None)
        if found is None:
            raise ValueError(
                f"table {table!r} has no column with one id a row, so it has no pairs to learn from; "
                f"columns that have: {', '.join(names)}"
            )
        return split.ids[:, names.index(found)]

    return lambda left, right: Pairs(ids(left), ids(right), split.label)


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
