"""Retrieval: the k best of all items for every user, against what the user took in held-out rows.

An interaction is a row with label 1. Items that the user took in earlier splits (training rows, and
for the test validation rows too) are never recommended. What is measured, averaged over the users
with a relevant item, with h hits among the k best and r relevant items:

    recall         h / r
    recall_capped  h / min(k, r)      the denominator of GraphHash; never below recall
    ndcg           sum over hits of 1 / log2(rank + 1), divided by that of min(k, r) hits on top

Relevant are the distinct held-out items of the user outside earlier splits. An item that no training
row holds (id 0) cannot be recommended and counts as relevant all the same; a user whom no training
row holds has no vector, and is left out.

Items whose vectors are equal, as those of one bucket of a hashed table are, have equal scores. Such
ties are broken by training count, then by the smaller id; the order is exact, for scores are compared
as integers and equal vectors are multiplied once. In an arbitrary order they would cost recall.

Shape letters: U users, I items, D the width of their vectors, P pairs (user, item), B rows of a batch,
k items kept for a user.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data.batch import Batch
from data.schema import SPLITS
from data.splits import splitmix64
from data.store import Store
from embtables.registry import nearest
from embtables.torchrec_types import KeyedJaggedTensor
from models.base import CTRModel, TwoTowers, models
from trainer.config import TrainConfig
from trainer.predict import Predictor
from trainer.progress import Progress
from trainer.ranking import Ranking
from trainer.signals import Interrupted

Vectors = Callable[[np.ndarray, np.ndarray], tuple[Tensor, Tensor]]
"""Ids of users [U] and of items [I] -> user vectors [U, D] and item vectors [I, D]."""

USERS = 128
"""Users who are ranked at a time."""


def retrieval_of(store: Store, model: CTRModel, options: TrainConfig) -> Retrieval | None:
    """Return what a run with ``train.loss=bpr`` draws from and is measured by; None for other runs.

    Raises:
        ValueError: the model has no towers, or the data do not list users and items.
    """
    if options.loss != "bpr":
        return None
    if not isinstance(model, TwoTowers):
        able = [name for name in models.names() if issubclass(models.get(name), TwoTowers)]
        raise ValueError(
            f"train.loss=bpr ranks items by the product of two vectors, which {type(model).__name__} "
            f"does not have; use train.loss=bce, or model.kind={' or '.join(able)}"
        )
    return Retrieval(store, model.user, model.item, options.top_k, options.ties)


class Task(NamedTuple):
    """Who is to find what in a split; m pairs (user, item) are left out."""

    wanted: np.ndarray
    """[U] ids of the users with a relevant item, ascending."""
    relevant: np.ndarray
    """[U] relevant items of each."""
    asked: np.ndarray
    """Codes (`Retrieval._codes`) of the relevant items that can be recommended, ascending."""
    row: np.ndarray
    """[m] place in `wanted` of who took an item in an earlier split, ascending."""
    place: np.ndarray
    """[m] place of that item among `Retrieval.items`."""
    rows: int
    """Interactions of the split."""


class Retrieval:
    """Who took what in a data set, and how well vectors rank it.

    Args:
        store: a prepared data set.
        user, item: names of its columns.
        top_k: items recommended.
        ties: what comes first of items with equal scores; "arbitrary": by a hash of the id.

    Attributes:
        items: [I] ids of all items of the dictionary, those first that win ties.
        counts: [I + 1] training interactions of each id.

    Raises:
        ValueError: a column does not hold one id of a closed vocabulary a row.
    """

    def __init__(
        self,
        store: Store,
        user: str,
        item: str,
        top_k: int = 20,
        ties: Literal["popularity", "arbitrary"] = "popularity",
    ) -> None:
        self.user, self.item, self.top_k = user, item, top_k
        self._store = store
        self._columns = [_column(store, name) for name in (user, item)]
        self._users, rows = (_rows(store, name) for name in (user, item))
        _, items = self._interactions("train")
        self.counts = np.bincount(items, minlength=rows)
        ids = np.arange(1, rows)
        first = -self.counts[1:] if ties == "popularity" else splitmix64(ids.astype(np.uint64))
        self.items = ids[np.argsort(first, kind="stable")]
        self._place = np.full(rows, -1)
        self._place[self.items] = np.arange(rows - 1)
        # The same at every epoch.
        self._task = cache(self._find_task)

    def measure(
        self,
        split: str,
        vectors: Vectors,
        limit: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Return the metrics of a split: recall, recall_capped, ndcg, top_k, users, rows.

        Args:
            split: train, valid or test.
            vectors: gives the vectors to rank by.
            limit: at most that many first rows of the split.
            stop: asked now and then whether to give up.

        Raises:
            Interrupted: `stop` said so.
            ValueError: nothing is held out, or a vector holds NaN or infinity.
        """
        task = self._task(split, limit)
        best = self._best(task, *_finite(*vectors(task.wanted, self.items)), stop)
        hits = _among(task.wanted[:, None] * len(self.items) + best, task.asked)
        found = ranking_metrics(hits, task.relevant, self.top_k)
        return {**found, "top_k": self.top_k, "users": len(task.wanted), "rows": task.rows}

    def _find_task(self, split: str, limit: int | None) -> Task:
        """Return who is to find what."""
        earlier = SPLITS[: SPLITS.index(split)]
        known = np.unique(np.concatenate([np.empty(0, np.int64), *map(self._codes, earlier)]))
        users, items = self._interactions(split, limit)
        asked = np.setdiff1d(self._codes(split, limit), known)
        lost = users[(users > 0) & (items == 0)]
        owners = np.concatenate([asked // len(self.items), lost])
        relevant = np.bincount(owners, minlength=self._users)
        wanted = np.flatnonzero(relevant)
        if not len(wanted):
            raise ValueError(f"{split}: no user of the training rows has an item to be found")
        owner, place = np.divmod(known, len(self.items))
        mine = np.flatnonzero(_among(owner, wanted))
        row = np.searchsorted(wanted, owner[mine])
        return Task(wanted, relevant[wanted], asked, row, place[mine], len(users))

    def popularity(self, users: np.ndarray, items: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return vectors [U, 1] and [I, 1] that rank items by training count alone."""
        return torch.ones(len(users), 1), torch.from_numpy(self.counts[items]).float()[:, None]

    def with_negatives(self, batch: Batch, count: int) -> Batch:
        """Return a batch, and below it `count` times the same rows with items drawn uniformly.

        Drawn by PyTorch's own generator, whose state is part of a checkpoint.

        Returns:
            (1 + count) * B rows of the two fields.
        """
        users, items = (batch.features[name].values() for name in (self.user, self.item))
        drawn = torch.randint(1, len(self.counts), (count * len(items),))
        times = 1 + count
        return Batch(
            batch.dense.repeat(times, 1),
            pair_features(self.user, users.repeat(times), self.item, torch.cat([items, drawn])),
            batch.label.repeat(times),
        )

    def _interactions(self, split: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of users [P] and items [P] of the rows with label 1."""
        rows = self._store.split(split)
        clicked = np.flatnonzero(rows.label[:limit])
        user, item = self._columns
        return rows.ids[clicked, user].astype(np.int64), rows.ids[clicked, item].astype(np.int64)

    def _codes(self, split: str, limit: int | None = None) -> np.ndarray:
        """Return user * I + place of the item among `items`, [P], of known users and items."""
        users, items = self._interactions(split, limit)
        both = (users > 0) & (items > 0)
        return users[both] * len(self.items) + self._place[items[both]]

    def _best(
        self, task: Task, users: Tensor, items: Tensor, stop: Callable[[], bool]
    ) -> np.ndarray:
        """Return the places [U, k] of the best items of the wanted users."""
        ranking = Ranking(items, self.top_k)
        row, place = torch.from_numpy(task.row), torch.from_numpy(task.place)
        best = []
        with Progress("ranking", -(-len(users) // USERS)) as progress:
            for start in range(0, len(users), USERS):
                part = users[start : start + USERS]
                first, end = np.searchsorted(task.row, [start, start + len(part)])
                best.append(ranking(part, row[first:end] - start, place[first:end]).cpu())
                progress.advance(len(part))
                if stop():
                    raise Interrupted
        return torch.cat(best).numpy()


def ranking_metrics(hits: np.ndarray, relevant: np.ndarray, top_k: int) -> dict[str, float]:
    """Return recall, recall_capped and ndcg as this module defines them, means over users.

    Args:
        hits: [U, k'] whether each recommended item is relevant, the best first; k' <= k.
        relevant: [U] relevant items of each user, at least 1.
        top_k: k.
    """
    gains = 1 / np.log2(np.arange(2, top_k + 2))
    reachable = np.minimum(relevant, top_k)
    found, gained = hits.sum(1), hits @ gains[: hits.shape[1]]
    return {
        "recall": float(np.mean(found / relevant)),
        "recall_capped": float(np.mean(found / reachable)),
        "ndcg": float(np.mean(gained / np.cumsum(gains)[reachable - 1])),
    }


def bpr_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(positive - negative) (Rendle et al., UAI 2009), a scalar.

    Args:
        logits: [(1 + n) * B] of `Retrieval.with_negatives`.
        label: [B]; rows with label 0 do not count.
    """
    scores = logits.view(-1, len(label))
    losses = functional.softplus(scores[1:] - scores[0]).mean(0)
    return (losses * label).sum() / label.sum().clamp(min=1)


def vectors_of(predict: Predictor, batch_size: int) -> Vectors:
    """Return the vectors of a two-tower model on its tables, looked up some rows at a time."""
    model = predict.model
    assert isinstance(model, TwoTowers)

    def vectors(users: np.ndarray, items: np.ndarray) -> tuple[Tensor, Tensor]:
        found = []
        for start in range(0, max(len(users), len(items)), batch_size):
            rows = np.arange(start, min(start + batch_size, max(len(users), len(items))))
            # The shorter column goes on with its last id.
            ids = [torch.from_numpy(column.take(rows, mode="clip")) for column in (users, items)]
            found.append(predict.towers(pair_features(model.user, ids[0], model.item, ids[1])))
        both = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return both[0][: len(users)], both[1][: len(items)]

    return vectors


def pair_features(user: str, users: Tensor, item: str, items: Tensor) -> KeyedJaggedTensor:
    """Return users [B] and items [B] as the features of B rows."""
    size = len(users)
    return KeyedJaggedTensor(
        [user, item],
        torch.cat([users, items]),
        lengths=torch.ones(2 * size, dtype=torch.int64),
        stride=size,
        length_per_key=[size, size],
    )


def _column(store: Store, name: str) -> int:
    """Return the place of a field among those with one id a row."""
    single = [column.name for column in store.schema.fields if column.kind == "categorical"]
    if name not in single:
        raise ValueError(
            f"retrieval needs a column {name!r} with one id a row.{nearest(name, single)} "
            f"The data have: {', '.join(single) or 'none'}"
        )
    return single.index(name)


def _rows(store: Store, name: str) -> int:
    """Return the ids of a column's table; id 0 is no user or item, but stands for unknown ones."""
    (column,) = (column for column in store.schema.fields if column.name == name)
    (table,) = (table for table in store.schema.tables if table.name == column.table_name)
    if table.vocabulary != "closed":
        raise ValueError(
            f"retrieval lists all users and items, but column {name!r} has an open vocabulary: "
            "declare it with vocabulary: closed, or use train.loss=bce"
        )
    return table.rows


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Return whether each value is one of the others, which are sorted."""
    at = np.searchsorted(ascending, values)
    return ascending.take(at, mode="clip") == values


def _finite(users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    for side, vectors in (("user", users), ("item", items)):
        bad = int((~vectors.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"{bad} of {len(vectors)} {side} vectors hold NaN or infinity")
    return users.float(), items.float()
