"""Low rank: principal components, and the tables they give back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from searching import (
    ROWS,
    linear_loss,
    make_batch,
    make_tables,
    rows_of,
    search_in,
    searched,
    smallness,
)
from torch import Tensor

from embtables import EmbeddingTables, parse_table
from embtables.budget import plan_bytes
from embtables.search import Search, Stage, search_of
from embtables.width.lowrank import LowRank, principal


def test_principal_components_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    rows, reads = rng.standard_normal((40, 6)) * [3, 2, 1.5, 1, 0.5, 0.1], rng.integers(0, 9, 40)
    mean, variances, vectors = principal(torch.from_numpy(rows), torch.from_numpy(reads))
    weight = reads / reads.sum()
    centred = rows - (weight @ rows)
    _, sizes, right = np.linalg.svd(np.sqrt(weight)[:, None] * centred)
    np.testing.assert_allclose(mean, weight @ rows, atol=1e-12)
    np.testing.assert_allclose(variances, sizes**2, atol=1e-12)
    np.testing.assert_allclose(np.abs(right @ vectors.numpy()), np.eye(6), atol=1e-9)


def test_full_rank_is_the_trained_table() -> None:
    expected: dict[str, Tensor] = {}

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        expected.update(rows_of(tables))

    table = "lowrank(after=true)"
    tables = searched(
        make_tables(table, ratio=1.0),
        lambda found: make_tables(table, ratio=1.0, found=found),
        linear_loss,
        smallness,
        seen=seen,
    )
    for name, rows in rows_of(tables).items():
        assert torch.equal(rows, expected[name])
        assert rows.shape[1] == (1 if name == "linear" else 8)


def test_a_table_of_low_rank_is_reproduced() -> None:
    generator = torch.Generator().manual_seed(0)
    planted = {"user": 2, "tag": 1, "word": 3}
    expected: dict[str, Tensor] = {}

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        for name, rank in planted.items():
            left = torch.randn(ROWS[name], rank, generator=generator)
            rows = left @ torch.randn(rank, 8, generator=generator)
            search.set_rows(name, rows + torch.randn(8, generator=generator))
        tables.eval()
        expected["all"] = tables.lookup(make_batch(3))[0].values()

    budget = sum(4 * (ROWS[name] * rank + 8 * (rank + 1)) for name, rank in planted.items())
    options = {"budget": budget + 4 * ROWS["linear"]}
    table = "lowrank(after=true)"
    tables = searched(
        make_tables(table, **options),
        lambda found: make_tables(table, found=found, **options),
        linear_loss,
        smallness,
        seen=seen,
    )
    widths = {name: one.table.width for name, one in tables.plan.items()}
    assert widths == planted | {"linear": 1}
    assert plan_bytes(tables.plan) == tables.bytes().inference == options["budget"]
    tables.eval()
    torch.testing.assert_close(
        tables.lookup(make_batch(3))[0].values(), expected["all"], rtol=1e-5, atol=1e-5
    )


def test_one_projection_for_all_tables() -> None:
    tables = make_tables("lowrank(shared=true)", ratio=0.4)
    assert search_of(tables) is None
    narrow = {one.table.width for n, one in tables.plan.items() if n != "linear"}
    assert len(narrow) == 1
    (width,) = narrow
    projections = [tuple(parameter.shape) for parameter in tables.groups.parameters()]
    assert projections == [(1, width, 8)]
    tensors, _ = tables.pack_tensors()
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == plan_bytes(tables.plan) == tables.bytes().inference
    each = make_tables("lowrank", ratio=0.4)
    assert size <= 0.4 * tables.bytes().uncompressed
    assert plan_bytes(each.plan) <= 0.4 * tables.bytes().uncompressed
    assert isinstance(search_in(make_tables("lowrank(after=true)")).widths[0], LowRank)
    with pytest.raises(ValueError, match="leave out shared"):
        parse_table("lowrank(shared=true, after=true)")
