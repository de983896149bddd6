"""The anchor: full+uniform+fp32 is what a plain TorchRec collection computes from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrec
import torchrec.optim
from torch import Tensor, nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from embtables import SGD, Adagrad, Adam, DenseAdam, EmbeddingTables, Feature, RowWiseAdagrad
from embtables.features import Vocabulary
from embtables.torchrec_types import KeyedJaggedTensor, KeyedTensor

ROWS = {"item": 50, "shop": 20, "tag": 30}
DIM = 8
BACKENDS = ["reference", "torchrec"]
Kjt = Callable[..., KeyedJaggedTensor]


def _weights(rows: dict[str, int] = ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, DIM, generator=generator) for name, n in rows.items()}


def _tables(features: list[Feature], **options: Any) -> EmbeddingTables:
    vocabularies = {name: Vocabulary(rows) for name, rows in ROWS.items()}
    tables = EmbeddingTables(features, vocabularies, table="full+uniform+fp32", **options)
    for name, rows in _weights().items():
        if name in tables.plan:
            tables.store.load(name, rows)
    return tables


def _bags(seed: int, keys: dict[str, int], batch: int, longest: int) -> dict[str, list[list[int]]]:
    """Return random bags of 0 .. longest ids, or of exactly one where longest is 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int = 1) -> list[int]:
        return torch.randint(0, high, (size,), generator=generator).tolist()

    return {
        key: [draw(rows, 1 if longest == 1 else draw(longest + 1)[0]) for _ in range(batch)]
        for key, rows in keys.items()
    }


def _bag_collection(pooling: str, keys: dict[str, list[str]]) -> nn.Module:
    kind = torchrec.PoolingType.SUM if pooling == "sum" else torchrec.PoolingType.MEAN
    configs = [
        torchrec.EmbeddingBagConfig(
            name=name,
            embedding_dim=DIM,
            num_embeddings=ROWS[name],
            feature_names=keys[name],
            pooling=kind,
        )
        for name in keys
    ]
    collection = torchrec.EmbeddingBagCollection(tables=configs)
    with torch.no_grad():
        for name, weight in collection.state_dict().items():
            weight.copy_(_weights()[name.split(".")[1]])
    return collection


KEYS = {"item": 50, "other": 50, "shop": 20, "tag": 30}
FEATURE_KEYS = {"item": ["item", "other"], "shop": ["shop"], "tag": ["tag"]}


