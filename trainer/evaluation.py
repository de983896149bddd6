"""Measuring predictions on a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data.batch import Batch
from data.loader import Loader
from data.store import Store
from trainer import metrics
from trainer.config import TrainConfig
from trainer.datasets import closing
from trainer.predict import Predictor
from trainer.progress import Progress
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
    return retrieval.measure(split, vectors_of(predict, size), rows, stop)


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
    loader = Loader(store, split, batch_size)
    total = min(len(loader), limit_batches or len(loader))
    rows = min(total * batch_size, loader.rows)
    logits, done = torch.empty(0), 0
    with Progress(f"evaluating {split}", total) as progress, closing(loader) as batches:
        for index, batch in enumerate(batches, 1):
            predicted = predict(batch)
            if not done:
                # Where the predictions are: fetching each batch would make the device wait.
                logits = predicted.new_empty(rows, dtype=torch.float32)
            logits[done : done + len(predicted)] = predicted
            done += len(predicted)
            progress.advance(len(batch.label))
            if stop():
                raise Interrupted
            if index == total:
                break
    truth = store.split(split)
    group = None if truth.group is None else truth.group[:rows]
    return metrics.evaluate(truth.label[:rows], logits.cpu().numpy(), group)
