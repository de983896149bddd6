"""The layer around the methods: names, budgets, bytes, penalty, clipping, packed files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embtables import (
    SGD,
    Adam,
    DenseAdam,
    EmbeddingTables,
    Feature,
    Init,
    PackedTables,
    Vocabulary,
    parse_bytes,
    parse_table,
)
from embtables.registry import Registry
from embtables.torchrec_types import KeyedJaggedTensor

Kjt = Callable[..., KeyedJaggedTensor]


def _two(**options) -> EmbeddingTables:
    features = [Feature("a", 4), Feature("b", 4)]
    return EmbeddingTables(features, {"a": Vocabulary(50), "b": Vocabulary(3)}, **options)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MB", 10**7), ("2 GiB", 2 * 2**30), ("1.5kb", 1500), (512, 512), ("64", 64), (1e5, 10**5),
     ("1KiB", 1024), ("7 b", 7)],
)  # fmt: skip
def test_parse_bytes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "ten", "10XB", "-5", "0", "0.1", "1.2.3MB", "MB", ".", "nan", "inf", "1e3"]
)
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size in bytes; write|must be positive"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hsh", r'unknown method \'hsh\'.*Did you mean "hash"'),
        ("hash+qr", "names two methods of the sharing axis; choose one"),
        ("hash+int8+fp16", "names two methods of the precision axis"),
        ("hash(exact_rows=3", "the bracket is not closed"),
        ("hash(3)", "expected option=value, got '3'"),
        ("hash(exact_row=3)", 'Did you mean "exact_rows"'),
        ("hash(exact_rows={)", r"hash\(exact_rows=\{\)"),
        ("", "unknown method"),
        ("hash++int8", "unknown method"),
    ],
)
def test_factory_string_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_table(text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sharing": 3}, "sharing"),
        ({"sharing": {"combine": "sum"}}, '"kind" is missing'),
        ({"sharing": {"kind": ["hash"]}}, "sharing"),
        ({"shring": "hash"}, "shring"),
        ({"precision": "int9"}, 'Did you mean "int8"'),
    ],
)
def test_mapping_errors(value: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_table(value)


def test_parts_in_any_order_and_defaults() -> None:
    assert parse_table("int8+mde+qr") == parse_table("qr+mde+int8")
    assert str(parse_table("full+uniform+fp32")) == "full"
    assert str(parse_table("int8")) == "int8"
    assert parse_table({"sharing": "hash"}) == parse_table("hash")
    assert str(parse_table("qr( collisions = 4 , combine=sum )")) in {
        "qr(combine=sum, collisions=4)",
        "qr(collisions=4, combine=sum)",
    }


def test_a_second_method_of_a_name_is_refused() -> None:
    registry: Registry[object] = Registry("embtables.sharing", "sharing")
    registry.register("twin")(type("One", (), {}))
    with pytest.raises(ValueError, match="sharing 'twin' is already registered by"):
        registry.register("twin")(type("Two", (), {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 100, "ratio": 0.1}, "budget and ratio both give the size; choose one"),
        ({"ratio": 0.0}, "ratio must be positive, got 0"),
        ({"ratio": -1.0}, "ratio must be positive"),
        ({"budget": "ten"}, "is not a size in bytes"),
        ({"fields": {"aa": "full"}}, r'fields.aa: no such table. Did you mean "a"'),
        ({"backend": "turbo"}, "unknown backend 'turbo'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _two(**options)


def test_bad_features() -> None:
    vocabularies = {"a": Vocabulary(5), "b": Vocabulary(5)}
    with pytest.raises(ValueError, match="feature 'a': dim must be at least 1, got 0"):
        Feature("a", 0)
    with pytest.raises(ValueError, match="two features are called 'a'"):
        EmbeddingTables([Feature("a", 4), Feature("a", 4)], vocabularies)
    with pytest.raises(ValueError, match="feature 'c' reads table 'c', which has no vocabulary"):
        EmbeddingTables([Feature("c", 4)], vocabularies)
    with pytest.raises(ValueError, match="features of one table have one width"):
        EmbeddingTables([Feature("a", 4), Feature("b", 8, table="a")], vocabularies)


def test_bad_vocabularies() -> None:
    with pytest.raises(ValueError, match="at least one row, got 0"):
        Vocabulary(0)
    for oov in (5, -1):
        with pytest.raises(ValueError, match=rf"oov row {oov} is outside .*0 .. 4"):
            Vocabulary(5, oov=oov)


def test_fields_may_differ(kjt: Kjt) -> None:
    features = [Feature(name, 8) for name in ("C1", "C2", "C3")]
    features.append(Feature("C3:linear", 1, key="C3"))
    tables = EmbeddingTables(
        features,
        {f.name: Vocabulary(1000) for f in features},
        table="qr",
        fields={"C1": "full", "C3": "hash+int8"},
        budget=48_000,
    )
    made = {name: str(one.config) for name, one in tables.plan.items()}
    assert made == {"C1": "full", "C2": "qr", "C3": "hash+int8", "C3:linear": "hash+int8"}
    assert tables.plan["C1"].places[0].rows == 1000
    assert tables.bytes().inference <= 48_000
    pooled, _ = tables.lookup(kjt({f.name: [[1], [999]] for f in features[:3]}))
    assert pooled.keys() == [f.name for f in features]
    # One number a row: eight bits and a scale would take more than a float.
    assert tables.plan["C3:linear"].precision.row_bytes(1) == 4


@pytest.mark.parametrize("optimizer", [None, SGD(lr=0.1), Adam(lr=0.1)])
def test_training_bytes(optimizer) -> None:
    numbers = 53 * 4
    copies = 3 if isinstance(optimizer, Adam) else 1
    for backend in ("reference", "torchrec") if copies == 1 else ("reference",):
        tables = _two(optimizer=optimizer, backend=backend)
        assert tables.bytes().training == 4 * numbers * copies
        assert tables.bytes().inference == tables.bytes().uncompressed == 4 * numbers


def test_init(kjt: Kjt) -> None:
    def rows(init: Init, seed: int = 0) -> torch.Tensor:
        tables = EmbeddingTables([Feature("a", 16)], {"a": Vocabulary(5000)}, init=init, seed=seed)
        return tables.store.export("a")["values"]

    normal = rows(Init(kind="normal", scale=0.1))
    assert float(normal.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float(normal.mean())) < 0.002
    uniform = rows(Init(kind="uniform", scale=0.05))
    assert 0.0499 < float(uniform.abs().max()) <= 0.05
    assert float(uniform.std()) == pytest.approx(0.1 / 12**0.5, rel=0.02)
    assert not torch.equal(normal, rows(Init(kind="normal", scale=0.1), seed=-3))


def test_initial_rows_depend_on_the_table_alone(kjt: Kjt) -> None:
    """Another feature beside it changes nothing."""
    alone = EmbeddingTables([Feature("a", 4)], {"a": Vocabulary(50)}, seed=7)
    assert torch.equal(alone.store.export("a")["values"], _two(seed=7).store.export("a")["values"])


def test_mini_batch_l2(kjt: Kjt) -> None:
    """Sum over the distinct ids of a batch of lambda / (2 n_j) * |e_j|^2, by hand."""
    counts = {"a": np.array([5, 0, 2, 1]), "b": np.array([3, 4])}
    features = [Feature("a", 2), Feature("b", 2), Feature("h", 2, table="a", pooling="none")]
    tables = EmbeddingTables(
        features,
        {name: Vocabulary(len(n), counts=n) for name, n in counts.items()},
        mini_batch_l2=0.6,
        optimizer=SGD(lr=1.0),
    )
    batch = kjt({"a": [[0], [0], [1]], "b": [[1], [], [1]], "h": [[2, 0], [], [2]]})
    tables.lookup(batch)
    rows = {name: tables.store.export(name)["values"].double().numpy().copy() for name in counts}
    seen = [("a", 0, 5), ("a", 1, 1), ("a", 2, 2), ("b", 1, 4)]  # an unseen id counts as seen once
    expected = sum(0.3 / n * (rows[name][i] ** 2).sum() for name, i, n in seen)
    assert float(tables.penalty().detach()) == pytest.approx(expected, rel=1e-5)
    tables.penalty().backward()
    tables.step()
    for name, i, n in seen:
        shrunk = tables.store.export(name)["values"][i].numpy()
        np.testing.assert_allclose(shrunk, rows[name][i] * (1 - 0.6 / n), rtol=1e-5)
    tables.eval()
    tables.lookup(kjt({"a": [[3]], "b": [[0]], "h": [[]]}))
    with pytest.raises(ValueError, match="mini_batch_l2: table 'a' has no training counts"):
        EmbeddingTables([Feature("a", 2)], {"a": Vocabulary(4)}, mini_batch_l2=0.1)


@pytest.mark.parametrize("optimizer", [None, SGD(lr=1.0), DenseAdam(lr=0.1)])
def test_clipping_by_global_norm(kjt: Kjt, optimizer) -> None:
    tables = _two(optimizer=optimizer, backend="reference")
    batch = kjt({"a": [[7], [7], [8]], "b": [[0], [1], [1]]})
    (tables.lookup(batch)[0].values() * torch.arange(8.0)).sum().backward()
    # Rows 7 (twice) and 8 of a have 0..3 as gradient, rows 0 and 1 (twice) of b have 4..7.
    first, second = sum(i**2 for i in range(4)), sum(i**2 for i in range(4, 8))
    norm = 5 * first + 5 * second
    assert float(tables.grad_square_sum()) == pytest.approx(norm)
    tables.scale_grads(torch.tensor(0.5))
    assert float(tables.grad_square_sum()) == pytest.approx(norm / 4)
    if isinstance(optimizer, SGD):
        before = tables.store.export("a")["values"][7].clone()
        tables.step()
        moved = before - tables.store.export("a")["values"][7]
        torch.testing.assert_close(moved, torch.arange(4.0), atol=1e-6, rtol=0)
    tables.zero_grad()
    assert float(tables.grad_square_sum()) == 0


def test_eval_and_zero_grad_leave_no_step(kjt: Kjt) -> None:
    tables = _two(optimizer=SGD(lr=1.0))
    before = tables.store.export("a")["values"].clone()
    batch = kjt({"a": [[7]], "b": [[0]]})
    tables.eval().lookup(batch)
    with torch.no_grad():
        tables.train().lookup(batch)
    tables.step()
    tables.lookup(batch)[0].values().sum().backward()
    tables.zero_grad()
    tables.step()
    assert torch.equal(before, tables.store.export("a")["values"])


def test_gradients_of_several_batches_add_up(kjt: Kjt) -> None:
    tables = _two(optimizer=SGD(lr=1.0))
    before = tables.store.export("a")["values"].clone()
    for _ in range(3):
        tables.lookup(kjt({"a": [[7]], "b": [[0]]}))[0].values().sum().backward()
    tables.step()
    moved = before - tables.store.export("a")["values"]
    torch.testing.assert_close(moved[7], torch.full((4,), 3.0))
    assert float(moved.abs().sum()) == pytest.approx(12)


def test_packed_file_errors(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other.safetensors: not a file of packed embtables"):
        PackedTables.load(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"other.safetensors: not a file of packed embtables"):
        PackedTables.load(path)
    tensors, metadata = _two().pack_tensors()
    with pytest.raises(ValueError, match="packed format 99 is newer"):
        PackedTables.from_tensors(tensors, metadata | {"format": 99})


def test_packed_tables_refuse_bad_ids(kjt: Kjt) -> None:
    packed = PackedTables.from_tensors(*_two(table="qr").pack_tensors())
    with pytest.raises(ValueError, match="feature 'b': id 3 is outside"):
        packed.lookup(kjt({"a": [[1]], "b": [[3]]}))


def test_packing_float64_tables_gives_float32(kjt: Kjt, tmp_path: Path) -> None:
    for method in ("full", "int8", "hash+mde(alpha=0.5)"):
        tables = _two(table=method, dtype=torch.float64)
        tensors, _ = tables.pack_tensors()
        assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32, torch.int8}
        assert tables.bytes().inference == tables.pack(tmp_path / "tables")


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [2, 0, 1, 3]])
def test_weighted_pooling_is_that_of_torchrec(lengths: list[int]) -> None:
    tables = _two()
    bags = torch.tensor(lengths)
    ids = torch.arange(int(bags.sum())) % 3
    weights = torch.linspace(-1, 2, len(ids))
    kjt = KeyedJaggedTensor(["a", "b"], ids, weights, lengths=bags)
    rows = {name: tables.store.export(name)["values"] for name in "ab"}
    found = tables(kjt).to_dict()
    first = int(bags[:2].sum())
    for name, cut in (("a", slice(0, first)), ("b", slice(first, None))):
        mine = bags[:2] if name == "a" else bags[2:]
        vectors = rows[name][ids[cut]] * weights[cut, None]
        expected = torch.stack([part.sum(0) for part in vectors.split(mine.tolist())])
        torch.testing.assert_close(found[name], expected)
