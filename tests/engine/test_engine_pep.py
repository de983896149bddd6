"""PEP: thresholds, when it is over, and what it goes on from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from searching import (
    ROWS,
    begin,
    linear_loss,
    make_tables,
    rows_of,
    search_in,
    searched,
    smallness,
    train_step,
)
from torch import Tensor

from embtables import EmbeddingTables
from embtables.search import Search, Stage
from embtables.width.pep import FIRST, PEP


def test_first_thresholds_have_size_and_gradient() -> None:
    """The published first threshold, sigmoid(-150), is 0 in float32 and has no gradient."""
    width = PEP(PEP.Config(), search_in(make_tables("pep")).groups[0].tables)
    assert torch.sigmoid(torch.tensor(-150.0)) == 0
    width.rise = torch.tensor(FIRST)
    row = torch.full((1, 16), 0.01)
    row[:, 8:] = 0.0
    row.requires_grad_(True)
    out = width.above(row)
    torch.testing.assert_close(out, torch.full((1, 8), 0.01 - 1 / (1 + np.exp(7.0))))
    out.sum().backward()
    assert row.grad is not None
    slope = np.exp(7.0) / (1 + np.exp(7.0)) ** 2
    torch.testing.assert_close(row.grad[:, :8], torch.ones(1, 8))
    torch.testing.assert_close(row.grad[:, 8:], torch.full((1, 8), -slope), rtol=1e-5, atol=0)
    below = torch.cat([torch.full((1, 8), -0.0008), torch.zeros(1, 8)], 1).requires_grad_(True)
    assert not width.above(below).any()


@pytest.mark.parametrize("per", ["number", "row"])
def test_pep_is_over_once_it_fits(per: str) -> None:
    tables = make_tables(f"pep(per={per})", ratio=0.5)
    search = search_in(tables)
    stage = search.stages(search.config)[0]
    begin(search, stage)
    steps = 0
    over = False
    while not over:
        steps += 1
        assert steps < 100
        assert search.bytes_of(search._found()) > search.limit or steps == 1  # pyright: ignore
        over = train_step(tables, search, stage, linear_loss, steps, 100)
    assert search.bytes_of(search._found()) <= search.limit  # pyright: ignore


@pytest.mark.parametrize("retrain", ["initial", "found"])
def test_pep_goes_on_from_the_weights_it_says(retrain: str) -> None:
    table = f"pep(retrain={retrain})"
    at_end: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        if stage.name == "search":
            at_end.update(search._found())  # pyright: ignore
            first.update({name: search.first_rows(name) for name in search.physical})

    begun = make_tables(table)
    before = {name: begun.store.export(name)["values"].clone() for name in ROWS}
    tables = searched(
        begun, lambda found: make_tables(table, found=found), linear_loss, smallness, 60, until="search",
        seen=seen,
    )  # fmt: skip
    for name, rows in rows_of(tables).items():
        dim = rows.shape[1]
        assert dim == (1 if name == "linear" else 8)
        assert torch.equal(first[name], before[name])
        kept = rows != 0
        assert not at_end[name][kept].eq(0).any()
        source = first[name][:, :dim] if retrain == "initial" else at_end[name]
        assert torch.equal(rows[kept], source[kept])
    assert any((rows != 0).any() for rows in rows_of(tables).values())
