"""Retrieval: ranking and metrics against loops over users, BPR, resuming, and planted structure."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from data.loader import Loader
from data.store import Store
from trainer import retrieval as module
from trainer.config import RunConfig, load_config
from trainer.datasets import open_store
from trainer.loop import Trainer, train
from trainer.predict import PackedModel
from trainer.retrieval import (
    Retrieval,
    bpr_loss,
    ranking_metrics,
    vectors_of,
)
from trainer.runs import evaluate_run
from trainer.signals import Interrupted
from trainer.step import TrainStep
from trainer.summary import summary_text
from trainer.validation import ConfigError

RECIPE = """
data:
  kind: parquet
  train: [train.parquet]
  test: [test.parquet]
  label: null
  valid_share: 0.2
  columns:
    - {name: user, kind: categorical}
    - {name: item, kind: categorical}
model: {kind: mf, dim: 8}
rows: {kind: adam, lr: 0.02}
train: {loss: bpr, batch_size: 256, epochs: 3, seed: 3, reduce_lr: null, top_k: 5}
"""
COMMUNITIES, USERS, ITEMS = 4, 120, 80
Pairs = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each user takes 12 of the 20 items of one community of four; a quarter of the pairs is tested."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), 12)
    item = np.concatenate(
        [rng.choice(ITEMS // COMMUNITIES, 12, replace=False) for _ in range(USERS)]
    )
    item = item * COMMUNITIES + user % COMMUNITIES
    frame = pl.DataFrame({"user": user + 1000, "item": item + 7}).sample(
        fraction=1, shuffle=True, seed=1
    )
    tested = frame[: len(frame) // 4]
    # A user and an item that training never sees, and a pair that it has seen already.
    news = pl.DataFrame({"user": [1, 1000, frame["user"][-1]], "item": [7, 1, frame["item"][-1]]})
    frame[len(frame) // 4 :].write_parquet(folder / "train.parquet")
    pl.concat([tested, news]).write_parquet(folder / "test.parquet")
    (folder / "pairs.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def pairs(raw: Path) -> Pairs:
    """Return the configuration of a run on the pairs, with overrides."""

    def build(*overrides: str) -> RunConfig:
        place = (f"data.root={raw}", f"data.store={raw / 'prepared'}")
        return load_config(str(raw / "pairs.yaml"), (*place, *overrides)).config

    return build


@pytest.fixture(scope="module")
def store(pairs: Pairs) -> Store:
    return open_store(pairs())


def test_metrics_by_hand() -> None:
    hits = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    found = ranking_metrics(hits, np.array([2, 1, 5]), 3)
    assert found["recall"] == pytest.approx((2 / 2 + 0 + 1 / 5) / 3)
    assert found["recall_capped"] == pytest.approx((2 / 2 + 0 + 1 / 3) / 3)
    second, third = 1 / np.log2(3), 1 / 2
    ideal = [1 + second, 1, 1 + second + third]
    assert found["ndcg"] == pytest.approx(((1 + third) / ideal[0] + second / ideal[2]) / 3)


def clicked(store: Store, split: str) -> list[tuple[int, int]]:
    """Return (user, item) of every row."""
    return [(int(user), int(item)) for user, item in store.split(split).ids]


def random_vectors(store: Store, width: int = 2) -> module.Vectors:
    """Return vectors of small integers by id: full of ties."""
    rng = np.random.default_rng(0)
    rows = {table.name: table.rows for table in store.schema.tables}
    held = {name: rng.integers(-1, 2, (count, width)) for name, count in rows.items()}
    return lambda users, items: (
        torch.from_numpy(held["user"][users]).float(),
        torch.from_numpy(held["item"][items]).float(),
    )


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("top_k", [4, 200])
@pytest.mark.parametrize("ties", ["popularity", "arbitrary"])
def test_measure_equals_loops_over_users(
    store: Store, monkeypatch: pytest.MonkeyPatch, split: str, top_k: int, ties: str
) -> None:
    monkeypatch.setattr(module, "USERS", 7)
    ranked = Retrieval(store, "user", "item", top_k, ties)  # pyright: ignore[reportArgumentType]
    vectors = random_vectors(store)
    earlier = {"train": [], "valid": ["train"], "test": ["train", "valid"]}[split]
    known = {pair for name in earlier for pair in clicked(store, name)}
    held = [pair for pair in clicked(store, split) if pair[0] > 0]
    order = {item: place for place, item in enumerate(ranked.items.tolist())}
    every = np.arange(1, len(ranked.counts))
    recall, capped, ndcg = [], [], []
    for user in sorted({user for user, _ in held}):
        relevant = {item for one, item in held if one == user and item > 0} - {
            item for one, item in known if one == user
        }
        size = len(relevant) + sum(pair == (user, 0) for pair in held)
        if not size:
            continue
        one, all_items = vectors(np.array([user]), every)
        scores = dict(zip(every.tolist(), (all_items @ one[0]).tolist(), strict=True))
        allowed = [item for item in every.tolist() if (user, item) not in known]
        best = sorted(allowed, key=lambda item: (-scores[item], order[item]))[:top_k]
        places = [place for place, item in enumerate(best) if item in relevant]
        recall.append(len(places) / size)
        capped.append(len(places) / min(size, top_k))
        ideal = sum(1 / np.log2(place + 2) for place in range(min(size, top_k)))
        ndcg.append(sum(1 / np.log2(place + 2) for place in places) / ideal)
    expected = {"recall": np.mean(recall), "recall_capped": np.mean(capped), "ndcg": np.mean(ndcg)}
    expected |= {"top_k": top_k, "users": len(recall), "rows": store.schema.rows[split]}
    assert ranked.measure(split, vectors) == pytest.approx(expected)
    assert sum(ndcg) > 0


def test_popular_items_win_ties_and_smaller_ids_among_them(store: Store) -> None:
    counts = np.zeros(store.schema.tables[1].rows, int)
    for _, item in clicked(store, "train"):
        counts[item] += 1
    ranked = Retrieval(store, "user", "item")
    expected = sorted(range(1, len(counts)), key=lambda item: (-counts[item], item))
    assert ranked.items.tolist() == expected
    arbitrary = Retrieval(store, "user", "item", ties="arbitrary").items
    assert sorted(arbitrary) == sorted(expected)
    assert abs(np.corrcoef(arbitrary, np.arange(len(arbitrary)))[0, 1]) < 0.3


def test_popularity_ranks_by_training_count(store: Store) -> None:
    ranked = Retrieval(store, "user", "item", ties="arbitrary")

    def zeros(users: np.ndarray, items: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.ones(len(users), 1), torch.zeros(len(items), 1)

    by_ties = Retrieval(store, "user", "item").measure("test", zeros)
    by_score = Retrieval(store, "user", "item").measure("test", ranked.popularity)
    assert by_score == by_ties


def test_vectors_that_are_not_finite_are_refused(store: Store) -> None:
    ranked = Retrieval(store, "user", "item")

    def broken(users: np.ndarray, items: np.ndarray) -> tuple[Tensor, Tensor]:
        vectors = torch.ones(len(items), 2)
        vectors[[1, 5], 1] = torch.tensor([torch.nan, torch.inf])
        return torch.ones(len(users), 2), vectors

    with pytest.raises(ValueError, match=f"2 of {ITEMS} item vectors hold NaN or infinity"):
        ranked.measure("test", broken)


def test_measuring_stops_when_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USERS", 10)
    ranked, asked = Retrieval(store, "user", "item"), count(1)
    with pytest.raises(Interrupted):
        ranked.measure("test", ranked.popularity, stop=lambda: next(asked) >= 3)
    assert next(asked) == 4


def test_bpr_loss_and_gradient_in_closed_form() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)  # 3 rows, 2 negatives each
    label = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    loss = bpr_loss(logits, label)
    values = logits.detach().numpy().reshape(3, 3)
    expected, grad = 0.0, np.zeros((3, 3))
    for row in (0, 2):
        for negative in (1, 2):
            wrong = 1 / (1 + np.exp(values[0, row] - values[negative, row]))  # sigmoid(neg - pos)
            expected -= np.log(1 - wrong) / 4
            grad[0, row] -= wrong / 4
            grad[negative, row] += wrong / 4
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert logits.grad is not None
    assert_close(logits.grad, torch.from_numpy(grad.ravel()))


def test_negatives_keep_the_user_and_are_uniform_over_all_items(store: Store) -> None:
    torch.manual_seed(0)
    ranked = Retrieval(store, "user", "item")
    (batch,) = Loader(store, "train", 10**6)
    both = ranked.with_negatives(batch, 20)
    users, items = (both.features[name].values().view(21, -1) for name in ("user", "item"))
    assert (users == batch.features["user"].values()).all()
    assert torch.equal(items[0], batch.features["item"].values())
    assert torch.equal(both.label.view(21, -1)[3], batch.label)
    drawn = torch.bincount(items[1:].flatten())
    assert drawn[0] == 0
    assert len(drawn) == len(ranked.counts)
    mean = items[1:].numel() / (len(drawn) - 1)
    assert (drawn[1:] - mean).abs().max() < 5 * mean**0.5
    assert not torch.equal(items[1], items[2])


def test_a_step_moves_rows_by_the_gradient_of_bpr(pairs: Pairs, store: Store) -> None:
    config = pairs("rows.kind=sgd", "rows.lr=1", "train.negatives=2", "init.scale=0.5")
    trainer = Trainer(config, store)
    batch = next(iter(trainer.loader))
    state = torch.get_rng_state()
    both = Retrieval(store, "user", "item").with_negatives(batch, 2)
    torch.set_rng_state(state)
    users, items = (both.features[name].values() for name in ("user", "item"))
    rows = [_all_rows(trainer, name).requires_grad_() for name in ("user", "item")]
    scores = (rows[0][users] * rows[1][items]).sum(1).view(3, -1)
    loss = -torch.nn.functional.logsigmoid(scores[0] - scores[1:]).mean()
    loss.backward()
    trainer.tables.train()
    assert trainer.train_step(batch).item() == pytest.approx(loss.item(), rel=1e-5)
    for name, before in zip(("user", "item"), rows, strict=True):
        assert before.grad is not None
        assert_close(_all_rows(trainer, name), (before - before.grad).detach())
        assert before.grad.abs().sum() > 0


def _all_rows(trainer: Trainer, side: str) -> Tensor:
    """Return the vectors [R, D] of all ids of a side."""
    rows = {table.name: table.rows for table in trainer.store.schema.tables}
    ids = {name: np.arange(count) for name, count in rows.items()}
    users, items = vectors_of(trainer.predict, 50)(ids["user"], ids["item"])
    return (users if side == "user" else items).clone()


def test_the_planted_communities_are_found(pairs: Pairs, tmp_path: Path) -> None:
    config = pairs("train.epochs=30", "train.patience=30")
    summary = train(config, tmp_path)
    test, store = summary["test"], open_store(config)
    alone = Retrieval(store, "user", "item", 5)
    popular = alone.measure("test", alone.popularity)
    # A user took 12 of the 20 items of the community, and about 9 are masked.
    assert test["recall"] > 0.35 > 4 * popular["recall"]
    assert test["recall_capped"] >= test["recall"]
    assert test.keys() == {"recall", "recall_capped", "ndcg", "top_k", "users", "rows"}
    assert summary["monitor"] == "recall"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["recall"])
    assert summary["step"] == best["step"]
    assert summary["valid"]["recall"] == best["recall"]  # packed as it was trained
    assert evaluate_run(tmp_path, "test") == test
    assert "recall@5" in summary_text(summary)
    # What was packed ranks by itself.
    vectors = vectors_of(PackedModel.load(tmp_path / "model.safetensors"), 33)
    assert alone.measure("test", vectors) == test


@pytest.mark.parametrize("table", ["full", "hash"])
def test_resumed_run_equals_an_unbroken_one(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    size = () if table == "full" else ("ratio=0.5",)
    config = pairs(f"table={table}", *size, "train.checkpoint_every=2", "train.negatives=2")
    train(config, tmp_path / "whole")
    plain = TrainStep.__call__

    def crash_at_7(self: TrainStep, *batches: Any) -> Tensor:
        if self.state.step == 6:
            raise RuntimeError("power cut")
        return plain(self, *batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", crash_at_7)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    for name in ("metrics.jsonl", "model.safetensors"):
        files = [(tmp_path / run / name).read_bytes() for run in ("whole", "broken")]
        assert files[0] == files[1]


def test_limit_measures_the_first_rows(pairs: Pairs, tmp_path: Path) -> None:
    config = pairs("train.limit_batches=1", "train.eval_batch_size=50", "train.epochs=1")
    assert train(config, tmp_path)["test"]["rows"] == 50


def test_item_bias_learns_popularity(pairs: Pairs, tmp_path: Path) -> None:
    config = pairs("model.item_bias=true", "train.epochs=1")
    assert (
        train(config, tmp_path)["parameters"]["tables"]
        > train(pairs("train.epochs=1"), tmp_path / "plain")["parameters"]["tables"]
    )


def test_a_model_without_towers_is_refused_by_name(pairs: Pairs, store: Store) -> None:
    config = pairs("model={kind: fm, dim: 4}")
    with pytest.raises(ValueError, match=r"train\.loss=bpr .* FM does not have; .*model\.kind=mf"):
        Trainer(config, store)


def test_data_that_do_not_list_items_are_refused_by_name(pairs: Pairs) -> None:
    columns = "[{name: user, kind: categorical}, {name: item, kind: categorical, vocabulary: open}]"
    config = pairs(f"data.columns={columns}", "table=hash", "ratio=0.5")
    with pytest.raises(ValueError, match="column 'item' has an open vocabulary"):
        Trainer(config, open_store(config))


def test_the_monitor_follows_the_loss(pairs: Pairs) -> None:
    assert pairs().train.monitor == "recall"
    assert pairs("train.loss=bce").train.monitor == "auc"
    with pytest.raises(
        ConfigError, match=r"train\.monitor: auc is not measured with train\.loss=bpr"
    ):
        pairs("train.monitor=auc")
    with pytest.raises(ConfigError, match=r"train\.monitor: ndcg is not measured .* use auc or"):
        pairs("train.loss=bce", "train.monitor=ndcg")