def _features(pooling: Any) -> list[Feature]:
    tables = {key: table for table, keys in FEATURE_KEYS.items() for key in keys}
    return [Feature(key, DIM, table=table, pooling=pooling) for key, table in tables.items()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("longest", [1, 5])
def test_pooled_features_bit_for_bit(kjt: Kjt, backend: str, pooling: str, longest: int) -> None:
    collection = _bag_collection(pooling, FEATURE_KEYS)
    tables = _tables(_features(pooling), backend=backend)
    for seed in range(5):
        batch = kjt(_bags(seed, KEYS, 16, longest))
        found, expected = tables(batch), collection(batch)
        assert isinstance(found, KeyedTensor)
        assert found.keys() == expected.keys()
        assert found.length_per_key() == expected.length_per_key()
        assert torch.equal(found.values(), expected.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_sequences_bit_for_bit(kjt: Kjt, backend: str) -> None:
    configs = [
        torchrec.EmbeddingConfig(
            name=name, embedding_dim=DIM, num_embeddings=ROWS[name], feature_names=keys
        )
        for name, keys in FEATURE_KEYS.items()
    ]
    collection = torchrec.EmbeddingCollection(tables=configs)
    with torch.no_grad():
        for name, weight in collection.state_dict().items():
            weight.copy_(_weights()[name.split(".")[1]])
    tables = _tables(_features("none"), backend=backend)
    batch = kjt(_bags(3, KEYS, 16, 5))
    found, expected = tables(batch), collection(batch)
    assert found.keys() == expected.keys()
    for name, jagged in expected.items():
        assert torch.equal(found[name].values(), jagged.values())
        assert torch.equal(found[name].lengths(), jagged.lengths())


def _train(tables: EmbeddingTables, kjt: Kjt, steps: int, longest: int) -> None:
    for seed in range(steps):
        values = tables(kjt(_bags(seed, KEYS, 16, longest))).values()  # pyright: ignore[reportAttributeAccessIssue]
        _loss(values, seed).backward()
        tables.step()


def _loss(values: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return (values * torch.randn(values.shape, generator=generator)).square().mean()


def _train_collection(
    collection: nn.Module, kjt: Kjt, steps: int, longest: int, optimizer: Any
) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        _loss(collection(kjt(_bags(seed, KEYS, 16, longest))).values(), seed).backward()
        optimizer.step()


def _compare(
    tables: EmbeddingTables, collection: Any, rtol: float = 1e-5, atol: float = 2e-6
) -> None:
    for name, weight in collection.state_dict().items():
        table = name.split(".")[1]
        mine = tables.store.export(table)["values"]
        torch.testing.assert_close(mine, weight, rtol=rtol, atol=atol)
        assert not torch.equal(mine, _weights()[table])


@pytest.mark.parametrize("longest", [1, 4])
def test_sgd_steps_bit_for_bit(kjt: Kjt, longest: int) -> None:
    """Ordinary parameters under torch.optim.SGD; the fused SGD sums gradients in another order."""
    collection = _bag_collection("sum", FEATURE_KEYS)
    optimizer = torch.optim.SGD(collection.parameters(), lr=0.5)
    _train_collection(collection, kjt, 4, longest, optimizer)
    tables = _tables(_features("sum"), backend="torchrec")
    own = torch.optim.SGD(tables.parameters(), lr=0.5)
    _train_collection(tables, kjt, 4, longest, own)
    _compare(tables, collection, rtol=0, atol=0)
    for backend in BACKENDS:
        tables = _tables(_features("sum"), backend=backend, optimizer=SGD(lr=0.5))
        _train(tables, kjt, 4, longest)
        _compare(tables, collection, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("longest", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_adagrad_steps(kjt: Kjt, backend: str, longest: int) -> None:
    collection = _bag_collection("sum", FEATURE_KEYS)
    optimizer = torch.optim.Adagrad(collection.parameters(), lr=0.1, eps=1e-8)
    _train_collection(collection, kjt, 4, longest, optimizer)
    tables = _tables(_features("sum"), backend=backend, optimizer=Adagrad(lr=0.1, eps=1e-8))
    _train(tables, kjt, 4, longest)
    _compare(tables, collection)


FUSED = [
    pytest.param(SGD(lr=0.5), torch.optim.SGD, id="sgd"),
    pytest.param(Adagrad(lr=0.1), torch.optim.Adagrad, id="adagrad"),
    pytest.param(RowWiseAdagrad(lr=0.1), torchrec.optim.RowWiseAdagrad, id="rowwise_adagrad"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("optimizer", "fused"), FUSED)
def test_fused_collection_steps(kjt: Kjt, backend: str, optimizer: Any, fused: Any) -> None:
    configs = [
        torchrec.EmbeddingBagConfig(
            name=name, embedding_dim=DIM, num_embeddings=ROWS[name], feature_names=keys
        )
        for name, keys in FEATURE_KEYS.items()
    ]
    options = {"lr": optimizer.lr} | ({"eps": 1e-8} if optimizer.kind != "sgd" else {})
    collection = FusedEmbeddingBagCollection(configs, fused, options)
    with torch.no_grad():
        for name, weight in collection.state_dict().items():
            weight.copy_(_weights()[name.split(".")[1]])
    for seed in range(4):
        _loss(collection(kjt(_bags(seed, KEYS, 16, 4))).values(), seed).backward()
    tables = _tables(_features("sum"), backend=backend, optimizer=optimizer)
    _train(tables, kjt, 4, 4)
    _compare(tables, collection)


def test_rowwise_adagrad_by_hand(kjt: Kjt) -> None:
    tables = EmbeddingTables(
        [Feature("a", 2)], {"a": Vocabulary(3)}, optimizer=RowWiseAdagrad(lr=0.1, eps=1e-8)
    )
    tables.store.load("a", torch.zeros(3, 2))
    (tables(kjt({"a": [[1], [1]]})).values() * torch.tensor([3.0, 1.0])).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
    tables.step()
    # Gradient of row 1: [6, 2]; mean square 20; step 0.1 * g / sqrt(20).
    expected = torch.tensor([[0, 0], [-0.6 / 20**0.5, -0.2 / 20**0.5], [0, 0]])
    torch.testing.assert_close(tables.store.export("a")["values"], expected)


def test_dense_adam_is_adam_with_coupled_l2(kjt: Kjt) -> None:
    """All rows shrink, those outside the batch too; l2 is half of FuxiCTR's penalty squared."""
    collection = _bag_collection("sum", FEATURE_KEYS)
    optimizer = torch.optim.Adam(collection.parameters(), lr=0.01, weight_decay=0.3)
    _train_collection(collection, kjt, 5, 3, optimizer)
    tables = _tables(_features("sum"), optimizer=DenseAdam(lr=0.01, l2=0.3), backend="reference")
    _train(tables, kjt, 5, 3)
    _compare(tables, collection)


def test_lazy_adam_is_adam_when_every_row_is_read(kjt: Kjt) -> None:
    every = {key: [[i % rows] for i in range(50)] for key, rows in KEYS.items()}
    collection = _bag_collection("sum", FEATURE_KEYS)
    optimizer = torch.optim.Adam(collection.parameters(), lr=0.01)
    tables = _tables(_features("sum"), optimizer=Adam(lr=0.01), backend="reference")
    for seed in range(5):
        optimizer.zero_grad()
        _loss(collection(kjt(every)).values(), seed).backward()
        optimizer.step()
        _loss(tables(kjt(every)).values(), seed).backward()  # pyright: ignore[reportAttributeAccessIssue]
        tables.step()
    _compare(tables, collection)


def test_lazy_adam_is_sparse_adam_otherwise(kjt: Kjt) -> None:
    """torch.optim.SparseAdam adds eps before the bias correction: a tiny eps hides that."""
    bag = nn.EmbeddingBag(50, DIM, mode="sum", sparse=True)
    with torch.no_grad():
        bag.weight.copy_(_weights()["item"])
    optimizer = torch.optim.SparseAdam(bag.parameters(), lr=0.01, eps=1e-12)
    tables = _tables([Feature("item", DIM)], optimizer=Adam(lr=0.01, eps=1e-12))
    for seed in range(5):
        bags = _bags(seed, {"item": 50}, 6, 1)
        optimizer.zero_grad()
        _loss(bag(torch.tensor(bags["item"])), seed).backward()
        optimizer.step()
        _loss(tables(kjt(bags)).values(), seed).backward()  # pyright: ignore[reportAttributeAccessIssue]
        tables.step()
    torch.testing.assert_close(tables.store.export("item")["values"], bag.weight.detach())
