"""What do ranks send each other and hold, with full tables and with tables of a tenth of the bytes?

    python -m bench.sharding [--rounds 20]

A step is look-up, backward and row-wise Adagrad of 26 tables with Criteo's cardinalities times a factor,
width 16, ids by a power law, a global batch of 4096, on one rank and on two (gloo, one thread each).
TorchRec's planner shares tables out. Bytes on the wire are what is passed to the collectives of one
step; beside them what `embtables.rows.wire` computes, which takes ids to be spread evenly over rows.
All tables take turns in every round. Two ranks on one machine send through its loopback: read bytes
and balance, not milliseconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common import write_result
from data.synthetic import CARDINALITIES
from embtables import EmbeddingTables, Feature, RowWiseAdagrad, Vocabulary
from embtables.rows.sharded import ShardedStore
from embtables.rows.wire import KINDS, Part, Shared, sent_in_a_step
from embtables.torchrec_types import KeyedJaggedTensor

TABLES = ("full", "hash", "multiplex", "qr")
RATIO, SCALE, DIM, BATCH, POWER = 0.1, 0.01, 16, 4096, 3.0
RANKS = (1, 2)
ROWS = [max(3, round(SCALE * ids)) for ids in CARDINALITIES]


class Sent(TorchDispatchMode):
    """Counts the bytes that this rank passes to collectives for other ranks, by kind.

    Attributes:
        bytes: kind of `KINDS`, or "sizes" of what follows -> bytes.
        backward: set once gradients are sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a collective, and run it."""
        if func.namespace == "c10d":
            kind, size = self._counted(func.name().removeprefix("c10d::"), args)
            self.bytes[kind] += round(size)
        return func(*args, **(kwargs or {}))

    def _counted(self, name: str, args: Any) -> tuple[str, float]:
        ranks, floats = dist.get_world_size(), "gradients" if self.backward else "vectors"
        others = (ranks - 1) / ranks
        if name == "allreduce_":
            size = sum(tensor.nbytes for tensor in args[0])
            return "all-reduce" if args[0][0].is_floating_point() else "sizes", 2 * others * size
        mine = args[1]
        if name == "alltoall_base_":
            splits = args[4]
            if not splits:
                return "sizes", others * mine.nbytes
            own = splits[dist.get_rank()] * mine[:1].nbytes
            return floats if mine.is_floating_point() else "ids", mine.nbytes - own
        factor = {"_reduce_scatter_base_": others, "_allgather_base_": ranks - 1}[name]
        return floats, factor * mine.nbytes


def build(table: str) -> EmbeddingTables:
    """Return tables of one method."""
    return EmbeddingTables(
        [Feature(f"C{i}", DIM) for i in range(len(ROWS))],
        {f"C{i}": Vocabulary(rows) for i, rows in enumerate(ROWS)},
        table=table,
        ratio=None if table == "full" else RATIO,
        optimizer=RowWiseAdagrad(lr=0.01),
        backend="torchrec",
    )


def batch(rank: int, ranks: int) -> KeyedJaggedTensor:
    """Return this rank's rows of a batch of one id a key."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(ROWS), BATCH, generator=generator, dtype=torch.float64) ** POWER
    ids = (drawn * torch.tensor(ROWS).unsqueeze(1)).long()[:, rank::ranks].flatten()
    return KeyedJaggedTensor([f"C{i}" for i in range(len(ROWS))], ids, lengths=torch.ones_like(ids))


def step(tables: EmbeddingTables, ids: KeyedJaggedTensor, grad: Tensor, sent: Sent | None) -> None:
    """Take a training step of the tables alone."""
    found = tables.lookup(ids)[0].values()
    if sent is not None:
        sent.backward = True
    found.backward(grad)
    tables.step()


