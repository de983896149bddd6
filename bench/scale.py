"""How do time and memory grow with the rows of the tables, and with the number of features?

    python -m bench.scale [--memory 20]

A step is look-up, backward and row-wise Adagrad, batch 4096, dim 16, Zipf ids. Rows: 26 tables of
10^5 to 10^8 rows in all, trained in float32, float16 and int8. Features: 26 to 400, 2.6 million rows in
all. Every cell is a process of its own: what its steps take at the peak beyond the built tables and
optimizer state is what a batch costs, beside the bound that `embtables.rows.native` states.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.common import write_result
from bench.row_store import draw_ids
from embtables import EmbeddingTables, Feature, RowWiseAdagrad, Vocabulary
from embtables.rows.native import batch_bytes
from embtables.torchrec_types import KeyedJaggedTensor

DIM, BATCH, ROUNDS, BATCHES = 16, 4096, 20, 4
ROWS = [10**5, 10**6, 10**7, 10**8]
FEATURES = [26, 50, 100, 200, 400]
FORMS = ["fp32", "fp16", "int8"]


def measure(features: int, rows: int, form: str, threads: int) -> dict[str, Any]:
    """Return times and memory of one cell."""
    torch.set_num_threads(threads)
    each = rows // features
    kinds = [Feature(f"f{i}", DIM) for i in range(features)]
    _step(_tables(kinds, 9, form), _batch(kinds, 9, 0, batch=8))  # compiles
    batches = [_batch(kinds, each, seed) for seed in range(BATCHES)]
    tables = _tables(kinds, each, form)
    ctypes.CDLL(None).malloc_trim(0)  # of the pieces in which rows were drawn
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    times = []
    for number in range(ROUNDS):
        begin = time.perf_counter()
        _step(tables, batches[number % BATCHES])
        times.append(time.perf_counter() - begin)
    step = statistics.median(times)
    return {
        "features": features,
        "rows": rows,
        "form": form,
        "step_ms": round(step * 1e3, 3),
        "rows_per_second": round(BATCH / step),
        "ns_per_id": round(step / (BATCH * features) * 1e9, 1),
        "tables_and_state_bytes": tables.bytes().training,
        "peak_bytes_beyond": _status("VmHWM") - before,
        "batch_bound_bytes": batch_bytes(BATCH * features, DIM, rows, threads),
    }


def _tables(features: list[Feature], rows: int, form: str) -> EmbeddingTables:
    return EmbeddingTables(
        features,
        {feature.table: Vocabulary(rows) for feature in features},
        table="full" if form == "fp32" else f"full+{form}(train=true)",
        optimizer=RowWiseAdagrad(lr=0.01),
        backend="native",
    )


def _step(tables: EmbeddingTables, batch: KeyedJaggedTensor) -> None:
    tables.lookup(batch)[0].values().sum().backward()
    tables.step()


def _batch(features: list[Feature], rows: int, seed: int, batch: int = BATCH) -> KeyedJaggedTensor:
    ids = draw_ids(rows, [batch] * len(features), zipf=True, seed=seed)
    return KeyedJaggedTensor([f.key for f in features], ids, lengths=torch.ones_like(ids))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=float, default=20, help="GB of tables that may be held")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    plans = [(26, rows, form) for rows in ROWS for form in FORMS]
    plans += [(features, 2_600_000, "fp32") for features in FEATURES]
    cells = []
    for features, rows, form in plans:
        if rows * (4 * DIM + 4) > options.memory * 1e9:
            continue
        alone = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with alone:
            cells.append(alone.submit(measure, features, rows, form, options.threads).result())
        print(*(f"{key}={value:,}" if isinstance(value, int) else f"{key}={value}"
                for key, value in cells[-1].items()), flush=True)  # fmt: skip
    write_result("scale", {"threads": options.threads, "dim": DIM, "batch": BATCH, "cells": cells})
