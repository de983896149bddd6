"""Toy files and declarations, and reading a store back row by row."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.criteo import Criteo, CriteoConfig
from data.loader import Loader
from data.prepare import prepare
from data.schema import SPLITS, Column
from data.store import Store

Row = tuple[int, list[int | None], list[str]]
"""Label, 13 integers, 26 hexadecimals ("" where missing)."""


def line(row: Row) -> str:
    label, integers, categories = row
    cells = ["" if value is None else str(value) for value in integers]
    return "\t".join([str(label), *cells, *categories])


def random_rows(count: int, seed: int = 0, values: int = 5) -> list[Row]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        integers = [
            None if random.random() < 0.2 else int(random.integers(-3, 50)) for _ in range(13)
        ]
        numbers = random.integers(0, values, 26)
        categories = ["" if random.random() < 0.1 else f"{n + 10:x}" for n in numbers]
        rows.append((int(random.integers(2)), integers, categories))
    return rows


def write(path: Path, rows: list[Row], end: str = "\n") -> Path:
    text = "".join(line(row) + end for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def criteo(folder: Path, root: Path | None = None, **options) -> Criteo:
    return Criteo(CriteoConfig(root=root or folder, store=folder / "store", **options))


def prepared(folder: Path, root: Path | None = None, **options) -> Store:
    return Store.open(prepare(criteo(folder, root, **options)))


def declared(columns: Iterable[dict[str, Any]]) -> tuple[Column, ...]:
    return tuple(Column(**column) for column in columns)


def delivered(store: Store, split: str) -> list[tuple[float, list[float], list[list[int]]]]:
    """Return (label, dense row, ids of each field) of every row of a split, by the loader."""
    rows = []
    for batch in Loader(store, split, 7, prefetch=0):
        size = len(batch.label)
        bags = [batch.features[key].to_dense() for key in batch.features.keys()]  # noqa: SIM118
        for i in range(size):
            ids = [bag[i].tolist() for bag in bags]
            rows.append((batch.label[i].item(), batch.dense[i].tolist(), ids))
    return rows


def splits(store: Store) -> dict[str, list]:
    return {split: delivered(store, split) for split in SPLITS}
