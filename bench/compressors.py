"""What does a compressed table cost in time? Every registered method beside a full table.

    python -m bench.compressors [--dims 16 64] [--threads 2]

25 tables of 100,000 ids and one of 1,000 (mixed widths need a difference), batch 4096, Zipf ids, one
id a bag, equal output width, 20 % of the bytes (fp16 and int8 have their own). Train step: look-up,
backward and row-wise Adagrad of the tables alone, so that no network hides their cost. Inference:
look-up in the packed tables. All take turns in every round; ratios are medians over rounds. Widths
that are searched for train as full tables do; what they pack is measured by bench.packed. The process
keeps freed memory, as those of the command line do.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.common import write_result
from bench.row_store import TABLES, ZIPF, draw_ids, in_turns, ratio
from embtables import EmbeddingTables, Feature, PackedTables, RowWiseAdagrad, Vocabulary
from embtables.compressor import Pairs, precisions, sharings, widths
from embtables.torchrec_types import KeyedJaggedTensor
from trainer.memory import keep_freed_memory

ROWS, SMALL, BATCH, RATIO = 100_000, 1000, 4096, 0.2
VARIANTS = [
    "double_hash(combine=concat)",
    "qr(combine=sum)",
    "qr(combine=concat)",
    "multiplex(lookups=2)",
    "multiplex(lookups=2, subtables=2)",
    "fp16(train=true)",
    "int8(train=true)",
]


def methods() -> list[str]:
    """Return every registered method alone, and the variants, without the baseline."""
    fixed = [n for n in widths.names() if not (cls := widths.get(n)).search(cls.Config())]
    names = [*sharings.names(), *fixed, *precisions.names(), *VARIANTS]
    return [name for name in names if name not in ("full", "uniform", "fp32")]


class Together:
    """Ids of near places that occur together, for graph clusters."""

    def partner(self, table: str, named: str | None = None) -> str:
        """Return another table of the same size."""
        assert named is None
        return "f2" if table == "f1" else "f1"

    def pairs(self, left: str, right: str) -> Pairs:
        """Return the ids of two tables in as many rows as they have ids."""
        near = np.arange(ROWS)
        sizes = [SMALL if table == "f0" else ROWS for table in (left, right)]
        return Pairs(near * sizes[0] // ROWS, near * sizes[1] // ROWS, np.ones(ROWS))


def build(table: str, dim: int) -> EmbeddingTables:
    """Return tables of one method; those whose size is not theirs to choose keep all rows."""
    features = [Feature(f"f{i}", dim) for i in range(TABLES)]
    sized = table != "full" and not table.startswith(("fp16", "int8"))
    return EmbeddingTables(
        features,
        {f.table: vocabulary(ROWS if number else SMALL) for number, f in enumerate(features)},
        table=table,
        ratio=RATIO if sized else None,
        optimizer=RowWiseAdagrad(lr=0.01),
        backend="native",
        interactions=Together(),
    )


def vocabulary(rows: int) -> Vocabulary:
    """Return ids whose training counts fall as Zipf's law says."""
    return Vocabulary(rows, counts=(rows / np.arange(1, rows + 1) ** ZIPF).astype(np.int64))


def measure(dim: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return one line a method."""
    torch.set_num_threads(threads)
    ids = draw_ids(ROWS, [BATCH] * TABLES, zipf=True)
    ids[:BATCH] %= SMALL
    names = [f"f{i}" for i in range(TABLES)]
    batch = KeyedJaggedTensor(names, ids, lengths=torch.ones_like(ids))
    grad = torch.randn(BATCH, TABLES * dim) * 1e-3
    works: dict[str, Callable[[], object]] = {}
    for table in ["full", *methods()]:
        tables = build(table, dim)
        packed = PackedTables.from_tensors(*tables.pack_tensors())
        works[f"{table}: train"] = lambda tables=tables: step(tables, batch, grad)
        works[f"{table}: inference"] = lambda packed=packed: read(packed, batch)
    times = in_turns(works, rounds)
    return [
        {
            "dim": dim,
            "threads": threads,
            "table": table,
            **{
                f"{kind}_ms": round(statistics.median(times[f"{table}: {kind}"]) * 1e3, 3)
                for kind in ("train", "inference")
            },
            **{
                f"{kind}_over_full": round(
                    ratio(times[f"{table}: {kind}"], times[f"full: {kind}"]), 2
                )
                for kind in ("train", "inference")
            },
        }
        for table in ["full", *methods()]
    ]


def step(tables: EmbeddingTables, batch: KeyedJaggedTensor, grad: Tensor) -> None:
    """Take a training step of the tables alone."""
    tables.lookup(batch)[0].values().backward(grad)
    tables.step()
    tables.zero_grad()


def read(packed: PackedTables, batch: KeyedJaggedTensor) -> None:
    """Look a batch up."""
    with torch.no_grad():
        packed.lookup(batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    keep_freed_memory()
    lines = [line for dim in options.dims for line in measure(dim, options.threads, options.rounds)]
    print(f"{'table':36} {'dim':>4} {'train ms':>9} {'x full':>7} {'infer ms':>9} {'x full':>7}")
    for line in lines:
        print(
            f"{line['table']:36} {line['dim']:4} {line['train_ms']:9.2f} {line['train_over_full']:7.2f} "
            f"{line['inference_ms']:9.2f} {line['inference_over_full']:7.2f}"
        )
    write_result("compressors", {"cells": lines})
