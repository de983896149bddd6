"""Splits by frequency against plain numpy: maps, rows, bytes, what training touches, the packed form.

Shape letters: n ids of a table, k kept ones, m rows, K rows read for an id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embtables import (
    SGD,
    Adagrad,
    Adam,
    DenseAdam,
    EmbeddingTables,
    Feature,
    PackedTables,
    RowWiseAdagrad,
    Vocabulary,
)
from embtables.compressor import Bags, Combine, RowTable, Segments, Table, parse_table, sharings
from embtables.hashing import hash_rows, salt
from embtables.precision.fp32 import Float32
from embtables.rows.store import Init, Read, RowStore, StoreSpec, backends
from embtables.sharing._kept import Kept, most_frequent
from embtables.torchrec_types import KeyedJaggedTensor

KINDS = ("frequency", "double_frequency", "frequency_cut")
FEW = np.array([2, 9, 9, 0, 5, 9, 5, 5, 1, 5])
"""Counts with ties; those kept first come first: 1 2 5 4 6 7 9 0 8 3."""


def _ranking(counts: np.ndarray, ordered: bool = False) -> list[int]:
    """Return all ids, those that are kept first in front."""
    ids = range(len(counts))
    return list(ids) if ordered else sorted(ids, key=lambda x: (-counts[x], x))


def _places(table: Table, kept: int) -> list[int]:
    """Return the place of every id among the kept ones, or -1."""
    assert table.counts is not None
    chosen = set(_ranking(table.counts, table.ordered)[:kept])
    before = np.cumsum([x in chosen for x in range(table.rows)])
    return [int(before[x]) - 1 if x in chosen else -1 for x in range(table.rows)]


def _table(counts: Any, name: str = "t", ordered: bool = False) -> Table:
    counts = np.asarray(counts)
    return Table(name, len(counts), 4, width=4, ordered=ordered, counts=counts)


def _sharing(text: str, tables: Sequence[Table], rows: Sequence[int]) -> Any:
    """Return the sharing of a group of tables with m rows each."""
    config = parse_table(text).sharing
    probes = 2 if config.kind == "double_frequency" else 1
    places = [[RowTable(t.name, m, 4)] * probes for t, m in zip(tables, rows, strict=True)]
    return sharings.get(config.kind)(config, tables, places)


# -- which ids, and where ----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", range(1, 12))
def test_ties_go_to_the_smaller_id(kept: int) -> None:
    assert _ranking(FEW) == [1, 2, 5, 4, 6, 7, 9, 0, 8, 3]
    assert set(np.flatnonzero(most_frequent(FEW, kept))) == set(_ranking(FEW)[:kept])


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[Table], list[int], int]:
    """Return tables of a group, some twice, how many ids of each are kept, and ids a segment."""
    tables, kept = [], []
    for number in range(draw(st.integers(1, 3))):
        n = draw(st.sampled_from([2, 3, 63, 64, 65, 511, 512, 513, 1025]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        counts, ordered = rng.integers(0, draw(st.integers(1, 9)), n), draw(st.booleans())
        counts = np.sort(counts)[::-1] if ordered else counts
        tables += [_table(counts, f"t{number}", ordered)] * draw(st.integers(1, 2))
        kept += [draw(st.integers(1, n))] * (len(tables) - len(kept))
    return tables, kept, draw(st.integers(0, 40))


@settings(max_examples=60)
@pytest.mark.parametrize("threads", [1, 2])
@given(group=groups(), seed=st.integers(0, 99), single=st.booleans(), wide=st.booleans())
def test_places(
    group: tuple[list[Table], list[int], int], seed: int, single: bool, wide: bool, threads: int
) -> None:
    tables, kept, each = group
    rng = np.random.default_rng(seed)
    lengths = [each if single else int(rng.integers(0, each + 1)) for _ in tables]
    segments = Segments(lengths, single=single)
    ids = [rng.integers(0, t.rows, c) for t, c in zip(tables, lengths, strict=True)]
    flat = torch.from_numpy(np.concatenate(ids)).to(torch.int64 if wide else torch.int32)
    first = list(range(7, 7 + len(tables)))
    given_rows = torch.from_numpy(rng.integers(0, 99, (2, len(flat))))
    expected = [
        (start + place, -1) if (place := _places(table, k)[x]) >= 0 else None
        for table, k, start, mine in zip(tables, kept, first, ids, strict=True)
        for x in mine
    ]
    wanted = [
        list(pair) if pair else rest
        for pair, rest in zip(expected, given_rows.T.tolist(), strict=True)
    ]
    module = Kept(tables, kept, first)
    torch.set_num_threads(threads)
    found = module(given_rows.clone(), flat, segments)
    torch.set_num_threads(1)
    assert found.T.tolist() == wanted
    assert torch.equal(module.put(given_rows, flat, segments), found)


def test_bytes_of_a_map() -> None:
    """1 + 1/16 bits an id, none of a prefix, one map for the features of a table."""
    counts = np.random.default_rng(0).integers(0, 50, 1_000_000)
    large, prefix = _table(counts), _table(-np.sort(-counts), "p", ordered=True)
    assert Kept.bytes(large) == 8 * 15625 + 4 * 1954
    assert 8 * Kept.bytes(large) / len(counts) == pytest.approx(1.0625, rel=1e-3)
    assert Kept.bytes(prefix) == 0
    small = _table(FEW, "s")
    kept = Kept([large, prefix, small, large], [10, 10, 3, 10], [0] * 4)
    held = sum(tensor.nbytes for tensor in kept.state_dict().values())
    assert held == Kept.bytes(large) + Kept.bytes(small) == 132_816 + 12


# -- rows and sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ordered", [False, True])
def test_private_and_hashed_rows(private: float, ordered: bool) -> None:
    counts = np.random.default_rng(3).integers(0, 40, 200)
    table = _table(np.sort(counts)[::-1] if ordered else counts, ordered=ordered)
    rows = 30
    k = {0.1: 3, 0.5: 15, 0.9: 27}[private]
    ids = torch.arange(table.rows)
    places = torch.tensor(_places(table, k))
    hashed = [
        hash_rows(ids, torch.tensor(salt("t", probe)), torch.tensor(rows - k)) for probe in (0, 1)
    ]
    first = torch.where(places < 0, hashed[0], rows - k + places)
    second = torch.where(places < 0, hashed[1], -1)
    single = _sharing(f"frequency(private={private})", [table], [rows])
    double = _sharing(f"double_frequency(private={private})", [table], [rows])
    assert single.encode(ids, Segments([200])).tolist() == [first.tolist()]
    assert torch.equal(double.encode(ids, Segments([200])), torch.stack((first, second)))
    assert sorted(first[places >= 0].tolist()) == list(range(rows - k, rows))
    assert int(first[places < 0].max()) < rows - k
    assert (single.skips, double.skips, double.combine) == (False, True, "sum")


@pytest.mark.parametrize(("rest", "rare"), [("row", 0), ("zero", -1)])
def test_rows_of_a_cut(rest: str, rare: int) -> None:
    table = _table(FEW)
    sharing = _sharing(f"frequency_cut(rest={rest})", [table], [4 + rare + 1])
    found = sharing.encode(torch.arange(10), Segments([10]))
    own = [place + rare + 1 if place >= 0 else rare for place in _places(table, 4)]
    assert (
        found.tolist()
        == [own]
        == [[p + rare + 1 if p >= 0 else rare for p in (-1, 0, 1, -1, 2, 3, -1, -1, -1, -1)]]
    )
    assert sharing.skips == (rest == "zero")


def test_sizes_of_a_split() -> None:
    """max(2, ceil(share * n)) rows; a table that would keep them all is left out."""
    for kind, probes in (("frequency", 1), ("double_frequency", 2)):
        config = parse_table(kind).sharing
        tables = [_table(np.arange(n), f"n{n}") for n in (1, 2, 3, 100)]
        for share in np.linspace(0, 1, 41):
            found = sharings.get(kind).allocate(config, tables, float(share))
            sizes = {t.name: max(2, math.ceil(share * t.rows)) for t in tables}
            assert {name: place[0].rows for name, place in found.items()} == {
                t.name: sizes[t.name] for t in tables if sizes[t.name] < t.rows
            }
            assert all(len(set(place)) == 1 and len(place) == probes for place in found.values())
    config = parse_table("double_frequency").sharing
    (pair,) = sharings.get("double_frequency").allocate(config, [_table(FEW)], 0.5).values()
    assert pair == (RowTable("t", 5, 4, scale=0.5**0.5),) * 2


@settings(max_examples=40)
@given(
    columns=st.lists(
        st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    rest=st.sampled_from(["row", "zero"]),
)
def test_one_threshold_for_all_tables(columns: list[tuple[list[int], bool]], rest: str) -> None:
    """The first ceil(share * N) of all ids by count, table and id; each table keeps its first."""
    tables = []
    for number, (counts, ordered) in enumerate(columns):
        if ordered:  # the unknown row in front has any count
            counts = [counts[0], *sorted(counts[1:], reverse=True)]
        tables.append(_table(counts, f"t{number}", ordered))
    config = parse_table(f"frequency_cut(rest={rest})").sharing
    everything = []
    for number, table in enumerate(tables):
        counts = cast(np.ndarray, table.counts)
        for position, x in enumerate(_ranking(counts, table.ordered)):
            everything.append((-math.inf if position == 0 else -counts[x], number, x))
    everything.sort()
    rare, total, last = int(rest == "row"), len(everything), 0
    for step in range(total + 1):
        kept = [0] * len(tables)
        share = step / total
        for _, number, _ in everything[: max(math.ceil(share * total), len(tables))]:
            kept[number] += 1
        found = sharings.get("frequency_cut").allocate(config, tables, share)
        assert {name: place[0].rows for name, place in found.items()} == {
            t.name: k + rare for t, k in zip(tables, kept, strict=True) if k + rare < t.rows
        }
        rows = sum(found[t.name][0].rows if t.name in found else t.rows for t in tables)
        assert rows >= last
        last = rows
        if step == total:
            assert not found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused(kind: str) -> None:
    allocate, config = sharings.get(kind).allocate, parse_table(kind).sharing
    with pytest.raises(ValueError, match=rf"table 'a': {kind} .* Vocabulary\(counts=.* hash"):
        allocate(config, [Table("a", 9, 4, width=4)], 0.5)
    with pytest.raises(ValueError, match=f"table 'b': {kind} .* closed vocabulary; with an open"):
        allocate(config, [_table(FEW), Table("b", 9, 4, open=True, width=4)], 0.5)
    with pytest.raises(ValueError, match="table 'c': 10 training counts for 11 ids"):
        allocate(config, [Table("c", 11, 4, width=4, counts=FEW)], 0.5)


# -- training ----------------------------------------------------------------------------------------

COUNTS = {
    "item": np.random.default_rng(1).integers(0, 30, 150),
    "tag": -np.sort(-np.random.default_rng(2).integers(0, 30, 80)),
}
FEATURES = [
    Feature("item", 4),
    Feature("tag", 4, pooling="mean"),
    Feature("history", 4, table="item", pooling="none"),
]
OPTIMIZERS = [
    pytest.param(SGD(lr=0.1), id="sgd"),
    pytest.param(Adagrad(lr=0.1), id="adagrad"),
    pytest.param(RowWiseAdagrad(lr=0.1), id="rowwise_adagrad"),
    pytest.param(Adam(lr=0.1), id="adam"),
    pytest.param(DenseAdam(lr=0.1, l2=0.01), id="dense_adam"),
]
BACKENDS = ("native", "reference", "torchrec")


def _tables(text: str, backend: str, optimizer: Any, **options: Any) -> EmbeddingTables:
    vocabularies = {name: Vocabulary(len(c), counts=c) for name, c in COUNTS.items()}
    size = {} if text == "full" else {"ratio": 0.4}
    return EmbeddingTables(
        FEATURES, vocabularies, table=text, optimizer=optimizer, backend=backend, **size, **options
    )


def _split(tables: EmbeddingTables) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return table -> its kept ids, their rows, and its other ids."""
    found = {}
    for name, one in tables.plan.items():
        place, config = one.places[0].rows, one.config.sharing
        k = place // 2 if config.kind != "frequency_cut" else place - (config.rest == "row")
        places = np.array(_places(one.table, k))
        kept = np.flatnonzero(places >= 0)
        found[name] = kept, places[kept] + place - k, np.flatnonzero(places < 0)
    return found


