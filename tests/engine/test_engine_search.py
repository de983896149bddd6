"""Searches: what each learns, how it ends, and that what it has pruned stays pruned."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import begin, searched, train_step
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
    parse_table,
)
from embtables.budget import plan_bytes
from embtables.search import Search, Stage, search_of
from embtables.torchrec_types import KeyedJaggedTensor
from embtables.width._pruned import PrunedWidth, smallest
from embtables.width.autodim import AutoDim, candidates, choose
from embtables.width.dnis import DNIS, Cells, DNISSearch, blocks, project
from embtables.width.lowrank import LowRank, principal
from embtables.width.optembed import OptEmbed, OptEmbedSearch, _Step, evolve
from embtables.width.pep import FIRST, PEP

FEATURES = (
    Feature("user", 8),
    Feature("linear", 1, key="user"),
    Feature("tag", 8, pooling="mean"),
    Feature("word", 8, pooling="sum"),
    Feature("past", 8, table="user", pooling="none"),
)
ROWS = {"user": 64, "linear": 64, "tag": 30, "word": 50}


def _counts(rows: int) -> np.ndarray:
    """Distinct training counts, falling; the last tenth was never seen."""
    counts = np.arange(10 * rows, 0, -10)
    counts[-rows // 10 :] = 0
    return counts


VOCABULARIES = {name: Vocabulary(rows, counts=_counts(rows)) for name, rows in ROWS.items()}


def _batch(seed: int, weighted: bool = False) -> KeyedJaggedTensor:
    """16 rows: single users, bags of tags and words (some empty, some repeated), histories."""
    rng = np.random.default_rng(seed)
    ids, lengths = [], []
    for key in ("user", "tag", "word", "past"):
        rows = ROWS.get(key, ROWS["user"])
        length = np.ones(16, int) if key == "user" else rng.integers(0, 4, 16)
        lengths.append(length)
        ids.append(rng.integers(0, rows, length.sum()))
    values = torch.from_numpy(np.concatenate(ids))
    weights = torch.from_numpy(rng.random(len(values), np.float32)) if weighted else None
    return KeyedJaggedTensor(
        keys=["user", "tag", "word", "past"],
        values=values,
        weights=weights,
        lengths=torch.from_numpy(np.concatenate(lengths)),
    )


def _loss(tables: EmbeddingTables, step: int, held_out: bool = False) -> Tensor:
    """A fixed random linear loss of everything that is looked up."""
    torch.manual_seed(step)
    seed = 1000 * held_out + step
    pooled, sequences = tables.lookup(_batch(seed, weighted=step % 2 == 0))
    generator = torch.Generator().manual_seed(seed)
    found = [pooled.values(), *(one.values() for one in sequences.values())]
    return sum(
        ((one * torch.randn(one.shape, generator=generator)).sum() for one in found),
        torch.zeros(()),
    )


def _size(tables: EmbeddingTables) -> float:
    return -float(tables.lookup(_batch(5))[0].values().square().sum())


def _tables(table: str, **options: Any) -> EmbeddingTables:
    options = {"optimizer": SGD(lr=0.1), "ratio": 0.4} | options
    if "budget" in options:
        del options["ratio"]
    return EmbeddingTables(FEATURES, VOCABULARIES, table=table, **options)


def _search(tables: EmbeddingTables) -> Search:
    search = search_of(tables)
    assert search is not None
    return search


def _run(table: str, until: str | None = None, steps: int = 3, **options: Any) -> EmbeddingTables:
    return searched(
        _tables(table, **options),
        lambda found: _tables(table, found=found, **options),
        _loss,
        _size,
        steps=steps,
        until=until,
    )


def _rows(tables: EmbeddingTables) -> dict[str, Tensor]:
    search = _search(tables)
    return {name: search.rows(name).clone() for name in search.physical}


SMALL = "optembed(population=4, generations=2)"
PRUNES = ["dnis", "dnis(form=element)", "magnitude", "pep", "pep(per=row)", SMALL]
SEARCHES = [*PRUNES, "autodim", "lowrank(after=true)"]
LAST_SEARCH = {"dnis": "search", "magnitude": "prune", "pep": "search", "optembed": "evolve"}


def _kind(table: str) -> str:
    return table.partition("(")[0]


# -- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.7, 0.4, 0.15])
@pytest.mark.parametrize("table", SEARCHES)
def test_budget_is_met_when_packed(table: str, ratio: float) -> None:
    if table in ("autodim", "lowrank(after=true)"):
        # Projections of [.., 8] of tables of 30 rows set a floor.
        ratio = max(ratio, 0.4)
    tables = _run(table, ratio=ratio, steps=60 if "pep" in table else 3)
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
        batch = _batch(9, weighted)
        (found, past), (expected, expected_past) = packed.lookup(batch), tables.lookup(batch)
        torch.testing.assert_close(found.values(), expected.values())
        torch.testing.assert_close(past["past"].values(), expected_past["past"].values())


@pytest.mark.parametrize("table", SEARCHES)
def test_without_a_budget_nothing_is_lost(table: str) -> None:
    tables = _run(table, ratio=None)
    search = _search(tables)
    for name, rows in _rows(tables).items():
        if _kind(table) in ("autodim", "optembed"):
            continue  # widths are chosen by what they are worth, not by bytes
        if _kind(table) == "pep":
            continue  # over at once, and what was below the first threshold is gone
        assert rows.all(), name
    assert all(not isinstance(w, PrunedWidth) or not w.learns for w in search.widths)


@pytest.mark.parametrize("table", PRUNES)
def test_smallest_size_that_is_promised_is_met(table: str) -> None:
    with pytest.raises(ValueError, match="smallest reachable size is 512 bytes"):
        _tables(table, budget=511)
    assert _run(table, budget=512).bytes().inference <= 512


@pytest.mark.parametrize("table", ["autodim", "lowrank(after=true)"])
def test_budget_that_cannot_be_met_is_refused_before_anything_is_trained(table: str) -> None:
    with pytest.raises(ValueError, match=r"smallest reachable size is ([\d,]+) bytes") as refused:
        _tables(table, budget=600)
    smallest = int(str(refused.value).partition("size is ")[2].split()[0].replace(",", ""))
    assert 0.9 * smallest < _run(table, budget=smallest).bytes().inference <= smallest
    tables = _tables(table, budget=smallest)
    tables.budget = smallest - 1
    search = _search(tables)
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
    tables = _tables("dnis", fields={"tag": "magnitude", "word": "full"}, ratio=0.7)
    with pytest.raises(ValueError, match=r"two searches.*dnis.* and .*magnitude"):
        search_of(tables)
    tables = _tables("dnis", fields={"tag": "dnis(blocks=2)"})
    with pytest.raises(ValueError, match="two searches"):
        search_of(tables)
    assert search_of(_tables("uniform")) is None
    mixed = _search(_tables("dnis", fields={"tag": "full"}, ratio=0.7))
    assert set(mixed.physical) == {"user", "linear", "word"}


@pytest.mark.parametrize("table", ["dnis", "magnitude", "pep", SMALL])
def test_tables_beside_the_search_take_their_part_of_the_budget(table: str) -> None:
    tables = _run(table, fields={"tag": "full", "word": "hash+int8"}, ratio=0.6)
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


# -- zeros stay zero ---------------------------------------------------------------------------------

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
    tables = _run(table, until="search", **options)
    stage = _search(tables).stages(_search(tables).config)[-1]
    before = _rows(tables)
    zeros = {name: rows == 0 for name, rows in before.items()}
    assert all(some.any() for some in zeros.values())
    search = _search(tables)
    begin(search, stage)
    for step in range(1, 21):
        train_step(tables, search, stage, _loss, step, 20)
    for name, rows in _rows(tables).items():
        assert not rows[zeros[name]].any(), name
    assert any(not torch.equal(rows, before[name]) for name, rows in _rows(tables).items())


@pytest.mark.parametrize("table", PRUNES)
def test_zeros_of_every_pruning_stay_zero(table: str) -> None:
    tables = _run(table, until=LAST_SEARCH[_kind(table)], optimizer=Adam(lr=0.1))
    zeros = {name: rows == 0 for name, rows in _rows(tables).items()}
    search = _search(tables)
    stage = search.stages(search.config)[-1]
    begin(search, stage)
    for step in range(1, 21):
        train_step(tables, search, stage, _loss, step, 20)
    for name, rows in _rows(tables).items():
        assert not rows[zeros[name]].any(), name
        assert (rows == 0).sum() == zeros[name].sum(), name


@pytest.mark.parametrize("table", ["dnis", "magnitude"])
def test_zeros_of_rounding_are_no_pruning(table: str) -> None:
    """Before a search has ended, a number that int8 has rounded to zero learns like any other."""
    tables = _tables(f"{table}+int8(train=true)")
    search = _search(tables)
    rows = torch.full((64, 8), 1.0)
    rows[:, 1:] = 0.0
    search.set_rows("user", rows)
    begin(search, search.stages(search.config)[0])
    for step in range(1, 6):
        train_step(tables, search, search.stages(search.config)[0], _loss, step, 5)
    assert search.rows("user")[:, 1:].any()


# -- dnis --------------------------------------------------------------------------------------------


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
    tables = _tables("dnis(lr=0.1, l1=1e-3, blocks=3)", **options)
    search = _search(tables)
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
        (name, cell): int((_rows(tables)[name][search.cells[name] == cell] != 0).any(0).sum())
        for name, cell in sums
    }
    # All are rounded at one place, but for small ones that still fit.
    over = [kept[key] - sums[key] for key in sums]
    assert max(over) - min(over) < 1.5


def test_alpha_is_folded_before_pruning() -> None:
    tables, search, stage = _dnis(ratio=None)
    for step in range(1, 4):
        train_step(tables, search, stage, _loss, step, 3)
    before = _rows(tables)
    folded = {}
    for group, width in zip(search.groups, search.widths, strict=True):
        assert isinstance(width, DNIS)
        assert width.cells is not None
        assert ((width.cells.alpha > 0) & (width.cells.alpha < 1)).any()
        for name in group.read.tables[0]:
            folded[name] = before[name] * width.cells.alpha[search.cells[name]].detach()
    pooled = tables.lookup(_batch(3))[0].values()
    search.end(stage, lambda rows: 0.0)
    for name, rows in _rows(tables).items():
        assert torch.equal(rows, folded[name]), name
    begin(search, search.stages(search.config)[2])
    torch.testing.assert_close(tables.lookup(_batch(3))[0].values(), pooled)


def test_blocks_lose_whole_dimensions() -> None:
    tables = _run("dnis(blocks=3)", until="search")
    search = _search(tables)
    cells = blocks(search.reads(), 3)
    for name, rows in _rows(tables).items():
        for block in cells[name].unique():
            kept = rows[cells[name] == block] != 0
            assert (kept.all(0) | ~kept.any(0)).all()


# -- magnitude -----------------------------------------------------------------------------------------


def test_magnitude_keeps_the_largest_of_all_tables() -> None:
    kept, gone = [], []

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        if stage.name == "prune":
            before.update(_rows(tables))

    before: dict[str, Tensor] = {}
    tables = searched(
        _tables("magnitude"), lambda found: _tables("magnitude"), _loss, _size, 3, until="prune",
        seen=seen,
    )  # fmt: skip
    for name, rows in _rows(tables).items():
        kept.append(before[name][rows != 0].abs())
        gone.append(before[name][rows == 0].abs())
    assert torch.cat(kept).min() >= torch.cat(gone).max()


def test_magnitude_prunes_by_its_schedule() -> None:
    tables = _tables("magnitude", ratio=0.4)
    search = _search(tables)
    stage = search.stages(search.config)[1]
    begin(search, stage)
    shares = []
    for step in range(1, 101):
        search.step(step, 100)
        rows = torch.cat([one.flatten() for one in _rows(tables).values()])
        shares.append(float((rows == 0).double().mean()))
    assert all(late >= early for early, late in pairwise(shares))
    parts = [10, 50, 100]
    expected = [0.6 * (1 - 0.001 ** (part / 100)) / 0.999 for part in parts]
    assert [shares[part - 1] for part in parts] == pytest.approx(expected, abs=0.01)


# -- pep -----------------------------------------------------------------------------------------------


def test_first_thresholds_have_size_and_gradient() -> None:
    """The published first threshold, sigmoid(-150), is 0 in float32 and has no gradient."""
    width = PEP(PEP.Config(), _search(_tables("pep")).groups[0].tables)
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
    tables = _tables(f"pep(per={per})", ratio=0.5)
    search = _search(tables)
    stage = search.stages(search.config)[0]
    begin(search, stage)
    steps = 0
    over = False
    while not over:
        steps += 1
        assert steps < 100
        assert search.bytes_of(search._found()) > search.limit or steps == 1  # pyright: ignore
        over = train_step(tables, search, stage, _loss, steps, 100)
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

    begun = _tables(table)
    before = {name: begun.store.export(name)["values"].clone() for name in ROWS}
    tables = searched(
        begun, lambda found: _tables(table, found=found), _loss, _size, 60, until="search",
        seen=seen,
    )  # fmt: skip
    for name, rows in _rows(tables).items():
        dim = rows.shape[1]
        assert dim == (1 if name == "linear" else 8)
        assert torch.equal(first[name], before[name])
        kept = rows != 0
        assert not at_end[name][kept].eq(0).any()
        source = first[name][:, :dim] if retrain == "initial" else at_end[name]
        assert torch.equal(rows[kept], source[kept])
    assert any((rows != 0).any() for rows in _rows(tables).values())


# -- optembed ------------------------------------------------------------------------------------------


def test_long_tailed_estimator() -> None:
    z = torch.tensor([0.0, 0.2, 0.4, 0.7, 1.0, 1.5])
    z = torch.cat([z, -z[1:]]).requires_grad_(True)
    out = _Step.apply(z)
    assert isinstance(out, Tensor)
    assert out.tolist() == [0.0] + [1.0] * 5 + [0.0] * 5
    out.sum().backward()
    assert z.grad is not None
    slopes = [2.0, 1.2, 0.4, 0.4, 0.4, 0.0]
    assert z.grad.tolist() == pytest.approx([*slopes, *slopes[1:]])


def test_rows_never_seen_are_worth_nothing_and_go_first() -> None:
    worths: dict[str, Tensor] = {}

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        assert isinstance(search, OptEmbedSearch)
        if stage.name == "evolve":
            worths.update(search._worth())

    tables = searched(
        _tables(SMALL, ratio=None), lambda found: _tables(SMALL), _loss, _size, 30,
        until="evolve", seen=seen,
    )  # fmt: skip
    for name, rows in _rows(tables).items():
        never = torch.from_numpy(VOCABULARIES[name].counts.copy() == 0)  # pyright: ignore
        assert never.any()
        assert not worths[name][never].any()
        assert not rows[never].any()
        assert rows[~never].any()


def test_thresholds_do_not_make_rows_never_seen_worth_something() -> None:
    tables = _tables(SMALL)
    search = _search(tables)
    begin(search, search.stages(search.config)[0])
    for one in search.parameters:
        one.grad = torch.full_like(one, 1e3)
    search.step(1, 2)
    assert isinstance(search, OptEmbedSearch)
    for name, worth in search._worth().items():
        never = torch.from_numpy(VOCABULARIES[name].counts.copy() == 0)  # pyright: ignore
        assert not worth[never].any()
        assert worth[~never].all()


def test_supernet_draws_every_prefix_alike() -> None:
    tables = _tables(SMALL)
    search = _search(tables)
    begin(search, search.stages(search.config)[0])
    search.set_rows("user", torch.ones(64, 8))
    torch.manual_seed(0)
    users = torch.randint(0, 50, (8000,))
    empty = torch.zeros(8000, dtype=torch.long)
    batch = KeyedJaggedTensor(
        keys=["user", "tag", "word", "past"],
        values=users,
        lengths=torch.cat([torch.ones(8000, dtype=torch.long), empty, empty, empty]),
    )
    found = tables.lookup(batch)[0]["user"] != 0
    widths = found.sum(1)
    assert torch.equal(found, torch.arange(8) < widths.unsqueeze(1))
    shares = torch.bincount(widths, minlength=9)[1:] / 8000
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.015)


def _evolved(fitness, largest=(8, 8, 8, 8), population=20, generations=30):
    seen: list[tuple[int, ...]] = []

    def measured(genome: tuple[int, ...]) -> float:
        seen.append(genome)
        return fitness(genome)

    return evolve(largest, measured, population, generations), seen


def test_evolution_finds_the_optimum_of_a_separable_fitness() -> None:
    best = (3, 7, 1, 8)
    found, _ = _evolved(lambda g: -sum((a - b) ** 2 for a, b in zip(g, best, strict=True)))
    assert found == best


def test_evolution_finds_an_optimum_whose_neighbours_mislead() -> None:
    """Next to the best, (6, 2, 5, 5), is what is worst in the first two; the slope leads away."""

    def fitness(genome: tuple[int, ...]) -> float:
        slope = sum(genome[2:]) if max(genome[2:]) <= 5 else 0
        if genome[:2] == (6, 2):
            return 20.0 + slope
        return slope - abs(genome[0] - 1) * 0.3 + 0.1 * genome[1]

    found, seen = _evolved(fitness, largest=(8, 3, 5, 5), generations=40)
    assert len(seen) < 8 * 3 * 5 * 5
    assert found == (6, 2, 5, 5)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(2, 12),
    st.integers(0, 6),
    st.integers(0, 100),
)
def test_evolution_is_sound(
    largest: list[int], population: int, generations: int, seed: int
) -> None:
    def fitness(genome: tuple[int, ...]) -> float:
        return float(np.random.default_rng([seed, *genome]).random())

    best, seen = _evolved(fitness, largest, population, generations)
    assert len(seen) == len(set(seen))
    assert fitness(best) == max(map(fitness, seen))
    assert all(1 <= w <= most for g in seen for w, most in zip(g, largest, strict=True))
    assert len(seen) <= max(population, 2) + generations * (population // 2)
    if population >= 4:
        assert tuple(largest) in seen
        assert tuple([1] * len(largest)) in seen
    assert _evolved(fitness, largest, population, generations)[1] == seen


def test_evolution_includes_equal_widths() -> None:
    _, seen = _evolved(lambda g: 0.0, largest=(8, 4, 8), population=8, generations=0)
    assert {tuple(min(w, m) for m in (8, 4, 8)) for w in (1, 2, 4, 8)} <= set(seen)


def test_a_candidate_is_measured_at_its_widths_and_rows() -> None:
    """What is measured last is what pruning to the same widths and cut gives."""
    tables = searched(_tables(SMALL), lambda found: _tables(SMALL), _loss, _size, until="supernet")
    search = _search(tables)
    assert isinstance(search, OptEmbedSearch)
    begin(search, search.stages(search.config)[1])
    tables.eval()
    worth = search._worth()
    chosen = {name: 1 if name == "linear" else width for width, name in enumerate(worth, 2)}
    cut = float(torch.cat([one.flatten() for one in worth.values()]).quantile(0.4))
    rows = {
        name: search.rows(name) * (worth[name] > cut)
        * (torch.arange(search.physical[name].dim) < chosen[name])
        for name in worth
    }  # fmt: skip
    for width in search.widths:
        assert isinstance(width, OptEmbed)
        width.candidate = chosen, cut
    measured = tables.lookup(_batch(4, weighted=True))[0].values()
    for name, kept in rows.items():
        search.set_rows(name, kept)
    begin(search, search.stages(search.config)[2])
    torch.testing.assert_close(tables.lookup(_batch(4, weighted=True))[0].values(), measured)


# -- autodim -------------------------------------------------------------------------------------------

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
    begun = _tables("autodim", ratio=None)
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
        pooled, sequences = tables.lookup(_batch(3, weighted=True))
        expected.extend([pooled.values().detach(), sequences["past"].values().detach()])

    tables = searched(
        begun, lambda found: _tables("autodim", ratio=None, found=found), _loss, _size, 12,
        until="search", seen=seen,
    )  # fmt: skip
    assert {name: one.table.width for name, one in tables.plan.items()} == {
        name: 1 if name == "linear" else candidates(8)[place] for name in ROWS
    }
    tables.eval()
    pooled, sequences = tables.lookup(_batch(3, weighted=True))
    torch.testing.assert_close(pooled.values(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sequences["past"].values(), expected[1], rtol=1e-5, atol=1e-5)


def test_autodim_anew_is_new() -> None:
    table = "autodim(retrain=initial)"
    tables = _run(table, until="search")
    widths = {name: one.table.width for name, one in tables.plan.items()}
    fresh = _tables(table, found=widths)
    for key, tensor in tables.training_state().items():
        assert torch.equal(tensor, fresh.training_state()[key]), key


# -- lowrank -------------------------------------------------------------------------------------------


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
        expected.update(_rows(tables))

    table = "lowrank(after=true)"
    tables = searched(
        _tables(table, ratio=1.0), lambda found: _tables(table, ratio=1.0, found=found), _loss,
        _size, seen=seen,
    )  # fmt: skip
    for name, rows in _rows(tables).items():
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
        expected["all"] = tables.lookup(_batch(3))[0].values()

    budget = sum(4 * (ROWS[name] * rank + 8 * (rank + 1)) for name, rank in planted.items())
    options = {"budget": budget + 4 * ROWS["linear"]}
    table = "lowrank(after=true)"
    tables = searched(
        _tables(table, **options), lambda found: _tables(table, found=found, **options), _loss,
        _size, seen=seen,
    )  # fmt: skip
    widths = {name: one.table.width for name, one in tables.plan.items()}
    assert widths == planted | {"linear": 1}
    assert plan_bytes(tables.plan) == tables.bytes().inference == options["budget"]
    tables.eval()
    torch.testing.assert_close(
        tables.lookup(_batch(3))[0].values(), expected["all"], rtol=1e-5, atol=1e-5
    )


def test_one_projection_for_all_tables() -> None:
    tables = _tables("lowrank(shared=true)", ratio=0.4)
    assert search_of(tables) is None
    narrow = {one.table.width for n, one in tables.plan.items() if n != "linear"}
    assert len(narrow) == 1
    (width,) = narrow
    projections = [tuple(parameter.shape) for parameter in tables.groups.parameters()]
    assert projections == [(1, width, 8)]
    tensors, _ = tables.pack_tensors()
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == plan_bytes(tables.plan) == tables.bytes().inference
    each = _tables("lowrank", ratio=0.4)
    assert size <= 0.4 * tables.bytes().uncompressed
    assert plan_bytes(each.plan) <= 0.4 * tables.bytes().uncompressed
    assert isinstance(_search(_tables("lowrank(after=true)")).widths[0], LowRank)
    with pytest.raises(ValueError, match="leave out shared"):
        parse_table("lowrank(shared=true, after=true)")
