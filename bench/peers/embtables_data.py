"""Our way from a Criteo file to batches: `prepare`, and the loader over what that wrote.

The job and the answer are those of `fuxictr_data`, but for the part "convert", which is not needed.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from memory import PeakMemory


def build(job: dict[str, Any]) -> Path:
    """Prepare the file and return the folder of the store."""
    from data.criteo import Criteo, CriteoConfig
    from data.prepare import prepare
    from data.source import SplitConfig

    config = CriteoConfig(
        root=Path(job["input"]),
        store=Path(job["work"]),
        normalize="standard",
        min_count=job["min_count"],
        split=SplitConfig(parts=tuple(job["parts"])),
    )
    return prepare(Criteo(config))


def load(folder: Path, batch_size: int) -> dict[str, Any]:
    """Take one shuffled epoch of batches from the loader, as training does."""
    from data.loader import Loader
    from data.store import Store

    begun = time.perf_counter()
    loader = Loader(Store.open(folder), "train", batch_size, shuffle=True)
    batches = rows = 0
    first = math.nan
    for batch in loader:
        if not batches:
            first = time.perf_counter() - begun
        batches, rows = batches + 1, rows + len(batch.label)
    seconds = time.perf_counter() - begun
    return {
        "batches": batches,
        "rows": rows,
        "first_batch_seconds": first,
        "epoch_seconds": seconds,
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    parts: dict[str, Any] = {}
    with PeakMemory() as peak:
        begun = time.perf_counter()
        from data import criteo, prepare  # noqa: F401  (timed: what building imports)

        parts["start"] = {"seconds": time.perf_counter() - begun}
        begun = time.perf_counter()
        folder = build(job)
        parts["build"] = {"seconds": time.perf_counter() - begun}
    parts["build"]["peak_memory_bytes"] = peak.bytes
    with PeakMemory() as peak:
        parts["load"] = load(folder, job["batch_size"])
    parts["load"]["peak_memory_bytes"] = peak.bytes

    from data.store import Store

    schema = Store.open(folder).schema
    return {
        **parts,
        "rows": schema.rows,
        "vocabulary_rows": sum(table.rows for table in schema.tables),
        "output_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "versions": {name: importlib.metadata.version(name) for name in ("embtables", "polars")},
    }


if __name__ == "__main__":
    JOB = json.loads(Path(sys.argv[1]).read_text())
    # Before any library counts the cores to start its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: JOB["threads"]])
    os.environ["POLARS_MAX_THREADS"] = str(JOB["threads"])
    print(json.dumps(run(JOB)))
