"""What a runner of `bench.training` is told and what it answers.

    PYTHON bench/peers/RUNNER.py JOB.json

The job, one JSON object:

    data        folder of arrays, described by its `data.json` (see `Data`)
    model       architecture in the words of this project's model configs, every option given
    batch_size  epochs  lr  l2  seed
                l2: (l2 / 2) * sum of squares of every table is added to every step's mean loss
    choose      whether the epoch is chosen on validation rows, else the last one; FuxiCTR alone can
    rows        {"train", "test"}, and "valid" to choose: the first so many rows of each split
    threads     of the processor, for everything that the runner starts
    work        an empty folder for what the library wants to write
    config      the whole configuration of the run; for embtables alone

The answer, one JSON object, is the last line of standard output:

    parameters  {"tables", "network"}: trained numbers
    seconds     [epochs] wall clock of each epoch; setup and evaluation are not in it
    auc         logloss      of the test rows, after the last epoch
    versions    of the libraries
    note        how the library's own model was changed to become the same architecture, if it was
    failure     instead of all others: why this library cannot train this model

This module and the runners import nothing of this project (but for embtables' own), because the
libraries live in environments of their own.

Shape letters: N rows of a split, D numeric columns, F id columns, T longest history.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class CannotError(Exception):
    """The library has no such model; the message says what is missing."""


@dataclass(frozen=True)
class Field:
    """One id column: its ids are 0 .. rows-1, and 0 pads a history."""

    name: str
    table: str
    rows: int
    kind: str


@dataclass(frozen=True)
class Split:
    """Some rows: label [N] float32, dense [N, D] float32, column -> ids [N] or [N, T] int32."""

    label: np.ndarray
    dense: np.ndarray
    ids: dict[str, np.ndarray]


@dataclass(frozen=True)
class Data:
    """The columns of a folder of arrays."""

    folder: Path
    numeric: tuple[str, ...]
    fields: tuple[Field, ...]
    rows: dict[str, int]

    @classmethod
    def open(cls, job: dict[str, Any]) -> Data:
        """Return the data set of a job."""
        folder = Path(job["data"])
        found = json.loads((folder / "data.json").read_text())
        fields = tuple(Field(**one) for one in found["fields"])
        return cls(folder, tuple(found["numeric"]), fields, job["rows"])

    @property
    def histories(self) -> list[tuple[Field, Field]]:
        """Pairs of a candidate and the sequence of the same table."""
        first: dict[str, Field] = {}
        for one in self.fields:
            first.setdefault(one.table, one)
        return [(first[one.table], one) for one in self.fields if one.kind == "sequence"]

    @property
    def candidates(self) -> tuple[Field, ...]:
        """Columns of one id a row."""
        return tuple(one for one in self.fields if one.kind == "categorical")

    def split(self, name: str) -> Split:
        """Return the rows of a split that the job trains or tests on."""

        def load(column: str) -> np.ndarray:
            return np.load(self.folder / f"{name}.{column}.npy")[: self.rows[name]]

        ids = {one.name: load(one.name) for one in self.fields}
        return Split(load("label"), load("dense"), ids)


@dataclass
class Stopwatch:
    """Wall clock seconds of the epochs."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def epoch(self) -> Any:
        """Time one epoch."""
        begun = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - begun)


def metrics(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Return auc and logloss of probabilities [N]."""
    from sklearn.metrics import log_loss, roc_auc_score

    probability = np.asarray(probability, np.float64).reshape(-1)
    return {
        "auc": float(roc_auc_score(label, probability)),
        "logloss": float(log_loss(label, np.clip(probability, 1e-7, 1 - 1e-7))),
    }


def answer(run: Callable[[dict[str, Any]], dict[str, Any]], packages: tuple[str, ...]) -> None:
    """Run the job named on the command line within its threads, and print the answer."""
    import torch

    job = json.loads(Path(sys.argv[1]).read_text())
    # A loader's process must share the processor with the training, or it would be a free core.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    torch.set_num_threads(job["threads"])
    try:
        found: dict[str, Any] = run(job)
    except CannotError as error:
        found = {"failure": f"cannot: {error}"}
    found["versions"] = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    found["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\n{json.dumps(found)}", flush=True)
