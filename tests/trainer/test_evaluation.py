"""What is measured is what was predicted, row by row, wherever the batches are cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch

from data.batch import Batch
from data.csv import Csv, CsvConfig
from data.loader import Loader
from data.prepare import prepare
from data.schema import Column
from data.store import Store
from trainer import metrics
from trainer.evaluation import measure
from trainer.signals import Interrupted

ROWS = 50


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("evaluated")
    rng = np.random.default_rng(0)
    table = np.column_stack(
        [rng.integers(0, 2, ROWS), rng.normal(size=ROWS).round(3), rng.integers(0, 6, ROWS)]
    )
    lines = ["label,x,user", *(f"{y:.0f},{x},{user:.0f}" for y, x, user in table)]
    (folder / "rows.csv").write_text("\n".join(lines))
    column = Column(name="x", kind="numeric")
    files = ("rows.csv",)
    options = {"root": folder, "store": folder / "store", "columns": (column,), "group": "user"}
    return Store.open(prepare(Csv(CsvConfig(train=files, test=files, **options))))


def linear(batch: Batch) -> torch.Tensor:
    return 2 * batch.dense[:, 0] - 1


@pytest.mark.parametrize("size", [1, 7, 25, 50, 1000])
@pytest.mark.parametrize("limit", [None, 1, 2, 100])
def test_measures_the_rows_of_the_batches(store: Store, size: int, limit: int | None) -> None:
    if (size, limit) in {(1, 1), (1, 2)}:
        limit = 20  # a row or two may hold one label only
    (batch,) = Loader(store, "test", ROWS)
    seen = min(ROWS, size * (limit or ROWS))
    assert batch.group is not None
    columns = batch.label, linear(batch), batch.group
    label, logit, group = (column[:seen].numpy() for column in columns)
    found = measure(store, "test", linear, size, limit)
    assert found == metrics.evaluate(label, logit, group)
    assert found["rows"] == seen


def test_low_precision_predictions_are_measured_as_they_are(store: Store) -> None:
    def coarse(batch: Batch) -> torch.Tensor:
        return linear(batch).bfloat16()

    (batch,) = Loader(store, "test", ROWS)
    assert batch.group is not None
    logit = coarse(batch).float().numpy()
    expected = metrics.evaluate(batch.label.numpy(), logit, batch.group.numpy())
    assert measure(store, "test", coarse, 8) == expected


def test_stops_when_asked(store: Store) -> None:
    asked = count(1)
    stop: Callable[[], bool] = lambda: next(asked) >= 3  # noqa: E731
    with pytest.raises(Interrupted):
        measure(store, "test", linear, 10, stop=stop)
    assert next(asked) == 4
