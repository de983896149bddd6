"""Each sharing and width against a plain re-implementation that loops over ids, from its paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xxhash

from embtables import EmbeddingTables, Feature, Vocabulary
from embtables.torchrec_types import KeyedJaggedTensor

Kjt = Callable[..., KeyedJaggedTensor]
ROWS = {"user": 211, "item": 97}
IDS = {"user": [0, 5, 210, 5, 101], "item": [96, 0, 1, 50, 50]}
MASK = 2**64 - 1


def _mixed(x: int) -> int:
    """Return splitmix64's finaliser in Python's unbounded integers."""
    x &= MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def _row(id_: int, name: str, probe: int, rows: int) -> int:
    """Return the hashed row: the upper 32 bits of the hash, scaled to the rows."""
    return (_mixed(id_ + xxhash.xxh64_intdigest(name.encode(), seed=probe)) >> 32) * rows >> 32


def _tables(method: str, dim: int, ratio: float = 0.4) -> EmbeddingTables:
    features = [Feature(name, dim) for name in ROWS]
    vocabularies = {name: Vocabulary(rows) for name, rows in ROWS.items()}
    tables = EmbeddingTables(features, vocabularies, table=method, ratio=ratio)
    generator = torch.Generator().manual_seed(8)
    for name, place in tables.store.tables.items():
        tables.store.load(name, torch.randn(place.rows, place.dim, generator=generator))
    return tables


def _places(tables: EmbeddingTables, name: str) -> list[np.ndarray]:
    """Return the rows of the physical tables of a logical one, in the order of its look-ups."""
    rows = [tables.store.export(place.name)["values"] for place in tables.plan[name].places]
    return [one.detach().numpy().copy() for one in rows]


def _check(tables: EmbeddingTables, kjt: Kjt, expected: Callable[[str, int], np.ndarray]) -> None:
    pooled, _ = tables.lookup(kjt({name: [[i] for i in ids] for name, ids in IDS.items()}))
    for name, ids in IDS.items():
        found = pooled[name].detach().numpy()
        for vector, id_ in zip(found, ids, strict=True):
            np.testing.assert_allclose(vector, expected(name, id_), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dim", [4, 5])
def test_hash(kjt: Kjt, dim: int) -> None:
    tables = _tables("hash", dim)

    def expected(name: str, id_: int) -> np.ndarray:
        (table,) = _places(tables, name)
        return table[_row(id_, name, 0, len(table))]

    _check(tables, kjt, expected)


@pytest.mark.parametrize("dim", [4, 5, 1])
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_double_hash(kjt: Kjt, combine: str, dim: int) -> None:
    tables = _tables(f"double_hash(combine={combine})", dim)

    def expected(name: str, id_: int) -> np.ndarray:
        first, second = _places(tables, name)
        assert np.array_equal(first, second), "both probes read one table"
        one, two = (first[_row(id_, name, probe, len(first))] for probe in (0, 1))
        # One number cannot be cut in two: it is summed.
        return one + two if combine == "sum" or dim == 1 else np.concatenate([one, two])[:dim]

    _check(tables, kjt, expected)


@pytest.mark.parametrize("dim", [4, 5, 1])
@pytest.mark.parametrize("combine", ["mult", "sum", "concat"])
def test_qr(kjt: Kjt, combine: str, dim: int) -> None:
    tables = _tables(f"qr(combine={combine})", dim)

    def expected(name: str, id_: int) -> np.ndarray:
        quotients, remainders = _places(tables, name)
        c = len(remainders)
        assert len(quotients) == -(-ROWS[name] // c)
        one, two = quotients[id_ // c], remainders[id_ % c]
        if combine == "mult":
            return one * two
        return one + two if combine == "sum" or dim == 1 else np.concatenate([one, two])[:dim]

    _check(tables, kjt, expected)


@pytest.mark.parametrize(("lookups", "subtables"), [(1, 1), (2, 1), (3, 1), (2, 3), (4, 2)])
def test_multiplex(kjt: Kjt, lookups: int, subtables: int) -> None:
    dim = 8
    tables = _tables(f"multiplex(lookups={lookups}, subtables={subtables})", dim)
    shared = list(tables.store.tables)
    assert len(shared) == subtables
    assert {place.dim for place in tables.store.tables.values()} == {-(-dim // lookups)}

    def expected(name: str, id_: int) -> np.ndarray:
        turn = list(ROWS).index(name) * lookups
        chunks = []
        for probe in range(lookups):
            table = tables.store.export(shared[(turn + probe) % subtables])["values"]
            chunks.append(table[_row(id_, name, probe, len(table))].detach().numpy())
        return np.concatenate(chunks)[:dim]

    _check(tables, kjt, expected)


def test_multiplex_with_widths_of_each_feature(kjt: Kjt) -> None:
    """A feature of stored width W takes ceil(W / chunk) look-ups of the same tables."""
    tables = _tables("multiplex(lookups=4, exact_rows=0)+mde(alpha=0.8)", 8, ratio=0.2)
    assert {name: one.table.width for name, one in tables.plan.items()} == {"user": 4, "item": 8}
    assert [len(one.places) for one in tables.plan.values()] == [2, 4]
    (projection,) = _projections(tables)

    def expected(name: str, id_: int) -> np.ndarray:
        chunks = [
            table[_row(id_, name, probe, len(table))]
            for probe, table in enumerate(_places(tables, name))
        ]
        vector = np.concatenate(chunks)
        return vector @ projection[0] if name == "user" else vector

    _check(tables, kjt, expected)


def _projections(tables: EmbeddingTables) -> list[np.ndarray]:
    state = tables.groups.state_dict()
    return [tensor.numpy() for name, tensor in state.items() if name.endswith("projection")]


@pytest.mark.parametrize("power_of_two", ["true", "false"])
def test_mde(kjt: Kjt, power_of_two: str) -> None:
    tables = _tables(f"mde(alpha=0.5, power_of_two={power_of_two})", 8, ratio=1.0)
    raw = 8 * (211 / 97) ** -0.5
    width = 4 if power_of_two == "true" else round(raw)
    assert tables.plan["item"].table.width == 8
    assert tables.plan["user"].table.width == width
    (projection,) = _projections(tables)
    assert projection.shape == (1, width, 8)
    assert sum(p.numel() for p in tables.groups.parameters()) == width * 8

    def expected(name: str, id_: int) -> np.ndarray:
        (table,) = _places(tables, name)
        return table[id_] @ projection[0] if name == "user" else table[id_]

    _check(tables, kjt, expected)


def test_lowrank(kjt: Kjt) -> None:
    """e(x) = E[x] P with rank 4 of 8 for both tables, each with its own matrix."""
    tables = _tables("lowrank", 8, ratio=0.55)
    (projection,) = _projections(tables)
    assert projection.shape == (2, 4, 8)
    order = list(tables.plan)

    def expected(name: str, id_: int) -> np.ndarray:
        (table,) = _places(tables, name)
        return table[id_] @ projection[order.index(name)]

    _check(tables, kjt, expected)


def test_mde_projects_each_table_with_its_own_matrix(kjt: Kjt) -> None:
    rows = {"user": 215, "item": 230, "kind": 20}
    features = [Feature(name, 8) for name in rows]
    tables = EmbeddingTables(
        features, {n: Vocabulary(r) for n, r in rows.items()}, table="mde(alpha=0.5)", ratio=1.0
    )
    (projection,) = _projections(tables)
    assert projection.shape == (2, 2, 8)
    ids = {"user": [[3, 199], []], "item": [[7], [209]], "kind": [[1], [2]]}
    pooled, _ = tables.lookup(kjt(ids))
    for at, name in enumerate(["user", "item"]):
        (table,) = _places(tables, name)
        expected = [table[bag].sum(axis=0) @ projection[at] for bag in ids[name]]
        found = pooled[name].detach().numpy()
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "method", ["hash", "double_hash", "double_hash(combine=concat)", "qr", "qr(combine=sum)",
               "qr(combine=concat)", "multiplex(lookups=2)", "mde", "lowrank"]
)  # fmt: skip
def test_initial_variance_is_that_of_a_full_table(kjt: Kjt, method: str) -> None:
    """Every sum, product and projection starts with the spread of plain rows, around zero."""
    features = [Feature("user", 16), Feature("kind", 16)]
    vocabularies = {"user": Vocabulary(20000), "kind": Vocabulary(400)}
    tables = EmbeddingTables(features, vocabularies, table=method, ratio=0.3)
    ids = range(0, 20000, 7)
    pooled, _ = tables.lookup(kjt({"user": [[i] for i in ids], "kind": [[0] for _ in ids]}))
    values = pooled["user"].detach()
    assert abs(float(values.mean())) < 2e-3
    assert 0.008 < float(values.std()) < 0.0125