def measure(rank: int, ranks: int, rounds: int, folder: str) -> None:
    """Write what this rank has seen of all tables to ``<folder>/<ranks>.<rank>.json``."""
    torch.set_num_threads(1)
    if ranks > 1:
        file = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=file, rank=rank, world_size=ranks)
    ids = batch(rank, ranks)
    grad = torch.full((BATCH // ranks, DIM * len(ROWS)), 1e-3)
    built = {table: build(table) for table in TABLES}
    times = timed(built, ids, grad, rounds)
    lines = {
        table: {
            "step_ms": 1e3 * statistics.median(times[table]),
            "bytes": tables.store.training_bytes(),
            **(exchanged(tables, ids, grad) if ranks > 1 else {}),
        }
        for table, tables in built.items()
    }
    Path(folder, f"{ranks}.{rank}.json").write_text(json.dumps(lines))
    if ranks > 1:
        built.clear()  # TorchRec's modules must be gone before the group is
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def timed(
    built: dict[str, EmbeddingTables], ids: KeyedJaggedTensor, grad: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of steps of all tables, which take turns; a first round warms up."""
    times: dict[str, list[float]] = {table: [] for table in built}
    for _ in range(rounds + 1):
        for table, tables in built.items():
            begin = time.perf_counter()
            step(tables, ids, grad, None)
            times[table].append(time.perf_counter() - begin)
    return {table: found[1:] for table, found in times.items()}


def exchanged(tables: EmbeddingTables, ids: KeyedJaggedTensor, grad: Tensor) -> dict[str, Any]:
    """Return what this rank sends in a step, counted and computed, and how tables are sharded."""
    with Sent() as sent:
        step(tables, ids, grad, sent)
    store = cast(ShardedStore, tables.store)
    types = Counter(one.type for one in shared(store))
    types["data_parallel"] = len(store.places.replicated)
    return {"sent": sent.bytes, "computed": computed(store), "types": types}


def shared(store: ShardedStore) -> list[Shared]:
    """Return the tables that ranks share, from the plan of a store."""
    keys = store._module.module.keys
    return [
        Shared(
            name,
            store.tables[name].rows,
            one.sharding_type,
            tuple(Part(s.placement.rank(), *s.shard_sizes) for s in one.sharding_spec.shards),
            (1.0,) * len(keys[name]),
            name in store.places.bags,
        )
        for module in store.plan.plan.values()
        for name, one in cast("dict[str, Any]", module).items()
    ]


def computed(store: ShardedStore) -> dict[str, int]:
    """Return kind -> bytes that this rank sends by the formulas."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    whole = sum(4 * store.tables[n].rows * store.tables[n].dim for n in store.places.replicated)
    wire = sent_in_a_step(shared(store), ranks, ranks, BATCH // ranks, whole)
    return {kind: round(size) for kind, size in zip(KINDS, wire.sent[:, rank].sum(1), strict=True)}


def line_of(table: str, ranks: int, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the line of a table on so many ranks, from what each of them has seen."""
    held = [one["bytes"] for one in seen]
    line: dict[str, Any] = {
        "table": table,
        "ranks": ranks,
        "step_ms": round(max(one["step_ms"] for one in seen), 3),
        "tables_and_state_bytes": held,
        "balance": round(max(held) / statistics.fmean(held), 3),
    }
    if ranks > 1:
        line["sharding"] = seen[0]["types"]
        for which in ("sent", "computed"):
            line[f"{which}_bytes"] = [one[which] for one in seen]
        line["sent_bytes_in_all"] = sum(sum(one["sent"].values()) for one in seen)
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    cells = []
    for ranks in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(measure, (ranks, options.rounds, folder), nprocs=ranks)  # pyright: ignore[reportPrivateImportUsage]
            files = [Path(folder, f"{ranks}.{rank}.json") for rank in range(ranks)]
            seen = [json.loads(file.read_text()) for file in files]
        cells += [line_of(table, ranks, [one[table] for one in seen]) for table in TABLES]
    print(f"{'table':10} ranks  step ms {'bytes of the ranks':>24} max/mean {'sent':>11}")
    for cell in cells:
        held = ", ".join(f"{size:,}" for size in cell["tables_and_state_bytes"])
        print(
            f"{cell['table']:10} {cell['ranks']:5} {cell['step_ms']:8.1f} {held:>24} "
            f"{cell['balance']:8.2f} {cell.get('sent_bytes_in_all', 0):11,}"
        )
    settings = {"ratio": RATIO, "rows": sum(ROWS), "dim": DIM, "batch": BATCH}
    write_result("sharding", {**settings, "cells": cells})
