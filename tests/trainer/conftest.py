"""A tiny data set with something to learn, and a short run on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.frappe_x1 import FIELDS
from trainer.config import RunConfig, load_config

RECIPE = """
data: {kind: frappe_x1}
model: {kind: deepfm, dim: 4, hidden: [8], dropout: 0.2}
rows: {kind: adam, lr: 0.01}
dense: {kind: adam, lr: 0.01}
train: {batch_size: 64, epochs: 3, seed: 5}
"""


def write_rows(file: Path, rng: np.random.Generator, rows: int) -> None:
    ids = rng.integers(0, 6, (rows, len(FIELDS)))
    logit = ids[:, 0] - ids[:, 1] + 0.5 * rng.normal(size=rows)
    table = np.column_stack([logit > 0, ids]).astype(int)
    header = ",".join(["label", *FIELDS])
    np.savetxt(file, table, fmt="%d", delimiter=",", header=header, comments="")


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of train.csv, valid.csv and test.csv, and of the store made from them."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    for split, rows in {"train": 600, "valid": 300, "test": 300}.items():
        write_rows(folder / f"{split}.csv", rng, rows)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="session")
def tiny(raw: Path) -> Callable[..., RunConfig]:
    """Return the configuration of the tiny run with overrides."""

    def build(*overrides: str) -> RunConfig:
        place = (f"data.root={raw}", f"data.store={raw / 'prepared'}")
        return load_config(str(raw / "tiny.yaml"), (*place, *overrides)).config

    return build
