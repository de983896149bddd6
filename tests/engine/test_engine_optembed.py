"""OptEmbed: thresholds of rows, the supernet, and the evolution of widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import (
    SMALL,
    VOCABULARIES,
    begin,
    linear_loss,
    make_batch,
    make_tables,
    rows_of,
    search_in,
    searched,
    smallness,
)
from torch import Tensor

from embtables import EmbeddingTables
from embtables.search import Search, Stage
from embtables.torchrec_types import KeyedJaggedTensor
from embtables.width.optembed import OptEmbed, OptEmbedSearch, _Step, evolve


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
        make_tables(SMALL, ratio=None),
        lambda found: make_tables(SMALL),
        linear_loss,
        smallness,
        30,
        until="evolve",
        seen=seen,
    )
    for name, rows in rows_of(tables).items():
        never = torch.from_numpy(VOCABULARIES[name].counts.copy() == 0)  # pyright: ignore
        assert never.any()
        assert not worths[name][never].any()
        assert not rows[never].any()
        assert rows[~never].any()


def test_thresholds_do_not_make_rows_never_seen_worth_something() -> None:
    tables = make_tables(SMALL)
    search = search_in(tables)
    begin(search, search.stages(search.config)[0])
    for one in search.parameters:
        one.grad = torch.full_like(one, 1e3)
    search.step(1, 2)
    assert isinstance(search, OptEmbedSearch)
    for name, worth in search._worth().items():
        never = torch.from_numpy(VOCABULARIES[name].counts.copy() == 0)  # pyright: ignore
        assert not worth[never].any()
        assert worth[~never].all()


def test_the_evolution_goes_on_with_the_thresholds_of_the_supernet() -> None:
    found: dict[str, list[Tensor]] = {}

    def seen(stage: Stage, tables: EmbeddingTables, search: Search) -> None:
        found[stage.name] = [one.detach().clone() for one in search.parameters]

    searched(
        make_tables("optembed(population=4, generations=2, alpha=1.0, lr=0.1)", ratio=0.7),
        lambda found: make_tables(SMALL),
        linear_loss,
        smallness,
        5,
        until="evolve",
        seen=seen,
    )
    assert all(one.any() for one in found["supernet"])
    assert all(map(torch.equal, found["evolve"], found["supernet"]))


def test_supernet_draws_every_prefix_alike() -> None:
    tables = make_tables(SMALL)
    search = search_in(tables)
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
    tables = searched(
        make_tables(SMALL),
        lambda found: make_tables(SMALL),
        linear_loss,
        smallness,
        until="supernet",
    )
    search = search_in(tables)
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
    measured = tables.lookup(make_batch(4, weighted=True))[0].values()
    for name, kept in rows.items():
        search.set_rows(name, kept)
    begin(search, search.stages(search.config)[2])
    torch.testing.assert_close(tables.lookup(make_batch(4, weighted=True))[0].values(), measured)
