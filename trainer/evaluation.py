"""Predictions on a split, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from data.loader import Loader
from data.store import Store
from embtables.ranks import on_first, rank, ranks
from trainer import metrics
from trainer.config import TrainConfig
from trainer.datasets import closing
from trainer.predict import Predictor
from trainer.progress import Progress
from trainer.ranks import total
from trainer.retrieval import Retrieval, vectors_of
from trainer.signals import Interrupted


def measure_trained(
    store: Store,
    split: str,
    predict: Predictor,
    options: TrainConfig,
    retrieval: Retrieval | None,
    stop: Callable[[], bool] = lambda: False,
    keep: Path | None = None,
) -> dict[str, float]:
    """Return the metrics of a split that go with the loss of a run.

    Args:
        store: the prepared data set.
        split: train, valid or test.
        predict: the model.
        options: of the run.
        retrieval: what `retrieval_of` gives for it.
        stop: asked after every batch whether to give up.
        keep: file for the logits [rows] float32 of a run by ``bce``.

    Raises:
        Interrupted: `stop` said so.
        ValueError: a prediction is NaN.
    """
    size, limit = options.eval_batch_size, options.limit_batches
    if retrieval is None:
        return measure(store, split, predict, size, limit, stop, keep)
    rows = None if limit is None else limit * size
    found = retrieval.measure(split, vectors_of(predict, size), rows, stop)
    return on_first(lambda: found)  # ranks that round otherwise must not decide otherwise


def measure(
    store: Store,
    split: str,
    predict: Callable[[Batch], Tensor],
    batch_size: int,
    limit_batches: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    keep: Path | None = None,
) -> dict[str, float]:
    """Return the metrics of a split (`trainer.metrics.evaluate`).

    Args are those of `scores_of`, and so are errors; `keep` is a file for the scores.

    Raises:
        ValueError: a prediction is NaN.
    """
    scores = scores_of(store, split, predict, batch_size, limit_batches, stop)
    if keep is not None:
        keep.parent.mkdir(exist_ok=True)
        np.save(keep, scores)
    label, group = truth_of(store, split, len(scores))
    return on_first(lambda: metrics.evaluate(label, scores, group))


def truth_of(store: Store, split: str, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the labels [rows] and the group ids [rows], None without groups, of the first rows."""
    known = store.split(split)
    return known.label[:rows], None if known.group is None else known.group[:rows]


def scores_of(
    store: Store,
    split: str,
    predict: Callable[[Batch], Tensor],
    batch_size: int,
    limit_batches: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Return the logits [rows] float32 of the first rows of a split, in their order.

    Args:
        store: the prepared data set.
        split: train, valid or test.
        predict: batch of B rows -> logits [B].
        batch_size: rows predicted at a time.
        limit_batches: at most that many batches.
        stop: asked after every batch whether to give up.

    Raises:
        Interrupted: `stop` said so.
    """
    available = store.split(split).rows
    rows = min(available, (limit_batches or available) * batch_size)
    size = _shared_size(rows, batch_size)
    loader = Loader(store, split, size, rank=rank(), world_size=ranks())
    steps = -(-rows // size)
    logits = torch.empty(0)
    with Progress(f"evaluating {split}", steps) as progress, closing(loader) as batches:
        for index, batch in enumerate(batches):
            predicted = predict(batch)
            if not index:
                # Where the predictions are: fetching each batch would make the device wait.
                logits = predicted.new_zeros(rows, dtype=torch.float32)
            mine = logits[index * size : (index + 1) * size][rank() :: ranks()]
            mine.copy_(predicted[: len(mine)])
            progress.advance(len(batch.label))
            if stop():
                raise Interrupted
            if index + 1 == steps:
                break
    return total(logits).cpu().numpy()


def _shared_size(rows: int, batch_size: int) -> int:
    """Return the largest batch size up to `batch_size` for which every rank has rows in every batch."""
    size = min(batch_size, rows)
    while 0 < rows % size < ranks() and size > ranks():
        size -= 1
    return size
