"""Measuring predictions on a split."""

from __future__ import annotations

from collections.abc import Callable

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
from trainer.retrieval import retrieval_of, vectors_of
from trainer.signals import Interrupted


def measure_trained(
    store: Store,
    split: str,
    predict: Predictor,
    options: TrainConfig,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Return the metrics of a split that go with the loss of a run.

    Raises:
        Interrupted: `stop` said so.
        ValueError: a prediction is NaN, or a run by ``bpr`` has a model without towers.
    """
    size, limit = options.eval_batch_size, options.limit_batches
    retrieval = retrieval_of(store, predict.model, options)
    if retrieval is None:
        return measure(store, split, predict, size, limit, stop)
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
) -> dict[str, float]:
    """Return the metrics of a split (`trainer.metrics.evaluate`).

    Args:
        store: the prepared data set.
        split: train, valid or test.
        predict: batch of B rows -> logits [B].
        batch_size: rows predicted at a time.
        limit_batches: at most that many batches.
        stop: asked after every batch whether to give up.

    Raises:
        Interrupted: `stop` said so.
        ValueError: a prediction is NaN.
    """
    available = store.split(split)
    rows = min(available.rows, (limit_batches or available.rows) * batch_size)
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
    scores = total(logits).cpu().numpy()
    group = None if available.group is None else available.group[:rows]
    return on_first(lambda: metrics.evaluate(available.label[:rows], scores, group))


def _shared_size(rows: int, batch_size: int) -> int:
    """Return the largest batch size up to `batch_size` for which every rank has rows in every batch."""
    size = min(batch_size, rows)
    while 0 < rows % size < ranks() and size > ranks():
        size -= 1
    return size
