"""Measuring predictions on a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data.batch import Batch
from data.loader import Loader
from data.store import Store
from trainer import metrics
from trainer.datasets import closing
from trainer.progress import Progress
from trainer.signals import Interrupted


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
