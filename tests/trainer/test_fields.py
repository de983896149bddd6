"""Collisions and loss by table: against equal vectors, and against planted fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from data.batch import Batch
from data.frappe_x1 import FIELDS
from trainer.config import RunConfig
from trainer.fields import FILE, _permuted, fields_of
from trainer.loop import train
from trainer.runs import FinishedRun

if TYPE_CHECKING:
    from embtables.torchrec_types import KeyedJaggedTensor

Tiny = Callable[..., RunConfig]
TABLES = {
    "full": ("table=full",),
    "hash": ("table=hash", "ratio=0.5"),
    "qr": ("table=qr", "ratio=0.9"),
    "multiplex": ("table=multiplex", "ratio=0.2"),
    "cut": ("table=frequency_cut(rest=zero)", "ratio=0.4"),
}


@pytest.fixture(scope="module", params=TABLES)
def run(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    folder = tmp_path_factory.mktemp("fields") / request.param
    train(tiny("model.kind=fm", "model.dim=4", *TABLES[request.param]), folder)
    return FinishedRun.open(folder)


def test_collisions_are_ids_with_equal_vectors(
    run: FinishedRun, kjt: Callable[[Mapping[str, Sequence[Sequence[int]]]], KeyedJaggedTensor]
) -> None:
    store, tables = run.store(), run.model().tables
    found = fields_of(run, store)["tables"]
    vectors: dict[str, list[bytes]] = {}
    for feature in tables.features:
        (rows,) = (table.rows for table in store.schema.tables if table.name == feature.key)
        batch = {
            f.key: [[i] if f.key == feature.key else [] for i in range(rows)]
            for f in tables.features
        }
        pooled, _ = tables.lookup(kjt(batch))
        vectors[feature.table] = [row.numpy().tobytes() for row in pooled[feature.name]]
    every = [
        vector
        for table, some in vectors.items()
        for vector, count in zip(some, store.counts[table.partition(":")[0]], strict=True)
        if count
    ]
    for table, some in vectors.items():
        counts = store.counts[table.partition(":")[0]]
        shared = [every.count(vector) > 1 for vector in some]
        assert found[table]["collisions"] == pytest.approx(np.average(shared, weights=counts))


def test_readers_are_the_tables_of_the_same_rows(run: FinishedRun) -> None:
    found = fields_of(run, run.store())["tables"]
    most = max(one["readers"] for one in found.values())
    assert (most > 1) == ("multiplex" in run.summary["table"])


def test_planted_fields_carry_the_loss_and_are_kept(run: FinishedRun) -> None:
    found = fields_of(run, run.store())
    assert found["rows"] == 300
    main = {name: one for name, one in found["tables"].items() if "loss" in one}
    assert tuple(main) == FIELDS  # first-order tables have none
    if run.summary["table"] == "full":
        assert found["gain"] > 0.1
        shares = sorted(main, key=lambda name: -main[name]["loss"])
        assert set(shares[:2]) == set(FIELDS[:2])
    assert (run.path / FILE).exists()
    assert fields_of(run, run.store()) == found


def test_permuted_bags_stay_whole_and_together(
    kjt: Callable[[Mapping[str, Sequence[Sequence[int]]]], KeyedJaggedTensor],
) -> None:
    bags = {"a": [[1], [2, 3], [], [4]], "b": [[5], [6], [7], [8]], "c": [[9], [10], [], [11, 12]]}
    batch = Batch(torch.zeros(4, 0), kjt(bags), torch.zeros(4))
    moved = _permuted(batch, ("a", "c"), torch.Generator().manual_seed(1)).features
    lists = {
        key: [bag.tolist() for bag in moved[key].values().split(moved[key].lengths().tolist())]
        for key in bags
    }
    order = [bags["c"].index(bag) for bag in lists["c"]]
    assert order != [0, 1, 2, 3]
    assert lists == {"a": [bags["a"][i] for i in order], "b": bags["b"], "c": lists["c"]}


def test_file_is_read_not_measured_again(run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"tables": {}}')
    assert fields_of(FinishedRun(tmp_path, run.summary), run.store()) == {"tables": {}}
