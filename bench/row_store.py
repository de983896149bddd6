"""How far is a row store from the memory floor, and from what others do on a CPU?

    python -m bench.row_store [--rows 104000 2600000] [--dim 16 64] [--threads 1 2] [--pooling 1 10]

26 tables, one id a bag, or bags of 0 to 20. A step is forward, backward and the update of the rows
read. Contenders take turns in every round, so that a noisy machine disturbs all of them; numbers are
medians over rounds. A cell of the results that is measured again is replaced.

Floor = bytes that must move / copy bandwidth measured in the same rounds: rows read, output written,
gradient read, distinct rows read and written, one number of optimizer state for each, ids twice.
A copy reads in order, a table is read in no order: "loops" are the plainest loops over the same rows.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from bench.common import known_cells, write_result
from embtables import Adam, EmbeddingTables, Feature, RowOptimizer, RowWiseAdagrad, Vocabulary
from embtables.rows.pages import in_large_pages
from embtables.torchrec_types import KeyedJaggedTensor
from trainer.rundir import environment

TABLES = 26
COPY_NUMBERS = 64 * 2**20
ZIPF = 1.05
MEMORY = 4e9
"""Largest table in bytes for which every contender is held at once."""


KEYS = ("rows", "dim", "batch", "ids", "threads", "pooling")
"""What makes a cell."""


class Native:
    """Our tables on one backend."""

    def __init__(
        self,
        rows: int,
        dim: int,
        ids: Tensor,
        lengths: Tensor,
        optimizer: RowOptimizer,
        backend: str,
    ) -> None:
        features = [Feature(f"f{i}", dim) for i in range(TABLES)]
        vocabularies = {feature.table: Vocabulary(rows) for feature in features}
        self.tables = EmbeddingTables(features, vocabularies, optimizer=optimizer, backend=backend)
        self.batch = KeyedJaggedTensor([feature.key for feature in features], ids, lengths=lengths)

    def forward(self) -> Tensor:
        return self.tables.lookup(self.batch)[0].values()

    def step(self, grad: Tensor) -> None:
        self.forward().backward(grad)
        self.tables.step()


class Loops:
    """What no row store gets round: reads each row, adds a gradient to each distinct one.

    It knows beforehand which rows are distinct, and sums no gradients of one row.
    """

    def __init__(self, rows: int, dim: int, ids: Tensor, lengths: Tensor) -> None:
        table = torch.arange(TABLES).repeat_interleave(lengths.view(TABLES, -1).sum(1))
        self.rows = (ids + table * rows).numpy()
        self.bags = torch.arange(len(lengths)).repeat_interleave(lengths).numpy()
        self.distinct, self.first = np.unique(self.rows, return_index=True)
        order = np.argsort(self.first)  # as they come in the batch
        self.distinct, self.first = self.distinct[order], self.bags[self.first[order]]
        self.table = in_large_pages(torch.empty(TABLES * rows, dim)).zero_().numpy()
        self.state = np.zeros(TABLES * rows, np.float32)
        self.out = np.empty((len(lengths), dim), np.float32)

    def forward(self) -> object:
        numba.set_num_threads(torch.get_num_threads())
        return _read(self.table, self.rows, self.bags, self.out)

    def step(self, grad: Tensor) -> None:
        self.forward()
        given = grad.numpy().reshape(self.out.shape)
        _add(self.table, self.state, self.distinct, self.first, given)


@numba.njit(parallel=True)
def _read(table: Any, rows: Any, bags: Any, out: Any) -> None:
    for i in numba.prange(len(rows)):
        for d in range(table.shape[1]):
            out[bags[i], d] = table[rows[i], d]


@numba.njit(parallel=True)
def _add(table: Any, state: Any, rows: Any, bags: Any, grad: Any) -> None:
    for i in numba.prange(len(rows)):
        state[rows[i]] += 1
        for d in range(table.shape[1]):
            table[rows[i], d] += grad[bags[i], d]


class Fbgemm:
    """FBGEMM's table-batched embeddings, CPU build."""

    def __init__(self, rows: int, dim: int, ids: Tensor, lengths: Tensor) -> None:
        self.bags = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * TABLES,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.01,
        )
        self.ids, self.offsets = ids, _offsets(lengths)

    def forward(self) -> Tensor:
        return self.bags(self.ids, self.offsets)

    def step(self, grad: Tensor) -> None:
        self.forward().backward(grad)


class EmbeddingBags:
    """26 nn.EmbeddingBag with sparse gradients and a torch optimizer."""

    def __init__(
        self,
        rows: int,
        dim: int,
        ids: Tensor,
        lengths: Tensor,
        optimizer: Callable[..., torch.optim.Optimizer],
    ) -> None:
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(rows, dim, sparse=True, mode="sum") for _ in range(TABLES)
        )
        self.optimizer = optimizer(list(self.bags.parameters()), lr=0.01)
        lengths = lengths.view(TABLES, -1)
        self.ids = ids.split(lengths.sum(1).tolist())
        self.offsets = [_offsets(one)[:-1] for one in lengths]

    def forward(self) -> Tensor:
        parts = zip(self.bags, self.ids, self.offsets, strict=True)
        return torch.cat([bag(ids, offsets) for bag, ids, offsets in parts], dim=1)

    def step(self, grad: Tensor) -> None:
        self.forward().backward(grad)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def draw_ids(rows: int, counts: Sequence[int], zipf: bool, seed: int = 0) -> Tensor:
    """Return ids, counts[t] of each table: uniform, or Zipf over a permutation of the rows."""
    rng = np.random.default_rng(seed)
    if not zipf:
        return torch.from_numpy(rng.integers(0, rows, sum(counts)))
    mass = np.cumsum(np.arange(1, rows + 1) ** -ZIPF)
    ranks = [np.searchsorted(mass, rng.random(count) * mass[-1]) for count in counts]
    return torch.from_numpy(np.concatenate([rng.permutation(rows)[rank] for rank in ranks]))


