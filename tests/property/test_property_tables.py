"""Properties that hold for any features, vocabularies, methods, budgets and batches."""

from __future__ import annotations

import contextlib
import re
import string
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from embtables import (
    EmbeddingTables,
    Feature,
    PackedTables,
    TableConfig,
    Vocabulary,
    parse_bytes,
    parse_table,
)
from embtables.budget import plan, plan_bytes, uncompressed_bytes
from embtables.compressor import Segments, Table
from embtables.groups import POOLINGS, Group
from embtables.tables import logical_tables
from embtables.torchrec_types import KeyedJaggedTensor

SHARINGS = st.one_of(
    st.just("full"),
    st.builds("{}{}".format, st.sampled_from(["hash"]), st.sampled_from(["", "(exact_rows=3)"])),
    st.builds("double_hash(combine={})".format, st.sampled_from(["sum", "concat"])),
    st.builds("qr(combine={})".format, st.sampled_from(["mult", "sum", "concat"])),
    st.builds("qr(collisions={})".format, st.integers(2, 9)),
    st.builds("multiplex(lookups={}, subtables={})".format, st.integers(1, 4), st.integers(1, 3)),
)
COUNTED = st.one_of(
    st.builds(
        "{}(private={})".format,
        st.sampled_from(["frequency", "double_frequency"]),
        st.sampled_from([0.1, 0.5, 0.9]),
    ),
    st.builds("frequency_cut(rest={})".format, st.sampled_from(["row", "zero"])),
)
WIDTHS = st.one_of(
    st.just("uniform"),
    st.builds("mde(power_of_two={})".format, st.sampled_from(["true", "false"])),
    st.builds("mde(alpha={})".format, st.sampled_from([0.0, 0.2, 0.5, 1.0])),
    st.builds("lowrank(shared={})".format, st.sampled_from(["true", "false"])),
)
PRECISIONS = st.sampled_from(["fp32", "fp16", "int8"])
METHODS = st.builds("{}+{}+{}".format, st.one_of(SHARINGS, COUNTED), WIDTHS, PRECISIONS)
UNCOUNTED = st.builds("{}+{}+{}".format, SHARINGS, WIDTHS, PRECISIONS)
DIMS = st.integers(1, 9)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Feature], dict[str, Vocabulary], dict]:
    """Return features, vocabularies and a batch as key -> bags."""
    tables = draw(st.integers(1, 4))
    batch = draw(st.integers(0, 4))
    features, vocabularies, bags = [], {}, {}
    for number in range(tables):
        table, dim = f"t{number}", draw(DIMS)
        rows = draw(st.integers(1, 400))
        counts = np.random.default_rng(rows).zipf(1.5, rows).clip(max=1000)
        falling = draw(st.booleans())
        counts = np.sort(counts)[::-1].copy() if falling else counts
        vocabularies[table] = Vocabulary(rows, counts=counts)
        for reader in range(draw(st.integers(1, 2))):
            name = f"{table}_{reader}"
            pooling: Any = draw(st.sampled_from(POOLINGS))
            features.append(Feature(name, dim, table=table, pooling=pooling))
            bag = st.lists(st.integers(0, rows - 1), max_size=3)
            bags[name] = draw(st.lists(bag, min_size=batch, max_size=batch))
    return features, vocabularies, bags


def _kjt(bags: dict) -> KeyedJaggedTensor:
    ids = [i for rows in bags.values() for bag in rows for i in bag]
    lengths = [len(bag) for rows in bags.values() for bag in rows]
    return KeyedJaggedTensor(
        keys=list(bags),
        values=torch.tensor(ids, dtype=torch.long),
        lengths=torch.tensor(lengths, dtype=torch.long),
    )


def _smallest(tables: list[Table], method: str) -> int:
    """Return the size that the refusal of a budget of one byte names."""
    with pytest.raises(ValueError, match="smallest reachable size is") as refused:
        plan(tables, parse_table(method), {}, budget=1)
    found = re.search(r"smallest reachable size is ([\d,]+) bytes", str(refused.value))
    assert found
    return int(found[1].replace(",", ""))


TINY = [Feature("a", 2)], {"a": Vocabulary(3, counts=np.array([1, 25, 1]))}, {"a": []}


@settings(max_examples=150)
@example(world=TINY, method="full+lowrank(shared=true)+fp16", ratio=0.4)
@given(world=worlds(), method=METHODS, ratio=st.floats(0.01, 1.2))
def test_within_budget_finite_and_equal_to_the_loop(world, method: str, ratio: float) -> None:
    features, vocabularies, bags = world
    logical = logical_tables(features, vocabularies)
    smallest = _smallest(logical, method)
    budget = int(ratio * uncompressed_bytes(logical))
    if budget < smallest:
        with pytest.raises(ValueError, match="smallest reachable size"):
            EmbeddingTables(features, vocabularies, table=method, ratio=ratio)
        budget = smallest
    tables = EmbeddingTables(features, vocabularies, table=method, budget=budget)
    assert smallest <= tables.bytes().inference <= budget
    pooled, sequences = tables.lookup(_kjt(bags))
    assert torch.isfinite(pooled.values()).all()
    tensors, metadata = tables.pack_tensors()
    assert sum(tensor.nbytes for tensor in tensors.values()) == tables.bytes().inference
    packed = PackedTables.from_tensors(tensors, metadata)
    assert packed.lookup(_kjt(bags))[0].values().shape == pooled.values().shape

    for feature in features:
        found = (
            sequences[feature.name].values() if feature.pooling == "none" else pooled[feature.name]
        )
        expected = []
        for bag in bags[feature.name]:
            vectors = [_vector(tables, features, feature, i) for i in bag]
            stacked = torch.stack(vectors) if vectors else torch.zeros(0, found.shape[1])
            if feature.pooling == "none":
                expected += vectors
            else:
                total = stacked.sum(dim=0)
                expected.append(total / max(1, len(bag)) if feature.pooling == "mean" else total)
        whole = torch.stack(expected) if expected else torch.zeros(0, found.shape[1])
        torch.testing.assert_close(found, whole)