def _batch(ids: dict[str, np.ndarray], seed: int) -> KeyedJaggedTensor:
    """Return 12 rows of ids drawn from those given: one item, some tags, some of the history."""
    rng = np.random.default_rng(seed)
    lengths = [np.ones(12, int), rng.integers(0, 4, 12), rng.integers(0, 4, 12)]
    values = [
        rng.choice(ids[table], count.sum())
        for table, count in zip(("item", "tag", "item"), lengths, strict=True)
    ]
    return KeyedJaggedTensor(
        keys=["item", "tag", "history"],
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(np.concatenate(lengths)),
    )


def _outputs(tables: EmbeddingTables | PackedTables, batch: KeyedJaggedTensor) -> Tensor:
    pooled, sequences = tables.lookup(batch)
    return torch.cat([pooled.values().flatten(), sequences["history"].values().flatten()])


def _train(tables: EmbeddingTables, batch: KeyedJaggedTensor, seed: int) -> Tensor:
    found = _outputs(tables, batch)
    (
        found * torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    ).sum().backward()
    tables.step()
    tables.zero_grad()
    return found.detach()


def _rows(tables: EmbeddingTables, name: str) -> Tensor:
    return tables.store.export(name)["values"].clone()


def _refused(backend: str, optimizer: Any) -> bool:
    return backend == "torchrec" and optimizer.kind in ("adam", "dense_adam")


