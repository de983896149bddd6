"""Runs the stages of a search without a trainer: what `trainer.loop` does, on any loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from embtables import EmbeddingTables
from embtables.search import Search, Stage, search_of, stages_of

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
