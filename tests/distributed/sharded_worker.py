"""One rank that trains tables of the contract's world, and writes down what came of them.

    python sharded_worker.py FOLDER

Alone (WORLD_SIZE=1) it does the same with the whole batch and the reference row store.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import CASES, CONFIGS, Case
from torch import Tensor
from world import BAGS, FEATURES, INTERACTIONS, VOCABULARIES, outputs

from embtables import Adagrad, EmbeddingTables, RowOptimizer, RowWiseAdagrad
from embtables.rows.sharding import Sharding, ShardingType
from trainer.ranks import average_gradients

STEPS = 50
BATCH = {
    key: [*bags, bags[0]] for key, bags in BAGS.items()
}  # five rows: ranks have not equally many
TYPES: tuple[ShardingType, ...] = ("table_wise", "row_wise", "column_wise", "data_parallel")


def wanted() -> Iterator[tuple[str, Case, ShardingType, RowOptimizer]]:
    """Yield every form of every sharing, and of the widths that do not search, in each type."""
    cases = [
        case
        for case in CASES
        if case.precision == "fp32"
        and not case.searches
        and (case.width == "uniform" or case.sharing == "hash")
    ]
    for case in cases:
        bare = "(" not in str(case)
        for kind in TYPES if case.sharing in ("full", "multiplex") else TYPES[not bare : 2]:
            yield f"{case} {kind} adagrad", case, kind, Adagrad(lr=0.1)
    for case in cases:
        if str(case) in ("full+uniform+fp32", "hash+uniform+fp32"):
            yield f"{case} row_wise rowwise_adagrad", case, "row_wise", RowWiseAdagrad(lr=0.1)


def tables_of(
    case: Case, kind: ShardingType, optimizer: RowOptimizer, backend: str
) -> EmbeddingTables:
    """Return the tables of a case before training."""
    return EmbeddingTables(
        # Rows of one number are padded, which row-wise Adagrad would notice.
        [f for f in FEATURES if f.dim > 1 or optimizer.kind == "adagrad"],
        VOCABULARIES,
        table=CONFIGS[case],
        ratio=0.5,
        optimizer=optimizer,
        backend=backend,
        interactions=INTERACTIONS,
        sharding=Sharding(type=kind),
    )


def train(case: Case, kind: ShardingType, optimizer: RowOptimizer) -> dict[str, Any]:
    """Return the loss of every step; outputs, rows, maps and packed tables after the last one."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    tables = tables_of(case, kind, optimizer, "reference" if world == 1 else "auto")
    bags = {key: list(rows)[rank::world] for key, rows in BATCH.items()}
    losses = []
    for step in range(STEPS):
        loss = torch.zeros(())
        for name, found in outputs(tables, bags).items():
            # Terms of one sign: a sum of them keeps the digits that are compared.
            aim = _aims(name, found, step, rank, world)
            loss = loss + (found - aim).square().sum() / 2
        (loss * world).backward()  # ranks take the mean of gradients
        learned = [p for p in tables.groups.parameters() if p.requires_grad]
        average_gradients(learned)
        with torch.no_grad():
            for parameter in learned:
                assert parameter.grad is not None
                parameter.sub_(0.01 * parameter.grad)
        tables.step()
        tables.zero_grad()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        losses.append(float(total))
    with torch.no_grad():
        after = outputs(tables, BATCH)  # the same rows on every rank
    rows = {name: tables.store.export(name)["values"] for name in tables.store.tables}
    return {
        "losses": losses,
        "outputs": {name: found.clone() for name, found in after.items()},
        "rows": {name: values.clone() for name, values in rows.items()},
        "groups": tables.groups.state_dict(),
        "packed": tables.pack_tensors()[0],
    }


def _aims(name: str, found: Tensor, step: int, rank: int, world: int) -> Tensor:
    """Return what the vectors of this rank's rows should be, among those of the whole batch."""
    lengths = [len(bag) for bag in BATCH[name if name in BATCH else "item"]]
    whole = [1] * len(lengths) if name != "history" else lengths
    generator = torch.Generator().manual_seed(100 + step)
    every = torch.randn(sum(whole), found.shape[1], generator=generator).split(whole)
    return torch.cat(every[rank::world])


def main(folder: Path) -> None:
    """Train all cases and save what rank 0 found."""
    warnings.filterwarnings("ignore")
    world = int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {}
    for name, case, kind, optimizer in wanted():
        found[name] = train(case, kind, optimizer)
        gc.collect()
    if os.environ["RANK"] == "0":
        torch.save(found, folder / f"found{world}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