def contenders(rows: int, dim: int, ids: Tensor, lengths: Tensor) -> dict[str, Any]:
    """Return what is compared, by name; the slow ones only where they fit in memory together."""
    shape = rows, dim, ids, lengths
    adagrad, adam = RowWiseAdagrad(lr=0.01), Adam(lr=0.01)
    found: dict[str, Any] = {
        "native": Native(*shape, adagrad, "native"),
        "loops": Loops(*shape),
        "fbgemm": Fbgemm(*shape),
    }
    if TABLES * rows * dim * 4 * 7 < MEMORY * 4:
        found |= {
            "native adam": Native(*shape, adam, "native"),
            "torchrec": Native(*shape, adagrad, "torchrec"),
            "EmbeddingBag+SparseAdam": EmbeddingBags(*shape, torch.optim.SparseAdam),
            "EmbeddingBag+Adagrad": EmbeddingBags(*shape, torch.optim.Adagrad),
        }
    return found


def measure(cell: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return times in ms, ratios to native, and the floor, of one cell."""
    torch.set_num_threads(cell["threads"])
    rows, dim, batch = cell["rows"] // TABLES, cell["dim"], cell["batch"]
    lengths = torch.ones(TABLES, batch, dtype=torch.int64)
    if cell["pooling"] > 1:
        generator = torch.Generator().manual_seed(0)
        lengths.random_(0, 2 * cell["pooling"] + 1, generator=generator)
    counts = lengths.sum(1)
    ids = draw_ids(rows, counts.tolist(), cell["ids"] == "zipf")
    grad = torch.randn(batch, TABLES * dim) * 1e-3
    source = torch.rand(COPY_NUMBERS)
    target = torch.empty_like(source)
    works: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for name, one in contenders(rows, dim, ids, lengths.flatten()).items():
        works[f"{name}: forward"] = _forward(one)
        works[f"{name}: step"] = lambda one=one: one.step(grad)
    times = in_turns(works, rounds)
    bandwidth = 2 * source.nbytes / statistics.median(times["copy"])
    table = torch.arange(TABLES).repeat_interleave(counts)
    n, distinct, bags = len(ids), len(torch.unique(ids + table * rows)), lengths.numel()
    floors = {
        "forward": ((n + bags) * dim * 4 + 8 * n) / bandwidth,
        "step": ((n + 2 * bags) * dim * 4 + 2 * distinct * dim * 4 + 8 * distinct + 16 * n)
        / bandwidth,
    }
    return {
        **cell,
        "cpu": environment()["cpu"],
        "distinct_rows": distinct,
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "floor_ms": {kind: round(floor * 1e3, 3) for kind, floor in floors.items()},
        "ms": {
            name: round(statistics.median(found) * 1e3, 3)
            for name, found in times.items()
            if name != "copy"
        },
        "native_over_floor": {
            kind: round(statistics.median(times[f"native: {kind}"]) / floors[kind], 2)
            for kind in floors
        },
        "native_over_loops": {
            kind: round(ratio(times[f"native: {kind}"], times[f"loops: {kind}"]), 2)
            for kind in floors
        },
        "peer_over_native": {
            name: round(ratio(times[name], times[f"{_ours(name)}: {name.split(': ')[1]}"]), 2)
            for name in works
            if not name.startswith(("copy", "loops", "native"))
        },
    }


def in_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return seconds of every work in every round; each runs twice a round and the second counts."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            work()
            start = time.perf_counter()
            work()
            if number >= 2:  # compiled and warm
                times[name].append(time.perf_counter() - start)
    return times


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over rounds of their time over ours in the same round."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _ours(name: str) -> str:
    return "native adam" if "Adam:" in name else "native"


def _forward(one: Any) -> Callable[[], object]:
    def work() -> object:
        with torch.no_grad():
            return one.forward()

    return work


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[104_000, 2_600_000, 10_400_000])
    parser.add_argument("--dim", type=int, nargs="+", default=[4, 16, 64, 128])
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--ids", nargs="+", default=["zipf", "uniform"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pooling", type=int, nargs="+", default=[1], help="mean ids of a bag")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    cells = {tuple(cell[key] for key in KEYS): cell for cell in known_cells("row_store")}
    for key in itertools.product(*(getattr(options, name) for name in KEYS)):
        cell: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        found = cells[key] = measure(cell, options.rounds)
        gc.collect()
        print(
            *cell.values(), "| floor", found["floor_ms"]["step"], "| x floor",
            found["native_over_floor"], "| x loops", found["native_over_loops"], "| peers / native",
            {name: value for name, value in found["peer_over_native"].items() if "step" in name},
            flush=True,
        )  # fmt: skip
        write_result("row_store", {"cells": list(cells.values())})
