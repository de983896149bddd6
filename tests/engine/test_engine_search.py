"""Searches: budgets, refusals, and that what is pruned stays pruned."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from searching import (
    FEATURES,
    SMALL,
    VOCABULARIES,
    begin,
    linear_loss,
    make_batch,
    make_tables,
    rows_of,
    run_search,
    search_in,
    train_step,
)

from embtables import (
    SGD,
    Adagrad,
    Adam,
    DenseAdam,
    EmbeddingTables,
    PackedTables,
    RowWiseAdagrad,
    Vocabulary,
)
from embtables.search import falling_rate, search_of
from embtables.width._pruned import PrunedWidth, smallest

PRUNES = ["dnis", "dnis(form=element)", "magnitude", "pep", "pep(per=row)", SMALL]
SEARCHES = [*PRUNES, "autodim", "lowrank(after=true)"]
LAST_SEARCH = {"dnis": "search", "magnitude": "prune", "pep": "search", "optembed": "evolve"}


def _kind(table: str) -> str:
    return table.partition("(")[0]


@pytest.mark.parametrize("ratio", [0.7, 0.4, 0.15])
@pytest.mark.parametrize("table", SEARCHES)
def test_budget_is_met_when_packed(table: str, ratio: float) -> None:
    if table in ("autodim", "lowrank(after=true)"):
        # Projections of [.., 8] of tables of 30 rows set a floor.
        ratio = max(ratio, 0.4)
    tables = run_search(table, ratio=ratio, steps=60 if "pep" in table else 3)
    tensors, metadata = tables.pack_tensors()
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == tables.bytes().inference
    assert tables.budget is not None
    assert size <= tables.budget
    if "optembed" not in table:  # the fitness, minus the size, asks for narrow tables
        assert size > 0.75 * tables.budget
    packed = PackedTables.from_tensors(tensors, metadata)
    tables.eval()
    for weighted in (False, True):
        batch = make_batch(9, weighted)
        (found, past), (expected, expected_past) = packed.lookup(batch), tables.lookup(batch)
        torch.testing.assert_close(found.values(), expected.values())
        torch.testing.assert_close(past["past"].values(), expected_past["past"].values())


@pytest.mark.parametrize("table", SEARCHES)
def test_without_a_budget_nothing_is_lost(table: str) -> None:
    tables = run_search(table, ratio=None)
    search = search_in(tables)
    for name, rows in rows_of(tables).items():
        if _kind(table) in ("autodim", "optembed"):
            continue  # widths are chosen by what they are worth, not by bytes
        if _kind(table) == "pep":
            continue  # over at once, and what was below the first threshold is gone
        assert rows.all(), name
    assert all(not isinstance(w, PrunedWidth) or not w.learns for w in search.widths)


@pytest.mark.parametrize("table", PRUNES)
def test_smallest_size_that_is_promised_is_met(table: str) -> None:
    with pytest.raises(ValueError, match="smallest reachable size is 512 bytes"):
        make_tables(table, budget=511)
    assert run_search(table, budget=512).bytes().inference <= 512


@pytest.mark.parametrize("table", ["autodim", "lowrank(after=true)"])
def test_budget_that_cannot_be_met_is_refused_before_anything_is_trained(table: str) -> None:
    with pytest.raises(ValueError, match=r"smallest reachable size is ([\d,]+) bytes") as refused:
        make_tables(table, budget=600)
    smallest = int(str(refused.value).partition("size is ")[2].split()[0].replace(",", ""))
    assert 0.9 * smallest < run_search(table, budget=smallest).bytes().inference <= smallest
    tables = make_tables(table, budget=smallest)
    tables.budget = smallest - 1
    search = search_in(tables)
    with pytest.raises(ValueError, match="raise it"):
        search.begin(search.stages(search.config)[0])


@pytest.mark.parametrize("table", ["dnis", "optembed", "lowrank(after=true)"])
def test_missing_counts_are_refused_before_anything_is_trained(table: str) -> None:
    for without in (Vocabulary(30), Vocabulary(30, open=True)):
        tables = EmbeddingTables(
            FEATURES,
            VOCABULARIES | {"tag": without},
            table=f"hash+{table}",
            optimizer=SGD(),
            ratio=0.5,
        )
        kind = _kind(table)
        with pytest.raises(ValueError, match=f"table 'tag': {kind} needs training counts"):
            search_of(tables)


def test_two_searches_are_refused() -> None:
    tables = make_tables("dnis", fields={"tag": "magnitude", "word": "full"}, ratio=0.7)
    with pytest.raises(ValueError, match=r"two searches.*dnis.* and .*magnitude"):
        search_of(tables)
    tables = make_tables("dnis", fields={"tag": "dnis(blocks=2)"})
    with pytest.raises(ValueError, match="two searches"):
        search_of(tables)
    assert search_of(make_tables("uniform")) is None
    mixed = search_in(make_tables("dnis", fields={"tag": "full"}, ratio=0.7))
    assert set(mixed.physical) == {"user", "linear", "word"}


@pytest.mark.parametrize("table", ["dnis", "magnitude", "pep", SMALL])
def test_tables_beside_the_search_take_their_part_of_the_budget(table: str) -> None:
    tables = run_search(table, fields={"tag": "full", "word": "hash+int8"}, ratio=0.6)
    assert tables.budget is not None
    assert tables.bytes().inference <= tables.budget
    if table != SMALL:
        assert tables.bytes().inference > 0.75 * tables.budget
    rows = tables.store.export("tag")["values"]
    assert rows.all()


def test_smallest_threshold() -> None:
    for planted in (1e-9, 1e-4, 0.3, 0.99):
        found = smallest(lambda value, planted=planted: value >= planted, 1.0)
        assert found is not None
        assert planted <= found <= planted * 1.001
    assert smallest(lambda value: True, 1.0) == -1.0
    assert smallest(lambda value: value >= 0, 1.0) == 0.0
    assert smallest(lambda value: False, 1.0) is None


# -- zeros stay zero ------------------------------------------------------------


OPTIMIZERS = {
    "sgd": SGD(lr=0.1, weight_decay=0.1),
    "adagrad": Adagrad(lr=0.1),
    "rowwise_adagrad": RowWiseAdagrad(lr=0.1, weight_decay=0.01),
    "adam": Adam(lr=0.1),
    "dense_adam": DenseAdam(lr=0.1, l2=0.01),
}


HELD = [
    pytest.param(name, bits, id=f"{name}-{bits}")
    for name, bits in product(OPTIMIZERS, ["fp32", "fp16(train=true)", "int8(train=true)"])
    if name != "dense_adam" or bits == "fp32"  # it takes float32 rows alone
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("optimizer", "bits"), HELD)
def test_zeros_stay_zero(optimizer: str, bits: str, backend: str) -> None:
    options: dict[str, Any] = {"optimizer": OPTIMIZERS[optimizer], "backend": backend, "ratio": 0.2}
    table = f"dnis(form=element)+{bits}"
    tables = run_search(table, until="search", **options)
    stage = search_in(tables).stages(search_in(tables).config)[-1]
    before = rows_of(tables)
    zeros = {name: rows == 0 for name, rows in before.items()}
    assert all(some.any() for some in zeros.values())
    search = search_in(tables)
    begin(search, stage)
    for step in range(1, 21):
        train_step(tables, search, stage, linear_loss, step, 20)
    for name, rows in rows_of(tables).items():
        assert not rows[zeros[name]].any(), name
    assert any(not torch.equal(rows, before[name]) for name, rows in rows_of(tables).items())


@pytest.mark.parametrize("table", PRUNES)
def test_zeros_of_every_pruning_stay_zero(table: str) -> None:
    tables = run_search(table, until=LAST_SEARCH[_kind(table)], optimizer=Adam(lr=0.1))
    zeros = {name: rows == 0 for name, rows in rows_of(tables).items()}
    search = search_in(tables)
    stage = search.stages(search.config)[-1]
    begin(search, stage)
    for step in range(1, 21):
        train_step(tables, search, stage, linear_loss, step, 20)
    for name, rows in rows_of(tables).items():
        assert not rows[zeros[name]].any(), name
        assert (rows == 0).sum() == zeros[name].sum(), name


@pytest.mark.parametrize("table", ["dnis", "magnitude"])
def test_zeros_of_rounding_are_no_pruning(table: str) -> None:
    """Before a search has ended, a number that int8 has rounded to zero learns like any other."""
    tables = make_tables(f"{table}+int8(train=true)")
    search = search_in(tables)
    rows = torch.full((64, 8), 1.0)
    rows[:, 1:] = 0.0
    search.set_rows("user", rows)
    begin(search, search.stages(search.config)[0])
    for step in range(1, 6):
        train_step(tables, search, search.stages(search.config)[0], linear_loss, step, 5)
    assert search.rows("user")[:, 1:].any()


@pytest.mark.parametrize("steps", [100, 1000, 2310])
def test_structure_can_move_ten_times_its_size_however_short_the_search(steps: int) -> None:
    rates = [falling_rate(None, step, steps) for step in range(1, steps + 1)]
    # 2 * 10 / steps * sum (1 - s / steps) = 10 * (steps - 1) / steps, or more.
    assert sum(rates) == pytest.approx(max(10, 0.005 * steps) * (1 - 1 / steps))
    assert rates[-1] == 0
    assert rates == sorted(rates, reverse=True)


def test_no_step_of_a_very_short_search_is_above_a_fifth_but_where_it_is_asked_for() -> None:
    assert falling_rate(None, 5, 10) == 0.1
    assert falling_rate(0.5, 5, 10) == 0.25
