"""Finished runs: the model they trained, and its metrics again."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.config import RunConfig
from trainer.datasets import check_same_data, open_store
from trainer.evaluation import measure_trained
from trainer.overrides import read_preset
from trainer.predict import PackedModel
from trainer.rundir import packed_model
from trainer.validation import validate


def evaluate_run(path: Path, split: str) -> dict[str, float]:
    """Return the metrics of a finished run on a split, measured on the packed tables.

    Raises:
        ValueError: there is no run, or it is not finished.
    """
    model = PackedModel.load(packed_model(path))
    file = path / "config.yaml"
    config = validate(RunConfig, read_preset(file), str(file))
    store = open_store(config)
    check_same_data(json.loads((path / "summary.json").read_text())["data"], store)
    return measure_trained(store, split, model, config.train)