def _vector(tables: EmbeddingTables, features: list, wanted: Feature, id_: int) -> torch.Tensor:
    """Return the vector of one id of one feature, from a batch that holds nothing else."""
    bags = {f.name: [[id_] if f is wanted else []] for f in features}
    pooled, sequences = tables.lookup(_kjt(bags))
    if wanted.pooling == "none":
        return sequences[wanted.name].values()[0]
    return pooled[wanted.name][0]


@settings(max_examples=100)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 10**7), DIMS), min_size=1, max_size=6),
    method=UNCOUNTED,
    ratios=st.tuples(st.floats(0.001, 1.5), st.floats(0.001, 1.5)),
)
def test_plans_keep_any_budget(sizes, method: str, ratios: tuple[float, float]) -> None:
    """Whatever the size, and the more bytes, the more of them are used (one method, no width)."""
    tables = [Table(f"t{i}", rows, dim) for i, (rows, dim) in enumerate(sizes)]
    whole = sum(4 * rows * dim for rows, dim in sizes)
    smallest = _smallest(tables, method)
    budgets = [max(smallest, int(ratio * whole)) for ratio in sorted(ratios)]
    found = [plan_bytes(plan(tables, parse_table(method), {}, budget)) for budget in budgets]
    assert all(size <= budget for size, budget in zip(found, budgets, strict=True))
    if "mde" not in method:
        assert found == sorted(found)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 10**6), DIMS), min_size=1, max_size=6),
    sharing=st.sampled_from(["full", "hash", "double_hash(combine=concat)", "qr", "multiplex"]),
    width=st.sampled_from(["uniform", "mde"]),
    ratio=st.floats(1, 3),
)
def test_a_ratio_of_one_is_the_plain_table(sizes, sharing: str, width: str, ratio: float) -> None:
    tables = [Table(f"t{i}", rows, dim) for i, (rows, dim) in enumerate(sizes)]
    decided = plan(tables, parse_table(f"{sharing}+{width}"), {}, ratio=ratio)
    for table in tables:
        (place,) = decided[table.name].places
        assert (place.rows, place.dim) == (table.rows, table.dim)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    constants=st.integers(1, 3),
)
def test_segments_spread_like_a_loop(lengths: list[int], constants: int) -> None:
    segments = Segments(lengths)
    values = torch.arange(constants * len(lengths)).view(constants, -1)
    ids = torch.arange(sum(lengths))
    spread = (segments.shape(ids) * 0 + segments.spread(values)).reshape(constants, len(ids))
    for row in range(constants):
        expected = [int(values[row, s]) for s, count in enumerate(lengths) for _ in range(count)]
        assert spread[row].tolist() == expected


@settings(max_examples=60)
@given(rows=st.integers(1, 5000), ids=st.lists(st.integers(0, 4999), min_size=1, max_size=20))
def test_every_id_has_its_own_quotient_and_remainder(rows: int, ids: list[int]) -> None:
    ids = [i % rows for i in ids]
    smallest = _smallest([Table("a", rows, 2)], "qr")
    tables = EmbeddingTables(
        [Feature("a", 2)],
        {"a": Vocabulary(rows)},
        table="qr",
        budget=smallest,
    )
    group = tables.groups[0]
    assert isinstance(group, Group)
    pairs = group.sharing.encode(torch.tensor(ids), Segments([len(ids)]))
    assert len({tuple(pair) for pair in pairs.T.tolist()}) == len(set(ids))
    for place, found in zip(tables.plan["a"].places, pairs, strict=True):
        assert int(found.max()) < place.rows


@given(method=METHODS)
def test_factory_strings_round_trip(method: str) -> None:
    config = parse_table(method)
    assert parse_table(str(config)) == config
    assert parse_table(config.model_dump()) == config
    assert str(parse_table(str(config))) == str(config)


@given(text=st.text(string.ascii_lowercase + "+(),=[]{}: _0123456789", max_size=30))
def test_any_text_is_a_table_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_table(text), TableConfig)


@given(size=st.integers(1, 10**15), unit=st.sampled_from(["", "B", "kB", "MB", "GiB", " mib"]))
def test_parse_bytes_of_whole_numbers(size: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "kB": 1000, "MB": 10**6, "GiB": 2**30, " mib": 2**20}[unit]
    assume(size * factor < 2**53)
    assert parse_bytes(f"{size}{unit}") == size * factor


@given(text=st.text(max_size=12))
def test_any_text_is_bytes_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_bytes(text) >= 1
