"""Pruned rows: every row comes back, bytes are what was promised, the form is the expected one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embtables import EmbeddingTables, Feature, PackedTables, Vocabulary
from embtables.compressor import Bags, Parts, Precision, RowTable, Segments, precisions, widths
from embtables.registry import Config
from embtables.rows import pruned
from embtables.rows.arena import Arena, ArenaReader, combined
from embtables.rows.gather import Gather, PrunedGather
from embtables.rows.pruned import Form, PrunedArena, pack_rows, prunable, pruned_bytes
from embtables.rows.store import Read
from embtables.torchrec_types import KeyedJaggedTensor
from embtables.width.uniform import Uniform

Kjt = Callable[..., KeyedJaggedTensor]
KINDS = ["fp32", "fp16", "int8"]
EDGES = 56
"""Most bytes by which the packed form of a table is larger than the plain one: its layout."""


def _precision(kind: str) -> Precision:
    cls = precisions.get(kind)
    return cls(cls.Config())


def _rows(pattern: str, count: int, dim: int, seed: int) -> Tensor:
    """Return rows [R, d] with planted zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    if pattern == "all zero":
        rows[:] = 0
    elif pattern == "elements":
        rows *= rng.random(rows.shape) < rng.choice([0.05, 0.3, 0.8])
    elif pattern == "prefix":
        rows[:, rng.integers(dim + 1) :] = 0
    elif pattern == "rows":
        rows *= rng.random((count, 1)) < 0.5
    elif pattern == "blocks":
        for cut in sorted(rng.integers(0, count + 1, 5)):
            rows[cut:] *= rng.random(dim) < 0.7
    elif pattern == "blocks of some rows":
        rows[:, dim // 2 :] *= (np.arange(count) < count // 3)[:, None]
        rows *= rng.random((count, 1)) < 0.5
    elif pattern == "blocks with a few small":  # int8 rounds these to 0: the blocks have holes
        for cut in sorted(rng.integers(0, count + 1, 5)):
            rows[cut:] *= rng.random(dim) < 0.7
        rows *= np.where(rng.random(rows.shape) < 0.005, 1e-6, 1).astype(np.float32)
    elif pattern == "small":  # int8 rounds most to 0, float16 some
        rows *= np.exp(-20 * rng.random(rows.shape)).astype(np.float32)
    return torch.from_numpy(rows)


PATTERNS = [
    "none zero",
    "all zero",
    "elements",
    "prefix",
    "rows",
    "blocks",
    "blocks of some rows",
    "blocks with a few small",
    "small",
]


def _pack(tables: Sequence[Tensor], kind: str) -> tuple[PrunedArena, list[Form], Parts]:
    precision = _precision(kind)
    parts, forms = pack_rows(((table, precision.encode(table)) for table in tables), precision)
    return PrunedArena(_row_tables(tables), precision, parts), forms, parts


def _row_tables(tables: Sequence[Tensor]) -> list[RowTable]:
    return [RowTable(f"t{i}", *table.shape) for i, table in enumerate(tables)]


def _read(
    arena: Arena | PrunedArena,
    tables: Sequence[int],
    rows: Tensor,
    segments: Segments,
    bags: Bags | None = None,
    skips: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return what kernels and tensor code read of rows [1, n] of tables [S]."""
    names = tuple(f"t{i}" for i in tables)
    reader = ArenaReader(Read((names,), "concat", skips), arena)
    gather = Gather(reader, arena) if isinstance(arena, Arena) else PrunedGather(reader, arena)
    found = gather(rows, segments, bags).result().clone()
    vectors = arena.gather(reader(rows, segments), skips)
    return found, combined(vectors, "concat", segments, bags)


def _read_all(arena: PrunedArena, tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    every = torch.cat([torch.arange(len(table)) for table in tables])
    lengths = [len(table) for table in tables]
    return _read(arena, range(len(tables)), every.unsqueeze(0), Segments(lengths))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PATTERNS),
            st.sampled_from([0, 1, 7, 8, 9, 64, 511, 512, 513, 2000]) | st.integers(0, 2000),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([1, 2, 7, 8, 9, 16, 63, 64, 65, 70]) | st.integers(1, 70),
    st.sampled_from(KINDS),
    st.integers(0, 2**16),
)
def test_every_row_comes_back_in_the_bytes_that_were_promised(
    planted: list[tuple[str, int]], dim: int, kind: str, seed: int
) -> None:
    precision = _precision(kind)
    tables = [_rows(name, count, dim, seed + i) for i, (name, count) in enumerate(planted)]
    arena, forms, parts = _pack(tables, kind)
    expected = precision.decode(precision.encode(torch.cat(tables)))
    by_kernels, by_torch = _read_all(arena, tables)
    assert torch.equal(by_kernels, expected)
    assert torch.equal(by_torch, expected)
    promised = [pruned_bytes(table, precision) for table in tables]
    assert [form.bytes for form in forms] == promised
    assert sum(part.nbytes for part in parts.values()) == sum(promised)
    for table, size in zip(tables, promised, strict=True):
        assert size <= len(table) * precision.row_bytes(dim) + EDGES
        # What a search counts on, which prunes before numbers are rounded.
        assert size <= pruned_bytes((table != 0).float(), precision)


@pytest.mark.parametrize("seed", range(8))
def test_zeros_that_rounding_makes_take_no_more_bytes(seed: int) -> None:
    precision = _precision("int8")
    rows = _rows("blocks with a few small", 1500, 16, seed)
    assert pruned_bytes(rows, precision) <= pruned_bytes((rows != 0).float(), precision)


def _random_elements(share: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return _rows("none zero", 1000, 16, 1) * (torch.rand(1000, 16, generator=generator) < share)


def _half_of_the_rows() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return _rows("none zero", 1000, 16, 1) * (torch.rand(1000, 1, generator=generator) < 0.5)


def _falling_widths() -> Tensor:
    widths = torch.tensor([16, 8, 4, 2, 0]).repeat_interleave(200)
    return _rows("none zero", 1000, 16, 1) * (torch.arange(16) < widths.unsqueeze(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_form_and_its_bytes(kind: str) -> None:
    number = _precision(kind).row_bytes(16) // 16
    scale = 4 if kind == "int8" else 0
    dense = _rows("none zero", 1000, 16, 1)

    prefix = dense * (torch.arange(16) < 8)
    _, (form,), parts = _pack([prefix], kind)
    assert not form.sparse
    assert not form.directory
    assert form.bytes == 1000 * (8 * number + scale) + 56
    assert len(parts["columns"]) == 0

    some = dense * torch.tensor([0, 1, 0, 1] * 4)
    _, (form,), parts = _pack([some], kind)
    assert parts["columns"].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert form.bytes == 1000 * (8 * number + scale) + 56 + 8

    _, (form,), parts = _pack([_falling_widths()], kind)
    assert not form.directory
    assert parts["runs"][:, 0].tolist() == [0, 200, 400, 600, 800]
    assert parts["runs"][:, 4].tolist() == [16, 8, 4, 2, 0]
    assert form.bytes == 200 * 30 * number + 800 * scale + 5 * 40 + 56

    half = _half_of_the_rows()
    _, (form,), parts = _pack([half], kind)
    kept = int(half.any(1).sum())
    assert form.directory
    assert form.begin is not None
    assert form.begin.tolist() == [0]
    assert form.bytes == kept * (16 * number + scale) + 8 * 16 + 4 * 2 + 56

    planted = _random_elements(0.2)
    _, (form,), parts = _pack([planted], kind)
    stored = _precision(kind).encode(planted)["values"].count_nonzero().item()
    assert form.sparse
    rows = int(planted.any(1).sum()) if form.directory else 1000
    directory = 8 * 16 + 4 * 2 if form.directory else 0
    assert form.bytes == (stored * number + rows * (2 + scale) + 4 * -(-rows // 8) + directory + 56)

    _, (form,), _ = _pack([dense], kind)
    assert form.dense
    assert form.zeros < 0.01
    assert form.bytes == 1000 * (16 * number + scale) + 56

    _, (form,), parts = _pack([torch.zeros(1000, 16)], kind)
    assert form.bytes == 56
    assert len(parts["values"]) == 0


def test_more_runs_than_are_allowed_are_no_blocks() -> None:
    """Rows that take turns: 257 runs or 256 of the same shape."""
    rows = torch.ones(257 * 8, 40)
    rows[(torch.arange(len(rows)) // 8 % 2) == 1, 1:] = 0
    arena, (form,), _ = _pack([rows], "fp32")
    assert form.sparse
    assert all(torch.equal(found, rows) for found in _read_all(arena, [rows]))
    _, (form,), _ = _pack([rows[:-8]], "fp32")
    assert form.begin is not None
    assert len(form.begin) == 256


@pytest.mark.parametrize("dim", [256, 257, 300])
def test_wide_rows_name_their_columns_in_two_bytes(dim: int) -> None:
    rows = torch.ones(100, dim)
    rows[:, ::3] = 0
    arena, (form,), parts = _pack([rows], "fp32")
    assert parts["columns"].dtype == (torch.uint8 if dim == 256 else torch.uint16)
    assert parts["columns"].tolist() == [j for j in range(dim) if j % 3]
    assert form.bytes == pruned_bytes(rows, _precision("fp32"))
    assert all(torch.equal(found, rows) for found in _read_all(arena, [rows]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "most", "entry"), [(64, 3, 1), (200, 9, 1), (300, 9, 2)])
def test_few_numbers_of_wide_rows_name_their_columns(
    kind: str, dim: int, most: int, entry: int
) -> None:
    rng = np.random.default_rng(dim)
    order = torch.from_numpy(rng.random((1001, dim)).argsort(axis=1))
    rows = _rows("none zero", 1001, dim, 1).sign()  # no rounding makes a zero of them
    rows *= order < torch.from_numpy(rng.integers(1, most + 1, (1001, 1)))
    arena, (form,), parts = _pack([rows], kind)
    numbers, number = int(rows.count_nonzero()), _precision(kind).row_bytes(dim) // dim
    assert arena.layout[:, 0].tolist() == [-2]
    scale = 4 if kind == "int8" else 0
    named = (1001 + numbers) * entry
    assert form.bytes == numbers * number + 1001 * scale + named + 4 * 126 + 56
    assert named < 1001 * -(-dim // 8)
    assert len(parts["masks"]) == 0
    assert all(torch.equal(found, rows) for found in _read_all(arena, [rows]))


@pytest.mark.parametrize(("full", "runs"), [(255, -2), (256, 0)])
def test_a_byte_cannot_say_256(full: int, runs: int) -> None:
    rows = torch.zeros(1000, 256)
    rows[torch.arange(1000), torch.arange(1000) % 256] = 1
    rows[500, :full] = 2
    arena, _, _ = _pack([rows], "fp32")
    assert arena.layout[:, 0].tolist() == [runs]
    assert all(torch.equal(found, rows) for found in _read_all(arena, [rows]))


def test_starts_of_two_entries_of_named_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned, "WIDE", 500)
    tables = [torch.zeros(count, 64) for count in (900, 15, 700)]
    for table in tables:
        table[torch.arange(len(table)), torch.arange(len(table)) * 7 % 64] = 1
    arena, _, _ = _pack(tables, "fp32")
    assert arena.layout[:, 0].tolist() == [-3, -2, -3]
    expected = torch.cat(tables)
    assert all(torch.equal(found, expected) for found in _read_all(arena, tables))


def test_starts_of_two_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned, "WIDE", 500)
    tables = [_rows("elements", count, 16, 3) for count in (900, 5, 700)]
    arena, forms, parts = _pack(tables, "fp32")
    assert arena.layout[:, 0].tolist() == [-1, 0, -1]
    expected = torch.cat(tables)
    assert all(torch.equal(found, expected) for found in _read_all(arena, tables))
    assert sum(part.nbytes for part in parts.values()) == sum(form.bytes for form in forms)


def _plain(tables: Sequence[Tensor], kind: str) -> Arena:
    precision = _precision(kind)
    return Arena(_row_tables(tables), precision, precision.encode(torch.cat(list(tables))))


def _bags(count: int, rng: np.random.Generator, segments: int) -> Bags:
    cuts = np.sort(rng.integers(0, count + 1, 4 * segments - 1))
    offsets = torch.from_numpy(np.concatenate([[0], cuts, [count]]))
    return Bags(
        offsets,
        offsets.diff().clamp(min=1).float(),
        torch.from_numpy(rng.random(count, np.float32)),
        Segments([4] * segments),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("bagged", [False, True])
@pytest.mark.parametrize("skips", [False, True])
def test_segmented_and_pooled_as_plain_rows(
    kind: str, single: bool, bagged: bool, skips: bool
) -> None:
    """All forms in one arena, rows that are absent."""
    names = ["elements", "prefix", "rows", "blocks", "none zero", "all zero"]
    tables = [_rows(name, 200 + 10 * i, 17, i) for i, name in enumerate(names)]
    rng = np.random.default_rng(0)
    segments = Segments([30] * 6, single=True) if single else Segments([40, 0, 25, 31, 1, 50])
    rows = torch.from_numpy(rng.integers(-1 if skips else 0, 200, (1, segments.total)))
    bags = _bags(segments.total, rng, 6) if bagged else None
    arena, forms, _ = _pack(tables, kind)
    assert len({(form.sparse, form.directory) for form in forms}) > 2
    options: tuple[Any, ...] = (range(6), rows, segments, bags, skips)
    expected, _ = _read(_plain(tables, kind), *options)
    by_kernels, by_torch = _read(arena, *options)
    assert torch.equal(by_kernels, expected)
    torch.testing.assert_close(by_torch, expected, rtol=1e-5, atol=1e-6)


class Opaque(Precision):
    """Two numbers to a byte: zeros cannot be left out one by one."""

    def row_bytes(self, dim: int) -> int:
        return (dim + 1) // 2

    def encode(self, rows: Tensor, noise: torch.Generator | None = None) -> Parts:
        return {"values": rows[:, ::2].to(torch.int8)}

    def decode(self, parts: Parts) -> Tensor:
        return parts["values"].float().repeat_interleave(2, 1)


class Shifted(Opaque):
    """A number of 0 means 1."""

    def encode(self, rows: Tensor, noise: torch.Generator | None = None) -> Parts:
        return {"values": rows - 1}

    def decode(self, parts: Parts) -> Tensor:
        return parts["values"] + 1


def test_precisions_that_cannot_be_pruned() -> None:
    assert all(prunable(_precision(kind), dim) for kind in KINDS for dim in (1, 2, 16))
    assert not prunable(Opaque(None), 4)
    assert not prunable(Shifted(None), 4)
    assert pruned_bytes(torch.zeros(10, 4), Opaque(None)) == 20


@pytest.fixture
def zeros() -> Iterator[None]:
    """Register a width whose rows may have zeros."""

    @widths.register("zeros")
    class Zeros(Uniform):
        class Config(Config):  # pyright: ignore[reportIncompatibleVariableOverride]
            kind: Literal["zeros"] = "zeros"

        prunes: ClassVar[bool] = True

    assert widths.get("zeros") is Zeros
    yield
    del widths._classes["zeros"]


FEATURES = (
    Feature("a", 16),
    Feature("b", 16, pooling="mean"),
    Feature("c", 16, pooling="none"),
    Feature("d", 8),
)
PLANTED = {"a": "elements", "b": "blocks", "c": "rows", "d": "none zero"}
BATCH = {
    "a": [[0], [299], [5]],
    "b": [[1, 1, 7], [], [298]],
    "c": [[5, 6], [7], []],
    "d": [[0], [1], [2]],
}


def _tables(table: str) -> EmbeddingTables:
    vocabularies = {feature.table: Vocabulary(300) for feature in FEATURES}
    tables = EmbeddingTables(FEATURES, vocabularies, table=table, fields={"d": "full"})
    for i, one in enumerate(tables.plan.values()):
        planted = _rows(PLANTED[one.table.name], 300, one.table.width, i)
        tables.store.load(one.places[0].name, planted)
    return tables


@pytest.mark.usefixtures("zeros")
@pytest.mark.parametrize("kind", KINDS)
def test_packed_tables_are_smaller_and_equal(kind: str, kjt: Kjt, tmp_path: Path) -> None:
    tables, plain = _tables(f"zeros+{kind}"), _tables(kind)
    precision = _precision(kind)
    size = tables.pack(tmp_path / "pruned")
    other = plain.pack(tmp_path / "plain")
    places = [tables.plan[name].places[0].name for name in "abc"]
    floats = [tables.store.export(name)["values"] for name in places]
    assert size == sum(pruned_bytes(rows, precision) for rows in floats) + 300 * 8 * 4
    assert size < other
    packed = PackedTables.load(tmp_path / "pruned")
    assert packed.file_bytes == size
    pooled, sequences = packed.lookup(kjt(BATCH))
    expected, expected_sequences = PackedTables.load(tmp_path / "plain").lookup(kjt(BATCH))
    assert torch.equal(pooled.values(), expected.values())
    assert torch.equal(sequences["c"].values(), expected_sequences["c"].values())


@pytest.mark.usefixtures("zeros")
def test_plain_arenas_stay_as_they_are() -> None:
    tensors, metadata = _tables("zeros+int8").pack_tensors()
    assert metadata["format"] == 2
    assert set(metadata["arenas"]) == {"pruned-int8x16", "fp32x8"}
    tensors, metadata = _tables("int8").pack_tensors()
    assert metadata["format"] == 1
    assert {name for name in tensors if name.startswith("rows.")} == {
        "rows.int8x16.values",
        "rows.int8x16.scale",
        "rows.fp32x8.values",
    }


NAMES = ("full rows", "scattered zeros", "half a table")


@pytest.mark.usefixtures("zeros")
def test_pruning_that_saves_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A quarter of the int8 numbers scattered over 4 columns: masks and starts take more than that."""
    vocabularies = {name: Vocabulary(400) for name in NAMES}
    features = [Feature(name, 4) for name in NAMES]
    tables = EmbeddingTables(features, vocabularies, table="zeros+int8")
    rows = torch.ones(400, 4)
    scattered = rows.clone()
    scattered[torch.arange(400), torch.arange(400) % 4] = 0
    halved = rows * (torch.arange(400) < 200).unsqueeze(1)
    names = [tables.plan[name].places[0].name for name in NAMES]
    for name, planted in zip(names, (rows, scattered, halved), strict=True):
        tables.store.load(name, planted)
    with caplog.at_level(logging.WARNING, "embtables"):
        tables.pack_tensors()
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("pruning saved no bytes")
    assert names[1] in message
    assert names[0] not in message
    assert names[2] not in message
