"""Finished runs: the metrics of the model they trained, and the model for elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.encoder import DESCRIPTION, Encoder
from data.prepare import open_source
from data.store import Store, content_of, write_checksums
from trainer.config import RunConfig
from trainer.datasets import check_same_data, open_store
from trainer.evaluation import measure_trained, scores_of
from trainer.overrides import read_preset
from trainer.predict import PackedModel
from trainer.retrieval import retrieval_of
from trainer.rundir import packed_model
from trainer.validation import validate


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        path: its directory.
        summary: what `trainer.loop.Trainer.finish` wrote.
    """

    path: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Open a run directory.

        Raises:
            ValueError: there is no run, or it is not finished.
        """
        packed_model(path)
        return cls(path, json.loads((path / "summary.json").read_text()))

    @cached_property
    def config(self) -> RunConfig:
        """What was run."""
        file = self.path / "config.yaml"
        return validate(RunConfig, read_preset(file), str(file))

    def model(self) -> PackedModel:
        """Return the packed model."""
        return PackedModel.load(packed_model(self.path))

    def store(self) -> Store:
        """Prepare the data again unless they are there, and return them.

        Raises:
            ValueError: they are not the data of the run.
        """
        store = open_store(self.config)
        check_same_data(self.summary["data"], store)
        return store

    def prepared_store(self) -> Store | None:
        """Return the data of the run if they lie where they were prepared."""
        folders = self.config.data.store.glob(f"{self.config.data.kind}-*/")
        same = (folder for folder in folders if content_of(folder) == self.summary["data"])
        return next(map(Store.open, same), None)

    def scores(self, store: Store, split: str) -> np.ndarray:
        """Return the logits [rows] float32 of the packed model on the rows it was measured on.

        Those of test rows are kept in the run directory when a run ends; others are made again.
        """
        kept = self.path / "scores" / f"{split}.npy"
        if kept.exists():
            return np.load(kept, mmap_mode="r")
        train = self.config.train
        return scores_of(store, split, self.model(), train.eval_batch_size, train.limit_batches)


def evaluate_run(path: Path, split: str) -> dict[str, float]:
    """Return the metrics of a finished run on a split, measured on the packed tables.

    Raises:
        ValueError: there is no run, or it is not finished.
    """
    run = FinishedRun.open(path)
    store, predict, options = run.store(), run.model(), run.config.train
    retrieval = retrieval_of(store, predict.model, options)
    return measure_trained(store, split, predict, options, retrieval)


@dataclass(frozen=True)
class Exported:
    """Bytes of an exported model: of tables, network and vocabularies.

    Vocabularies turn raw values into ids. Every table needs them alike, however it is compressed, so
    they are no part of its budget.
    """

    tables: int
    network: int
    vocabularies: int


def export_run(path: Path, output: Path) -> Exported:
    """Write a directory that predicts raw rows; an earlier export there is replaced.

    Raises:
        ValueError: there is no run, it is not finished, its prepared data are gone, or the directory
            holds something else.
    """
    run = FinishedRun.open(path)
    if output.exists() and not (output / DESCRIPTION).exists():
        raise ValueError(f"{output} exists and is no exported model: choose another -o DIR")
    encoder = _encoder(run)
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    file = packed_model(path)
    shutil.copyfile(file, part / file.name)
    encoder.save(part)
    write_checksums(part)
    model = PackedModel.load(part)
    shutil.rmtree(output, ignore_errors=True)
    part.rename(output)
    return Exported(
        model.tables.file_bytes,
        sum(weight.nbytes for weight in model.model.state_dict().values()),
        sum(keys.nbytes for keys in encoder.keys.values()),
    )


def _encoder(run: FinishedRun) -> Encoder:
    """Return what turns the raw rows of a run into batches."""
    store = run.prepared_store()
    if store is None:
        raise ValueError(
            f"{run.config.data.store / run.summary['data']}: the data that {run.path} was trained on "
            "are gone, and with them the vocabularies. With the raw files in place make them again: "
            f"embtables prepare {run.path / 'config.yaml'}"
        )
    return Encoder.of(open_source(run.config.data), store)