METHODS = [*KINDS, "frequency_cut(rest=zero)"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("text", METHODS)
def test_private_rows_are_a_full_table(text: str, optimizer: Any, backend: str) -> None:
    """Read once and unscaled, they give and become what rows of a full table do.

    Bit for bit; FBGEMM may add up the gradients of a row in another order.
    """
    rtol, atol = (1e-5, 1e-7) if backend == "torchrec" else (0, 0)
    if _refused(backend, optimizer):
        pytest.skip("torchrec has no such optimizer")
    tables, full = _tables(text, backend, optimizer), _tables("full", backend, optimizer)
    split = _split(tables)
    for name, (kept, rows, _) in split.items():
        copied = _rows(full, name)
        copied[kept] = _rows(tables, name)[rows]
        full.store.load(name, copied)
    for seed in range(4):
        batch = _batch({name: kept for name, (kept, _, _) in split.items()}, seed)
        found, expected = _train(tables, batch, seed), _train(full, batch, seed)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    for name, (kept, rows, _) in split.items():
        found, expected = _rows(tables, name)[rows], _rows(full, name)[kept]
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS[:-1])
@pytest.mark.parametrize("text", METHODS)
def test_private_rows_are_touched_by_their_ids_alone(
    text: str, optimizer: Any, backend: str
) -> None:
    if _refused(backend, optimizer):
        pytest.skip("torchrec has no such optimizer")
    tables = _tables(text, backend, optimizer)
    split = _split(tables)
    for part in (2, 0):  # the other ids, then the kept ones
        before = {name: _rows(tables, name) for name in split}
        for seed in range(3):
            _train(tables, _batch({name: one[part] for name, one in split.items()}, seed), seed)
        for name, (_, rows, _) in split.items():
            moved = (_rows(tables, name) != before[name]).any(1)
            private = torch.zeros(len(moved), dtype=torch.bool)
            private[rows] = True
            mine, others = moved[private], moved[~private]
            if part == 2:
                assert not mine.any()
                assert others.any() == ("zero" not in text)
            else:
                assert mine.any()
                assert not others.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", METHODS)
