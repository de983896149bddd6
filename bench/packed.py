"""What does a packed form without zeros cost in time, and what does it save?

    python -m bench.packed [--dims 16 64] [--threads 2]

26 tables of 100,000 rows with planted zeros, Zipf ids, batch 4096, one id a bag. Look-ups in packed
tables; the dense table takes its turn in every round, and ratios are medians over rounds. Bytes are
those of the packed tensors, beside the dense ones.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bench.common import write_result
from bench.compressors import read
from bench.row_store import TABLES, ZIPF, in_turns, ratio
from embtables import EmbeddingTables, Feature, PackedTables, Vocabulary
from embtables.compressor import widths
from embtables.registry import Config
from embtables.torchrec_types import KeyedJaggedTensor
from embtables.width.uniform import Uniform

ROWS, BATCH, BLOCKS = 100_000, 4096, 6
PRECISIONS = ("fp32", "int8")


@widths.register("zeros")
class Zeros(Uniform):
    """Rows whose zeros are packed away; nothing searches for them."""

    class Config(Config):  # pyright: ignore[reportIncompatibleVariableOverride]
        """No options."""

        kind: Literal["zeros"] = "zeros"

    prunes: ClassVar[bool] = True


def _prefix(rows: int, dim: int) -> Tensor:
    return (torch.arange(dim) < dim // 2).expand(rows, dim)


def _blocks(rows: int, dim: int) -> Tensor:
    """Blocks of falling frequency, each ten times larger than the one before and half as wide."""
    cuts = [rows // 10**power for power in range(BLOCKS - 1, 0, -1)]
    block = torch.searchsorted(torch.tensor(cuts), torch.arange(rows), right=True)
    return torch.arange(dim) < (dim >> block).unsqueeze(1)


def _kept_prefix(rows: int, dim: int) -> Tensor:
    return _prefix(rows, dim) & (torch.rand(rows, 1) < 0.5)


def _scattered(share: float) -> Callable[[int, int], Tensor]:
    return lambda rows, dim: torch.rand(rows, dim) < share


FORMS: dict[str, Callable[[int, int], Tensor]] = {
    "one run, nothing pruned": lambda rows, dim: torch.ones(rows, dim, dtype=torch.bool),
    "prefix of half width": _prefix,
    f"{BLOCKS} frequency blocks": _blocks,
    "directory and prefix": _kept_prefix,
    "sparse, 50 %": _scattered(0.5),
    "sparse, 20 %": _scattered(0.2),
    "sparse, 5 %": _scattered(0.05),
    "sparse, 2 %": _scattered(0.02),
}
"""Which numbers are not zero."""


def frequent_first() -> Tensor:
    """Return Zipf ids, by falling frequency as frequency blocks want them."""
    mass = np.cumsum(np.arange(1, ROWS + 1) ** -ZIPF)
    drawn = np.random.default_rng(0).random(BATCH * TABLES) * mass[-1]
    return torch.from_numpy(np.searchsorted(mass, drawn))


def pack(table: str, dim: int, nonzero: Callable[[int, int], Tensor]) -> tuple[PackedTables, int]:
    """Return packed tables with planted zeros, and their bytes."""
    torch.manual_seed(0)
    features = [Feature(f"f{i}", dim) for i in range(TABLES)]
    vocabularies = {feature.table: Vocabulary(ROWS) for feature in features}
    tables = EmbeddingTables(features, vocabularies, table=table, backend="reference")
    for one in tables.plan.values():
        (place,) = one.places
        tables.store.load(place.name, torch.randn(ROWS, dim) * nonzero(ROWS, dim))
    tensors, metadata = tables.pack_tensors()
    return PackedTables.from_tensors(tensors, metadata), sum(t.nbytes for t in tensors.values())


def measure(dim: int, precision: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return one line a form."""
    torch.set_num_threads(threads)
    ids = frequent_first()
    names = [f"f{i}" for i in range(TABLES)]
    batch = KeyedJaggedTensor(names, ids, lengths=torch.ones_like(ids))
    works: dict[str, Callable[[], object]] = {}
    sizes: dict[str, int] = {}
    for name, table, nonzero in [
        ("dense", precision, FORMS["one run, nothing pruned"]),
        *((name, f"zeros+{precision}", nonzero) for name, nonzero in FORMS.items()),
    ]:
        packed, sizes[name] = pack(table, dim, nonzero)
        works[name] = lambda packed=packed: read(packed, batch)
        gc.collect()
    times = in_turns(works, rounds)
    return [
        {
            "dim": dim,
            "precision": precision,
            "threads": threads,
            "form": name,
            "ms": round(statistics.median(times[name]) * 1e3, 3),
            "time_over_dense": round(ratio(times[name], times["dense"]), 2),
            "bytes": sizes[name],
            "bytes_over_dense": round(sizes[name] / sizes["dense"], 4),
        }
        for name in works
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    lines = [
        line
        for dim in options.dims
        for precision in PRECISIONS
        for line in measure(dim, precision, options.threads, options.rounds)
    ]
    print(
        f"{'form':28} {'dim':>4} {'bits':>5} {'ms':>8} {'x dense':>8} {'bytes':>12} {'of dense':>9}"
    )
    for line in lines:
        print(
            f"{line['form']:28} {line['dim']:4} {line['precision']:>5} {line['ms']:8.2f} "
            f"{line['time_over_dense']:8.2f} {line['bytes']:12,} {line['bytes_over_dense']:9.3f}"
        )
    write_result("packed", {"cells": lines})
