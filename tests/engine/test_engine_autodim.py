"""AutoDim: the choice of candidates under a budget, and what goes on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import (
    ROWS,
    linear_loss,
    make_batch,
    make_tables,
    run_search,
    search_in,
    searched,
    smallness,
)
from torch import Tensor

from embtables import SGD, EmbeddingTables, Feature, Vocabulary
from embtables.search import Search, Stage
from embtables.width.autodim import AutoDim, AutoDimSearch, candidates, choose

_INSTANCES = st.lists(
    st.lists(st.tuples(st.floats(-5, 0), st.integers(1, 100)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def _best_sum(
    worths: Mapping[str, list[float]], costs: Mapping[str, list[int]], limit: float
) -> float:
    """The largest sum of worths within the limit, by trying all."""
    sums = [
        sum(worths[n][p] for n, p in zip(costs, places, strict=True))
        for places in product(*(range(len(cost)) for cost in costs.values()))
        if sum(costs[n][p] for n, p in zip(costs, places, strict=True)) <= limit
    ]
    return max(sums)


@settings(max_examples=300)
@given(_INSTANCES, st.floats(0, 1.2), st.sampled_from([1, 1000, 10**6]))
def test_choice_is_within_one_table_of_the_best(instance, share: float, scale: int) -> None:
    """The best at one price is short of the best of all by less than one table's range of worths."""
    worths = {str(i): [w for w, _ in table] for i, table in enumerate(instance)}
    costs = {str(i): [scale * c for _, c in table] for i, table in enumerate(instance)}
    least, most = (sum(one(cost) for cost in costs.values()) for one in (min, max))
    limit = least + share * (most - least)
    places = choose(worths, costs, limit)
    assert sum(costs[name][place] for name, place in places.items()) <= limit
    found = sum(worths[name][place] for name, place in places.items())
    gap = max(max(one) - min(one) for one in worths.values())
    assert _best_sum(worths, costs, limit) - gap - 1e-9 <= found
    if share >= 1:
        assert found == pytest.approx(sum(map(max, worths.values())))
    with pytest.raises(ValueError, match=r"autodim: the narrowest .* raise it"):
        choose(worths, costs, least - 1)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0)), min_size=1, max_size=6),
    st.integers(0, 6),
    st.sampled_from([1, 10**3, 10**7]),
)
def test_choice_is_exact_where_costs_are_equal(pairs, upgrades: int, scale: int) -> None:
    """Two candidates each, at the same costs: the tables that gain most are widened."""
    worths = {str(i): list(pair) for i, pair in enumerate(pairs)}
    costs = {name: [scale, 3 * scale] for name in worths}
    limit = scale * len(worths) + 2 * scale * upgrades
    places = choose(worths, costs, limit)
    found = sum(worths[name][place] for name, place in places.items())
    assert found == pytest.approx(_best_sum(worths, costs, limit), abs=1e-9)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_chosen_candidate_is_what_was_searched(place: int) -> None:
    begun = make_tables("autodim", ratio=None)
    expected: list[Tensor] = []

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        if stage.name != "search":
            return
        for width in search.widths:
            assert isinstance(width, AutoDim)
            if width.searches:
                width.choice.data.fill_(-1e4)
                width.choice.data[:, place] = 1e4
        tables.eval()
        pooled, sequences = tables.lookup(make_batch(3, weighted=True))
        expected.extend([pooled.values().detach(), sequences["past"].values().detach()])

    tables = searched(
        begun, lambda found: make_tables("autodim", ratio=None, found=found), linear_loss, smallness, 12,
        until="search", seen=seen,
    )  # fmt: skip
    assert {name: one.table.width for name, one in tables.plan.items()} == {
        name: 1 if name == "linear" else candidates(8)[place] for name in ROWS
    }
    tables.eval()
    pooled, sequences = tables.lookup(make_batch(3, weighted=True))
    torch.testing.assert_close(pooled.values(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sequences["past"].values(), expected[1], rtol=1e-5, atol=1e-5)


def test_a_projection_that_costs_more_than_it_saves_is_never_chosen() -> None:
    tables = EmbeddingTables(
        [Feature("a", 16), Feature("b", 16)],
        {"a": Vocabulary(20), "b": Vocabulary(15)},
        table="autodim",
        ratio=1.0,
        optimizer=SGD(lr=0.1),
    )
    search = search_in(tables)
    assert isinstance(search, AutoDimSearch)
    search.begin(search.stages(search.config)[0])
    for width in search.widths:
        width.choice.data[:, 2] = 10.0
    # Of 20 rows 8 numbers and a projection are 1216 bytes, of 16 rows 1056: more than whole rows.
    chosen = search._chosen()
    assert chosen["a"] == 2
    assert chosen["b"] != 2


def test_autodim_anew_is_new() -> None:
    table = "autodim(retrain=initial)"
    tables = run_search(table, until="search")
    widths = {name: one.table.width for name, one in tables.plan.items()}
    fresh = make_tables(table, found=widths)
    for key, tensor in tables.training_state().items():
        assert torch.equal(tensor, fresh.training_state()[key]), key