def test_rows_of_rare_ids(text: str, backend: str) -> None:
    """What they read, from the rows of the store and the formula."""
    tables = _tables(text, backend, SGD(lr=0.1))
    kept, _, rare = _split(tables)["item"]
    values, place = _rows(tables, "item"), tables.plan["item"].places[0]
    shared = torch.tensor(place.rows - len(kept))
    ids = torch.from_numpy(rare)
    if text.startswith("frequency_cut"):
        expected = values[:1].expand(len(ids), -1) if shared else torch.zeros(len(ids), 4)
    else:
        probes = len(tables.plan["item"].places)
        rows = [hash_rows(ids, torch.tensor(salt("item", p)), shared) for p in range(probes)]
        expected = sum(values[row] for row in rows[1:]) + values[rows[0]]
    lengths = torch.cat([torch.ones(len(ids)), torch.zeros(2 * len(ids))]).long()
    batch = KeyedJaggedTensor(keys=["item", "tag", "history"], values=ids, lengths=lengths)
    found = tables.lookup(batch)[0].to_dict()["item"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("text", METHODS)
def test_packed_reads_the_same_for_every_id(text: str, precision: str) -> None:
    tables = _tables(f"{text}+{precision}", "native", Adagrad(lr=0.1))
    every = {name: np.arange(len(counts)) for name, counts in COUNTS.items()}
    for seed in range(3):
        _train(tables, _batch(every, seed), seed)
    packed = PackedTables.from_tensors(*tables.pack_tensors())
    assert packed.file_bytes == tables.bytes().inference
    for one in tables.plan.values():
        rows = one.precision.decode(one.precision.encode(_rows(tables, one.table.name)))
        tables.store.load(one.table.name, rows)
    ids = torch.cat([torch.from_numpy(every[name]) for name in ("item", "tag", "item")])
    lengths = torch.zeros(3, 150, dtype=torch.long)
    lengths[0], lengths[1, :80], lengths[2] = 1, 1, 1
    batch = KeyedJaggedTensor(["item", "tag", "history"], ids, lengths=lengths.flatten())
    assert torch.equal(_outputs(packed, batch), _outputs(tables, batch))


def test_without_a_row_optimizer_zeros_take_no_gradient() -> None:
    tables = _tables("frequency_cut(rest=zero)", "reference", None)
    _, _, rare = _split(tables)["item"]
    batch = _batch({"item": rare, "tag": _split(tables)["tag"][2]}, 0)
    found = _outputs(tables, batch)
    assert not found.any()
    found.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in tables.parameters())


