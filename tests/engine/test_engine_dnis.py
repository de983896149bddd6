"""DNIS: blocks of rows, how alpha learns and pays, and what is pruned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import (
    begin,
    linear_loss,
    make_batch,
    make_tables,
    rows_of,
    run_search,
    search_in,
    train_step,
)

from embtables import EmbeddingTables
from embtables.search import Stage
from embtables.width.dnis import DNIS, Cells, DNISSearch, blocks, project


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=40), min_size=1, max_size=3), st.integers(1, 9)
)
def test_blocks_never_split_equal_counts(tables: list[list[int]], count: int) -> None:
    reads = {str(i): torch.tensor(t, dtype=torch.float64) for i, t in enumerate(tables)}
    found = blocks(reads, count)
    counts, places = torch.cat(list(reads.values())), torch.cat(list(found.values()))
    if not len(counts):
        return
    assert int(places.min()) >= 0
    assert int(places.max()) < count
    for one in counts.unique():
        assert len(places[counts == one].unique()) == 1
    order = counts.argsort(descending=True)
    assert (places[order].diff() >= 0).all()


@pytest.mark.parametrize("rows", [8, 100, 1000])
def test_blocks_halve(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    reads = {"a": torch.randperm(rows, generator=generator).double()}
    block = blocks(reads, 4)["a"]
    sizes = torch.bincount(block).tolist()
    assert sizes[::-1] == [
        rows - rows // 2,
        rows // 2 - rows // 4,
        rows // 4 - rows // 8,
        rows // 8,
    ]
    assert (reads["a"][block == 3] < rows - rows // 2).all()


def _dnis(**options: Any) -> tuple[EmbeddingTables, DNISSearch, Stage]:
    tables = make_tables("dnis(lr=0.1, l1=1e-3, blocks=3)", **options)
    search = search_in(tables)
    assert isinstance(search, DNISSearch)
    stage = search.stages(search.config)[1]
    begin(search, stage)
    return tables, search, stage


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_alpha_moves_by_the_learning_rate_whatever_the_loss(scale: float) -> None:
    _, search, _ = _dnis()
    generator = torch.Generator().manual_seed(1)
    for alpha in search.parameters:
        alpha.data.fill_(0.5)
        alpha.grad = scale * torch.randn(alpha.shape, generator=generator)
    search.step(1, 10)
    for alpha in search.parameters:
        moved = (alpha - 0.5).abs()
        # Clamping to [0, 1] aside, which 0.5 is far from.
        assert moved.mean(1).tolist() == pytest.approx([0.09] * len(moved), rel=1e-3)


def test_alpha_that_no_data_asks_for_falls_to_zero() -> None:
    _, search, _ = _dnis()
    for alpha in search.parameters:
        alpha.requires_grad_(True)
    for step in range(1, 31):
        grads = torch.autograd.grad(search.penalty(), search.parameters)
        for alpha, grad in zip(search.parameters, grads, strict=True):
            alpha.grad = grad
        search.step(step, 40)
    assert all(not alpha.any() for alpha in search.parameters)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.booleans())
@torch.no_grad()
def test_projected_alphas_keep_what_is_allowed(seed: int, allowed: float, unseen: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = [
        Cells(["a"], {"a": torch.randint(0, 5, (30,), generator=generator)}, dim, row_bytes)
        for dim, row_bytes in ((4, 16), (3, 6))
    ]
    for one in cells:
        one.alpha.data.copy_(torch.rand(one.alpha.shape, generator=generator))
        one.size.copy_(torch.rand(one.size.shape, generator=generator) + 0.1)
    if unseen:
        cells[0].size[0] = 0
    before = [one.alpha.clone() for one in cells]

    def kept() -> float:
        return sum(float((one.bytes * one.alpha).sum()) for one in cells)

    every = sum(float(one.bytes.sum()) * one.alpha.shape[1] for one in cells)
    most = min(kept(), allowed * every)
    project(cells, allowed)
    assert kept() == pytest.approx(most, rel=1e-4, abs=1e-4)
    # The step of least cost: what a byte saved has cost is the same wherever anything is left.
    prices = [
        ((old - one.alpha) * one.size / one.bytes)[(one.alpha > 0) & (one.bytes * one.size > 0)]
        for one, old in zip(cells, before, strict=True)
    ]
    paid = torch.cat(prices)
    if len(paid):
        assert float(paid.min()) >= -1e-7
        assert float(paid.max() - paid.min()) <= 0.02 * float(paid.max()) + 1e-6


@torch.no_grad()
def test_blocks_are_as_wide_as_their_alphas_add_up_to() -> None:
    tables, search, _ = _dnis(ratio=0.5)
    generator = torch.Generator().manual_seed(1)
    for width in search.widths:
        assert width.cells is not None
        alpha = width.cells.alpha
        alpha.data.copy_(torch.rand(alpha.shape, generator=generator).round(decimals=1))
    project([width.cells for width in search.widths if width.cells is not None], 0.4)
    sums = {}
    for group, width in zip(search.groups, search.widths, strict=True):
        assert width.cells is not None
        for name in group.read.tables[0]:
            for cell in search.cells[name].unique().tolist():
                sums[name, cell] = float(width.cells.alpha[cell].sum())
    search.end(search.stages(search.config)[1], lambda rows: 0.0)
    kept = {
        (name, cell): int((rows_of(tables)[name][search.cells[name] == cell] != 0).any(0).sum())
        for name, cell in sums
    }
    # All are rounded at one place, but for small ones that still fit.
    over = [kept[key] - sums[key] for key in sums]
    assert max(over) - min(over) < 2


def test_narrow_tables_are_pruned_by_their_alphas_too() -> None:
    tables = run_search("dnis(lr=0.1, blocks=3)", ratio=0.7, steps=60, until="search")
    left = {name: float((rows != 0).double().mean()) for name, rows in rows_of(tables).items()}
    # Their alphas fall alike: the loss is the same for all.
    assert left["linear"] == pytest.approx(np.mean([left["user"], left["word"]]), abs=0.25)


def test_the_mean_of_a_cell_begins_with_what_reads_it() -> None:
    _, search, _ = _dnis()
    l1 = search.config.l1
    for step, size in enumerate((0.0, 0.0, 3.0, 3.0), 1):
        for alpha in search.parameters:
            alpha.data.fill_(0.5)
            alpha.grad = torch.full_like(alpha, l1 + size)
        search.step(step, 100)
    for alpha in search.parameters:
        assert (alpha - 0.5).abs().max() <= 0.1


def test_alpha_is_folded_before_pruning() -> None:
    tables, search, stage = _dnis(ratio=None)
    for step in range(1, 4):
        train_step(tables, search, stage, linear_loss, step, 3)
    before = rows_of(tables)
    folded = {}
    for group, width in zip(search.groups, search.widths, strict=True):
        assert isinstance(width, DNIS)
        assert width.cells is not None
        assert ((width.cells.alpha > 0) & (width.cells.alpha < 1)).any()
        for name in group.read.tables[0]:
            folded[name] = before[name] * width.cells.alpha[search.cells[name]].detach()
    pooled = tables.lookup(make_batch(3))[0].values()
    search.end(stage, lambda rows: 0.0)
    for name, rows in rows_of(tables).items():
        assert torch.equal(rows, folded[name]), name
    begin(search, search.stages(search.config)[2])
    torch.testing.assert_close(tables.lookup(make_batch(3))[0].values(), pooled)


def test_blocks_lose_whole_dimensions() -> None:
    tables = run_search("dnis(blocks=3)", until="search")
    search = search_in(tables)
    cells = blocks(search.reads(), 3)
    for name, rows in rows_of(tables).items():
        for block in cells[name].unique():
            kept = rows[cells[name] == block] != 0
            assert (kept.all(0) | ~kept.any(0)).all()
