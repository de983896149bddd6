"""Magnitude pruning: what is kept, and its schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from searching import begin, linear_loss, make_tables, rows_of, search_in, searched, smallness
from torch import Tensor

from embtables import EmbeddingTables
from embtables.search import Search, Stage


def test_magnitude_keeps_the_largest_of_all_tables() -> None:
    kept, gone = [], []

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        if stage.name == "prune":
            before.update(rows_of(tables))

    before: dict[str, Tensor] = {}
    tables = searched(
        make_tables("magnitude"),
        lambda found: make_tables("magnitude"),
        linear_loss,
        smallness,
        3,
        until="prune",
        seen=seen,
    )
    for name, rows in rows_of(tables).items():
        kept.append(before[name][rows != 0].abs())
        gone.append(before[name][rows == 0].abs())
    assert torch.cat(kept).min() >= torch.cat(gone).max()


def test_magnitude_prunes_by_its_schedule() -> None:
    tables = make_tables("magnitude", ratio=0.4)
    search = search_in(tables)
    stage = search.stages(search.config)[1]
    begin(search, stage)
    shares = []
    for step in range(1, 101):
        search.step(step, 100)
        rows = torch.cat([one.flatten() for one in rows_of(tables).values()])
        shares.append(float((rows == 0).double().mean()))
    assert all(late >= early for early, late in pairwise(shares))
    parts = [10, 50, 100]
    expected = [0.6 * (1 - 0.001 ** (part / 100)) / 0.999 for part in parts]
    assert [shares[part - 1] for part in parts] == pytest.approx(expected, abs=0.01)