# -- row stores: -1 reads nothing --------------------------------------------------------------------


def _store(backend: str, combine: Combine) -> RowStore:
    table = RowTable("t", 40, 4)
    spec = StoreSpec(
        (table,), {"t": Float32(Float32.Config())}, (Read((("t", "t"), ("t", "t")), combine, True),),
        SGD(lr=0.5), Init(scale=1.0), 0, torch.float32, torch.device("cpu"),
    )  # fmt: skip
    return backends.get(backend)(spec)


@pytest.mark.parametrize("bagged", [False, True])
@pytest.mark.parametrize("combine", ["sum", "mult", "concat"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stores_read_zeros_where_there_is_no_row(
    backend: str, combine: Combine, bagged: bool
) -> None:
    """Against autograd on a dense table with a row of zeros that is not updated."""
    store = _store(backend, combine)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, 40, (2, 30), generator=generator)
    rows[:, 4], rows[0, 5], rows[1, 6] = -1, -1, -1
    segments, bags = Segments([15, 15], single=True), None
    lengths = torch.tensor([0, 2, 1, 5, 0, 7, 15])
    if bagged:
        bags = Bags(
            torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
            lengths.clamp(min=1).float(),
            torch.rand(30, generator=generator),
            Segments([3, 4]),
        )
    dense = torch.cat([store.export("t")["values"], torch.zeros(1, 4)]).requires_grad_()
    first, second = dense[rows[0]], dense[rows[1]]
    if combine == "sum":
        expected = first + second
    else:
        expected = first * second if combine == "mult" else torch.cat((first, second), 1)
    if bags is not None:
        assert bags.weights is not None
        weighted = (expected * bags.weights[:, None]).split(lengths.tolist())
        expected = torch.stack([part.sum(0) for part in weighted]) / lengths.clamp(min=1)[:, None]
    (found,) = store.lookup([rows], [segments], [bags])
    found = found.flatten(0, -2)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=generator)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    store.step()
    assert dense.grad is not None
    new = dense.detach() - 0.5 * dense.grad
    torch.testing.assert_close(store.export("t")["values"], new[:40])
