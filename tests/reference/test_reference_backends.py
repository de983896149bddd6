"""The torchrec backend computes what the reference backend does, and refuses what it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from embtables import (
    SGD,
    Adagrad,
    Adam,
    DenseAdam,
    EmbeddingTables,
    Feature,
    RowWiseAdagrad,
    Vocabulary,
)
from embtables.torchrec_types import KeyedJaggedTensor

Kjt = Callable[..., KeyedJaggedTensor]
VOCABULARIES = {"item": Vocabulary(200), "shop": Vocabulary(90), "linear": Vocabulary(200)}
BATCHES = [
    {"item": [[1], [150], [1]], "shop": [[3, 3], [], [89]], "history": [[], [5, 150], [7]]},
    {"item": [[2], [199], [0]], "shop": [[3], [88, 1], []], "history": [[1], [], [7, 7, 8]]},
    {"item": [[1], [9], [0]], "shop": [[], [], [4]], "history": [[], [], [199]]},
]
NOTHING = {"item": [[], []], "shop": [[], []], "history": [[], []]}
METHODS = [
    "full", "hash", "double_hash", "double_hash(combine=concat)", "qr", "qr(combine=sum)",
    "qr(combine=concat)", "multiplex", "multiplex(lookups=3, subtables=2)", "hash+mde",
    "multiplex(lookups=2)+mde", "qr+mde+int8", "full+fp16",
]  # fmt: skip


def _tables(method: str, backend: str, dim: int, **options: Any) -> EmbeddingTables:
    features = [
        Feature("item", dim),
        Feature("linear", 1, key="item"),
        Feature("shop", dim, pooling="mean"),
        Feature("history", dim, table="item", pooling="none"),
    ]
    return EmbeddingTables(
        features, VOCABULARIES, table=method, ratio=0.5, backend=backend, seed=4, **options
    )


def _outputs(tables: EmbeddingTables, batch: KeyedJaggedTensor) -> Iterator[torch.Tensor]:
    pooled, sequences = tables.lookup(batch)
    yield pooled.values()
    yield from (found.values() for found in sequences.values())


@pytest.mark.parametrize("dim", [8, 6])
@pytest.mark.parametrize("method", METHODS)
def test_backends_agree(kjt: Kjt, method: str, dim: int) -> None:
    optimizer = Adagrad(lr=0.1) if dim == 8 else SGD(lr=0.1)
    both = [_tables(method, name, dim, optimizer=optimizer) for name in ("reference", "torchrec")]
    for bags in BATCHES:
        found = [list(_outputs(tables, kjt(bags))) for tables in both]
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        for tables, values in zip(both, found, strict=True):
            torch.cat([value.flatten() for value in values]).exp().sum().backward()
            tables.step()
    for name in both[0].store.tables:
        mine, theirs = (tables.store.export(name)["values"] for tables in both)
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    assert both[0].bytes().inference == both[1].bytes().inference
    for tables in both:
        pooled, sequences = tables.lookup(kjt(NOTHING))
        assert not pooled.values().any()
        assert len(sequences["history"].values()) == 0


@pytest.mark.parametrize("dim", [8, 6])
def test_packed_files_agree(kjt: Kjt, dim: int) -> None:
    """Padding of the torchrec backend is neither packed nor counted."""
    both = [_tables("qr+mde", b, dim, optimizer=SGD(lr=0.1)) for b in ("reference", "torchrec")]
    mine, theirs = (tables.pack_tensors()[0] for tables in both)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name])


def test_learning_rate_reaches_the_fused_optimizer(kjt: Kjt) -> None:
    both = [_tables("hash", b, 8, optimizer=SGD(lr=0.1)) for b in ("reference", "torchrec")]
    for tables in both:
        assert tables.lr == 0.1
        tables.set_lr(0.5)
        assert tables.lr == 0.5
        # The new rate counts from the first backward on.
        for bags in BATCHES:
            torch.cat([v.flatten() for v in _outputs(tables, kjt(bags))]).sum().backward()
            tables.step()
    for name in both[0].store.tables:
        mine, theirs = (tables.store.export(name)["values"] for tables in both)
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1)])
def test_torchrec_state_round_trip(kjt: Kjt, optimizer: Any) -> None:
    def train(tables: EmbeddingTables, batches: list[Any]) -> None:
        for bags in batches:
            torch.cat([v.flatten() for v in _outputs(tables, kjt(bags))]).exp().sum().backward()
            tables.step()

    # Rows of 2 and 6 numbers are padded, which rowwise_adagrad refuses: widths of 8 alone.
    features = [Feature("item", 8), Feature("shop", 8, pooling="mean")]
    features.append(Feature("history", 8, table="item", pooling="none"))

    def make(seed: int) -> EmbeddingTables:
        return EmbeddingTables(
            features, VOCABULARIES, table="hash", ratio=0.5, backend="torchrec",
            optimizer=optimizer, seed=seed,
        )  # fmt: skip

    going, resumed = make(0), make(1)
    train(going, BATCHES[:2])
    state = {name: tensor.clone() for name, tensor in going.training_state().items()}
    resumed.load_training_state(state)
    for tables in (going, resumed):
        train(tables, BATCHES)
    for name, tensor in going.training_state().items():
        assert torch.equal(tensor, resumed.training_state()[name]), name


REFUSED = [
    ("full+int8(train=true)", {"optimizer": Adagrad()}, r"int8\(train=true\).*backend=reference"),
    ("full", {"dtype": torch.float64}, "float64.*backend=reference"),
    ("full", {"optimizer": Adam()}, "no fused adam on cpu.*sgd, adagrad, rowwise_adagrad"),
    ("full", {"optimizer": DenseAdam()}, "no fused dense_adam"),
    ("full", {"optimizer": Adagrad(weight_decay=0.1)}, "weight decay.*weight_decay=0"),
    ("full", {"optimizer": SGD(weight_decay=0.1)}, "weight decay.*weight_decay=0"),
    ("full", {"optimizer": RowWiseAdagrad()}, r"widths \[1, 3\].*rowwise_adagrad.*adagrad"),
]


@pytest.mark.parametrize(("method", "options", "message"), REFUSED)
def test_torchrec_refuses_by_name(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _tables(method, "torchrec", 8, **options)


def test_several_refusals_come_together() -> None:
    options: dict[str, Any] = {"optimizer": Adam(weight_decay=0.1), "dtype": torch.float64}
    with pytest.raises(ValueError, match=r"float64(.|\n)*adam(.|\n)*weight decay"):
        _tables("full", "torchrec", 8, **options)


def test_fused_tables_cannot_be_clipped() -> None:
    with pytest.raises(ValueError, match="clip_norm=null or backend=reference"):
        _tables("full", "torchrec", 8, optimizer=SGD()).require("clip")
    _tables("full", "reference", 8, optimizer=SGD()).require("clip")


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'torchrek'\. Did you mean \"torchrec\""):
        _tables("full", "torchrek", 8)
