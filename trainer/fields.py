"""Where the bytes of a finished run go, and what they bring: collisions and loss, table by table.

`collisions` is the share of training occurrences whose id reads exactly the rows that another training
id reads, of the same table or of another one: no training can tell the two apart.

`loss` is permutation importance (Breiman, Machine Learning 2001; Fisher et al., JMLR 2019) as a share:
the logloss that is lost when the ids of a table's columns are permuted among validation rows, over all
that the model gains on predicting the mean. Shares need not add up to 1, for columns tell together
what each of them may not. Tables of the same columns (first-order weights) have one, given to the first.

Shape letters: n ids, K rows read for an id, B rows of a batch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from data.batch import Batch
from data.loader import Loader
from data.schema import Column
from data.splits import splitmix64
from data.store import Store
from embtables.compressor import Segments
from embtables.groups import Group
from embtables.packed import PackedTables
from embtables.torchrec_types import KeyedJaggedTensor
from trainer import metrics
from trainer.datasets import closing
from trainer.predict import PackedModel
from trainer.progress import Progress
from trainer.runs import FinishedRun

FILE = "fields.json"
"""Name of what was found, in the run directory."""

ROWS = 16384
"""Validation rows that ids are permuted among; about so many predictions a column are made."""


def fields_of(run: FinishedRun, store: Store) -> dict[str, Any]:
    """Return what a run's tables collide in and bring; measured once, and kept in the run directory.

    Returns:
        ``{"rows": validation rows, "gain": nats, "tables": {table: {"collisions", "loss",
        "readers"}}}``; `readers` counts the logical tables that read its rows. Without `gain` and
        `loss` for a run measured by retrieval, whose scores are no logits.
    """
    file = run.path / FILE
    if not file.exists():
        model = run.model()
        found: dict[str, Any] = {"tables": _collisions(model.tables, store)}
        if run.config.train.loss == "bce":
            rows, gain, lost = _losses(model, store, run.config.train.eval_batch_size)
            found |= {"rows": rows, "gain": gain}
            for table, loss in lost.items():
                found["tables"][table]["loss"] = loss / gain if gain > 0 else None
        file.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(file.read_text())


# -- collisions ----------------------------------------------------------------------------------


def _collisions(tables: PackedTables, store: Store) -> dict[str, dict[str, Any]]:
    """Return for each logical table its share of collisions, and how many tables read its rows."""
    physical = {row.name for one in tables.plan.values() for row in one.places}
    number = {name: index for index, name in enumerate(sorted(physical))}
    codes, weights = {}, {}
    for group in cast("list[Group]", list(tables.groups)):
        for place, feature in enumerate(group.features):
            if feature.table not in codes:
                ids, weights[feature.table] = _training_ids(store, feature.key)
                codes[feature.table] = _row_codes(group, place, ids, number)
    _, inverse, times = np.unique(
        np.concatenate(list(codes.values())), return_inverse=True, return_counts=True
    )
    ends = np.cumsum([len(some) for some in codes.values()])[:-1]
    readers = Counter(n for one in tables.plan.values() for n in {row.name for row in one.places})
    return {
        table: {
            "collisions": float(np.average(shared > 1, weights=weights[table])),
            "readers": max(readers[row.name] for row in tables.plan[table].places),
        }
        for table, shared in zip(codes, np.split(times[inverse], ends), strict=True)
    }


def _training_ids(store: Store, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids [n] of a column's table that training rows hold, and how often each of them."""
    columns = {column.name: column for column in store.schema.fields}
    table = columns[key].table_name
    if table in store.counts:
        ids = np.flatnonzero(store.counts[table])
        return ids, store.counts[table][ids]
    mine = [column for column in columns.values() if column.table_name == table]
    return np.unique(np.concatenate([_column(store, c) for c in mine]), return_counts=True)


def _column(store: Store, column: Column) -> np.ndarray:
    """Return all ids of a column in the training rows."""
    train = store.split("train")
    if column.kind != "categorical":
        return train.jagged[column.name][0]
    single = [c.name for c in store.schema.fields if c.kind == "categorical"]
    return train.ids[:, single.index(column.name)]


def _row_codes(group: Group, place: int, ids: np.ndarray, number: dict[str, int]) -> np.ndarray:
    """Return [n] uint64, equal where ids read the same rows (and else with a chance of n^2 / 2^65)."""
    lengths = [0] * len(group.features)
    lengths[place] = len(ids)
    with torch.no_grad():
        rows = group.sharing.encode(torch.from_numpy(ids.astype(np.int64)), Segments(lengths))
    codes = np.zeros(len(ids), np.uint64)
    for column, names in zip(rows.view(-1, len(ids)).numpy(), group.read.tables, strict=True):
        # No row (-1) is the same of every table: zeros.
        row = np.where(column < 0, -1, column + (number[names[place]] << 40))
        codes = splitmix64(codes ^ splitmix64(row.astype(np.uint64)))
    return codes


# -- loss ----------------------------------------------------------------------------------------


def _losses(
    model: PackedModel, store: Store, batch_size: int
) -> tuple[int, float, dict[str, float]]:
    """Return the rows, the gain on the mean in nats, and what each table's columns lose of it."""
    loader = Loader(store, "valid", min(batch_size, ROWS), shuffle=True)
    with closing(loader) as batches:
        sample = list(islice(batches, max(1, ROWS // loader.batch_size)))
    label = np.concatenate([batch.label.numpy() for batch in sample])
    mean = label.mean(dtype=np.float64)
    constant = float(entr(mean) + entr(1 - mean))

    def loss(columns: Collection[str]) -> float:
        generator = torch.Generator().manual_seed(0)
        scores = [model(_permuted(batch, columns, generator)) for batch in sample]
        return metrics.logloss(label, torch.cat(scores).numpy())

    columns: dict[tuple[str, ...], str] = {}
    for table in model.tables.plan:
        keys = {f.key for f in model.tables.features if f.table == table}
        columns.setdefault(tuple(sorted(keys)), table)
    whole, lost = loss(()), {}
    with Progress("permuting columns", len(columns)) as progress:
        for keys, table in columns.items():
            lost[table] = loss(keys) - whole
            progress.advance(len(label))
    return len(label), constant - whole, lost


def _permuted(batch: Batch, columns: Collection[str], generator: torch.Generator) -> Batch:
    """Return a batch in which other rows have the bags of some columns, all of them those of one row."""
    order = torch.randperm(len(batch.label), generator=generator)
    features = batch.features
    values, lengths = [], []
    for key in features.keys():  # noqa: SIM118 - no mapping
        bags = features[key]
        mine = bags.lengths()
        if key in columns:
            values.append(_taken(bags.values(), bags.offsets(), order))
            lengths.append(mine[order])
        else:
            values.append(bags.values())
            lengths.append(mine)
    kjt = KeyedJaggedTensor(features.keys(), torch.cat(values), lengths=torch.cat(lengths))
    return Batch(batch.dense, kjt, batch.label, batch.group)


def _taken(values: Tensor, offsets: Tensor, order: Tensor) -> Tensor:
    """Return the values of the bags [B] in another order."""
    lengths = offsets.diff()[order]
    starts = offsets[:-1][order]
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return values[torch.arange(len(shift)) + shift]
