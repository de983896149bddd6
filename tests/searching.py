"""Runs the stages of a search without a trainer, on any loss, and small tables to search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embtables import SGD, EmbeddingTables, Feature, Vocabulary
from embtables.search import Search, Stage, search_of, stages_of
from embtables.torchrec_types import KeyedJaggedTensor

Loss = Callable[[EmbeddingTables, int, bool], Tensor]
"""Tables, number of the step, whether it is of held-out rows -> a scalar."""
Build = Callable[[Mapping[str, int]], EmbeddingTables]
"""Stored widths that were found -> new tables."""


def searched(
    tables: EmbeddingTables,
    build: Build,
    loss: Loss,
    fitness: Callable[[EmbeddingTables], float],
    steps: int | Mapping[str, int] = 3,
    lr: float = 0.01,
    until: str | None = None,
    seen: Callable[[Stage, EmbeddingTables, Search], None] = lambda stage, tables, search: None,
) -> EmbeddingTables:
    """Run the stages to the end of the last, or of the one named `until`.

    Args:
        tables: to search.
        build: makes tables of other widths.
        loss: of a step.
        fitness: of tables in evaluation mode.
        steps: of each stage, or by its name.
        lr: of projections.
        until: the stage to stop after.
        seen: called before each stage ends.
    """
    search = search_of(tables)
    if search is None:
        return tables
    found: dict[str, int] = {}
    for stage in stages_of(search):
        begin(search, stage)
        count = steps if isinstance(steps, int) else steps[stage.name]
        for step in range(1, 1 + (0 if stage.epochs == 0 else count)):
            if train_step(tables, search, stage, loss, step, count, lr):
                break
        seen(stage, tables, search)
        tables.eval()
        now = tables
        rebuild = search.end(stage, lambda rows, now=now: _measured(fitness, now))
        if rebuild is not None:
            found |= rebuild.widths
            tables = build(found)
            rebuild.fill(tables)
            search = search_of(tables)
            assert search is not None
        tables.restart()
        tables.train()
        if stage.name == until:
            break
    tables.requires_grad_(True)
    tables.zero_grad()
    return tables


def begin(search: Search, stage: Stage) -> None:
    """Begin a stage: held-out rows train the structure alone."""
    search.begin(stage)
    for parameter in search.parameters:
        parameter.requires_grad_(stage.structure == "train")


def train_step(
    tables: EmbeddingTables,
    search: Search,
    stage: Stage,
    loss: Loss,
    step: int,
    steps: int,
    lr: float = 0.01,
) -> bool:
    """Train rows, projections and the structure; return whether the stage is over."""
    structure = search.parameters
    learned = {id(parameter) for parameter in structure}
    tables.zero_grad()
    total = loss(tables, step, False)
    if stage.structure == "train":
        total = total + search.penalty()
    total.backward()
    with torch.no_grad():
        for parameter in tables.parameters():
            if parameter.grad is not None and id(parameter) not in learned:
                parameter.sub_(lr * parameter.grad)
    tables.step()
    if stage.structure == "valid":
        for parameter in structure:
            parameter.requires_grad_(True)
        held_out = loss(tables, step, True) + search.penalty()
        grads = torch.autograd.grad(held_out, structure)
        tables.zero_grad()
        for parameter, grad in zip(structure, grads, strict=True):
            parameter.requires_grad_(False)
            parameter.grad = grad
    over = search.step(step, steps)
    for parameter in structure:
        parameter.grad = None
    return over


@torch.no_grad()
def _measured(fitness: Callable[[EmbeddingTables], float], tables: EmbeddingTables) -> float:
    return fitness(tables)


FEATURES = (
    Feature("user", 8),
    Feature("linear", 1, key="user"),
    Feature("tag", 8, pooling="mean"),
    Feature("word", 8, pooling="sum"),
    Feature("past", 8, table="user", pooling="none"),
)
ROWS = {"user": 64, "linear": 64, "tag": 30, "word": 50}
SMALL = "optembed(population=4, generations=2)"
"""An evolution that takes no time."""


def falling_counts(rows: int) -> np.ndarray:
    """Distinct training counts, falling; the last tenth was never seen."""
    counts = np.arange(10 * rows, 0, -10)
    counts[-rows // 10 :] = 0
    return counts


VOCABULARIES = {name: Vocabulary(rows, counts=falling_counts(rows)) for name, rows in ROWS.items()}


def make_batch(seed: int, weighted: bool = False) -> KeyedJaggedTensor:
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


def linear_loss(tables: EmbeddingTables, step: int, held_out: bool = False) -> Tensor:
    """A fixed random linear loss of everything that is looked up."""
    torch.manual_seed(step)
    seed = 1000 * held_out + step
    pooled, sequences = tables.lookup(make_batch(seed, weighted=step % 2 == 0))
    generator = torch.Generator().manual_seed(seed)
    found = [pooled.values(), *(one.values() for one in sequences.values())]
    return sum(
        ((one * torch.randn(one.shape, generator=generator)).sum() for one in found),
        torch.zeros(()),
    )


def smallness(tables: EmbeddingTables) -> float:
    return -float(tables.lookup(make_batch(5))[0].values().square().sum())


def make_tables(table: str, **options: Any) -> EmbeddingTables:
    options = {"optimizer": SGD(lr=0.1), "ratio": 0.4} | options
    if "budget" in options:
        del options["ratio"]
    return EmbeddingTables(FEATURES, VOCABULARIES, table=table, **options)


def search_in(tables: EmbeddingTables) -> Search:
    search = search_of(tables)
    assert search is not None
    return search


def run_search(
    table: str, until: str | None = None, steps: int = 3, **options: Any
) -> EmbeddingTables:
    return searched(
        make_tables(table, **options),
        lambda found: make_tables(table, found=found, **options),
        linear_loss,
        smallness,
        steps=steps,
        until=until,
    )


def rows_of(tables: EmbeddingTables) -> dict[str, Tensor]:
    search = search_in(tables)
    return {name: search.rows(name).clone() for name in search.physical}
