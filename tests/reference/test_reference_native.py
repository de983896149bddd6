"""The native backend computes what the reference backend does, for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embtables import (
    SGD,
    Adagrad,
    Adam,
    DenseAdam,
    EmbeddingTables,
    Feature,
    PackedTables,
    RowOptimizer,
    RowWiseAdagrad,
    Vocabulary,
)
from embtables.rows.gather import Buffers, occurrences
from embtables.torchrec_types import KeyedJaggedTensor

VOCABULARIES = {"a": Vocabulary(700), "b": Vocabulary(90)}
METHODS = [
    "full", "hash", "double_hash", "double_hash(combine=concat)", "qr", "qr(combine=sum)",
    "qr(combine=concat)", "multiplex(lookups=3, subtables=2)", "qr+mde",
]  # fmt: skip
OPTIMIZERS = [
    SGD(lr=0.01),
    Adagrad(lr=0.1, eps=1e-3),
    RowWiseAdagrad(lr=0.1, eps=1e-3, weight_decay=0.1),
    Adam(lr=0.01, eps=1e-3, weight_decay=0.1),
    DenseAdam(lr=0.01, eps=1e-3, l2=0.1),
]


def _tables(
    method: str, backend: str, optimizer: RowOptimizer, dim: int = 5, history: str = "none"
) -> EmbeddingTables:
    features = [
        Feature("a", dim),
        Feature("b", dim, pooling="mean"),
        Feature("history", dim, table="a", pooling=cast(Any, history)),
    ]
    return EmbeddingTables(
        features,
        VOCABULARIES,
        table=method,
        ratio=0.6,
        backend=backend,
        seed=3,
        optimizer=optimizer,
    )


def _batch(seed: int, rows: int, bags: str, dtype: torch.dtype) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.ones(3 * rows, dtype=torch.long)
    if bags != "single":
        lengths = torch.randint(0, 5, (3 * rows,), generator=generator)
    ids = torch.randint(0, 90, (int(lengths.sum()),), generator=generator) ** 2 % 90
    weights = torch.rand(len(ids), generator=generator) if bags == "weighted" else None
    return KeyedJaggedTensor(["a", "b", "history"], ids.to(dtype), weights, lengths=lengths)


def _outputs(tables: EmbeddingTables | PackedTables, batch: KeyedJaggedTensor) -> torch.Tensor:
    pooled, sequences = tables.lookup(batch)
    found = [pooled.values(), *(one.values() for one in sequences.values())]
    return torch.cat([one.flatten() for one in found])


def _steps(tables: EmbeddingTables, clip: bool, bags: str) -> Iterator[torch.Tensor]:
    """Take four steps, two look-ups before each second one; return what was read and measured."""
    for number in range(4):
        for part in range(1 + number % 2):
            batch = _batch(10 * number + part, 40, bags, (torch.long, torch.int32)[number // 2])
            found = _outputs(tables, batch)
            yield found.detach().clone()
            (found.sin() * torch.linspace(-1, 1, len(found))).sum().backward()
        if clip:
            yield tables.grad_square_sum().float().view(1)
            tables.scale_grads(torch.tensor(0.5))
        tables.step()


def _assert_close(found: torch.Tensor, expected: torch.Tensor, rounding: float = 2e-6) -> None:
    """Assert 1e-6 relative, or `rounding` of the largest number: sums of gradients cancel."""
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=rounding * largest)


def _assert_agrees_with_reference(
    method: str, optimizer: RowOptimizer, bags: str, **more: Any
) -> None:
    both = [_tables(method, backend, optimizer, **more) for backend in ("reference", "native")]
    # With a weight each gradient is rounded once more before it is added.
    rounding = 1e-5 if bags == "weighted" else 2e-6
    for clip in (False, True):
        for mine, theirs in zip(*(_steps(one, clip, bags) for one in both), strict=True):
            _assert_close(mine, theirs, rounding)
    expected, found = (one.training_state() for one in both)
    for name in found.keys() - {"store.seed"}:
        _assert_close(found[name], expected[name], rounding)


@pytest.mark.parametrize("bags", ["single", "jagged", "weighted"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: one.kind)
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_reference(method: str, optimizer: RowOptimizer, bags: str) -> None:
    _assert_agrees_with_reference(method, optimizer, bags)


@pytest.mark.parametrize("bags", ["jagged", "weighted"])
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_reference_where_all_features_are_pooled(method: str, bags: str) -> None:
    _assert_agrees_with_reference(method, RowWiseAdagrad(lr=0.1, eps=1e-3), bags, history="sum")


def test_weights_of_a_bag_can_be_learned() -> None:
    """A position-weighted bag: the gradient of a weight is vector * gradient of its bag."""
    tables = _tables("full", "native", SGD(lr=0.1))
    batch = _batch(0, 8, "weighted", torch.long)
    weights = batch.weights().requires_grad_()
    tables.lookup(batch)[0].values().sum().backward()
    rows = tables.store.export("a")["values"][batch.to_dict()["a"].values()]
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad[: len(rows)], rows.sum(1))


@pytest.mark.parametrize("bags", ["single", "weighted"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:4], ids=lambda one: one.kind)
def test_threads_change_nothing(optimizer: RowOptimizer, bags: str) -> None:
    states = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            tables = _tables("double_hash", "native", optimizer, dim=16)
            list(_steps(tables, clip=False, bags=bags))
        finally:
            torch.set_num_threads(1)
        states.append(tables.training_state())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@given(
    rows=st.integers(1, 3000),
    dim=st.integers(1, 20),
    ids=st.lists(st.integers(0, 2999), min_size=1, max_size=300),
)
def test_repeated_ids_are_summed_first(rows: int, dim: int, ids: list[int]) -> None:
    """One Adagrad step against a closed form: sum of gradients g, then g / |g| elementwise."""
    ids = [i % rows for i in ids]
    tables = EmbeddingTables(
        [Feature("a", dim)],
        {"a": Vocabulary(rows)},
        optimizer=Adagrad(lr=0.5, eps=1e-12),
        backend="native",
    )
    before = tables.store.export("a")["values"].clone()
    batch = KeyedJaggedTensor(["a"], torch.tensor(ids), lengths=torch.ones(len(ids)).long())
    tables.lookup(batch)[0].values().sum().backward()
    tables.step()
    expected = before.clone()
    expected[list(set(ids))] -= 0.5
    torch.testing.assert_close(tables.store.export("a")["values"], expected)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_stochastic_rounding_is_unbiased(precision: str) -> None:
    """Many small steps down move the mean of rows as they would in float32."""
    tables = EmbeddingTables(
        [Feature("a", 64)],
        {"a": Vocabulary(500)},
        table=f"full+{precision}(train=true)",
        optimizer=SGD(lr=1e-5),
        backend="native",
    )
    batch = KeyedJaggedTensor(["a"], torch.arange(500), lengths=torch.ones(500).long())
    tables.eval()
    before = tables.lookup(batch)[0].values().double().mean()
    tables.train()
    for _ in range(100):
        tables.lookup(batch)[0].values().sum().backward()
        tables.step()
    tables.eval()
    moved = before - tables.lookup(batch)[0].values().double().mean()
    # 100 roundings of 32,000 numbers of std 0.01: the error of the mean is far below 1e-5.
    assert abs(float(moved) - 1e-3) < 3e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_packed_rows_are_decoded_exactly(precision: str) -> None:
    tables = EmbeddingTables([Feature("a", 7)], {"a": Vocabulary(700)}, table=f"full+{precision}")
    tensors, metadata = tables.pack_tensors()
    one = tables.plan["a"].precision
    prefix = next(iter(tensors)).rsplit(".", 1)[0]
    parts = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
    batch = KeyedJaggedTensor(["a"], torch.arange(700), lengths=torch.ones(700).long())
    found = PackedTables.from_tensors(tensors, metadata).lookup(batch)[0].values()
    assert torch.equal(found, one.decode(parts))


def test_a_vector_that_is_kept_is_not_overwritten() -> None:
    tables = _tables("full", "native", SGD(lr=0.1))
    batch = _batch(0, 8, "single", torch.long)
    kept = _outputs(tables, batch)
    pooled = tables.lookup(batch)[0].values()
    copies = kept.clone(), pooled.clone()
    tables.step()
    for seed in range(1, 4):
        _outputs(tables, _batch(seed, 8, "single", torch.long))
        tables.step()
    assert torch.equal(kept, copies[0])
    assert torch.equal(pooled, copies[1])


@given(st.lists(st.integers(0, 4999), max_size=400), st.integers(5000, 10**6))
def test_occurrences(keys: list[int], rows: int) -> None:
    found = occurrences(torch.tensor(keys, dtype=torch.long), rows)
    assert found.tolist() == [keys.count(key) for key in keys]


def test_buffers_are_reused_once_free() -> None:
    memory = Buffers()
    first = memory.take("x", 200, 100)
    address = first.data_ptr()
    second = memory.take("x", 200, 100)
    assert second.data_ptr() != address
    address = second.data_ptr()
    del second
    assert memory.take("x", 190, 100).data_ptr() == address
    assert memory.take("x", 500, 200).numel() == 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": None}, "backend native updates rows itself; give a row optimizer"),
        ({"optimizer": SGD(), "dtype": torch.float64}, "computes in float32, not torch.float64"),
        (
            {"optimizer": DenseAdam(), "table": "int8(train=true)"},
            "dense_adam would round every row",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingTables([Feature("a", 4)], {"a": Vocabulary(9)}, backend="native", **options)
