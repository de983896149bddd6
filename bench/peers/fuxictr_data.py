# pyright: reportMissingImports=false
"""FuxiCTR's way from a Criteo file to batches: its feature build, and its loader over what that wrote.

    .venv-peers/fuxictr/bin/python bench/peers/fuxictr_data.py JOB.json

The job, one JSON object:

    input       a file in Criteo's layout: label, 13 integers, 26 categories, tabs, no header
    work        an empty folder
    threads     of the processor, for everything that is started
    batch_size  of the loader
    min_count   rarer values share the unknown row
    parts       shares of train, valid and test, cut in the order of the file; such as [0.8, 0.1, 0.1]

The answer, one JSON object, is the last line of standard output. Each of the four parts has
{"seconds", "peak_memory_bytes"}; memory is that of all processes together.

    convert     header written before the rows and splits cut: what FuxiCTR asks of its user
    start       imports, and the Ray processes that build and load work in: alike for any file
    build       FeatureProcessor and build_dataset: vocabularies, and every split encoded as Parquet
    load        one shuffled epoch of its default loader over train; also "batches", "rows",
                "first_batch_seconds", and "epoch_seconds", imports left out
    rows        {"train", "valid", "test"}
    vocabulary_rows
    output_bytes    of the encoded splits
    versions

Missing values become the value "" of a category, and 0 of an integer; integers become
log(1 + x), standardised. A numeric column of FuxiCTR has one transform, so its own normalizer does
the second, and the first is one expression of its `preprocess`.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory import PeakMemory

SPLITS = ("train", "valid", "test")
INTEGERS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]


@contextmanager
def measured(part: dict[str, Any]) -> Iterator[None]:
    """Write seconds and peak memory of the block into `part`."""
    with PeakMemory() as peak:
        begun = time.perf_counter()
        yield
        part["seconds"] = time.perf_counter() - begun
    part["peak_memory_bytes"] = peak.bytes


def convert(source: Path, folder: Path, parts: list[float]) -> dict[str, int]:
    """Write train.csv, valid.csv and test.csv with a header, and return their rows."""
    with source.open("rb") as file:
        total = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b""))
    ends = [round(total * sum(parts[: i + 1])) for i in range(len(parts))]
    rows = {}
    header = "\t".join(["label", *INTEGERS, *CATEGORIES]) + "\n"
    with source.open("rb") as file:
        at = 0
        for split, end in zip(SPLITS, ends, strict=True):
            with (folder / f"{split}.csv").open("wb") as target:
                target.write(header.encode())
                target.writelines(next(file) for _ in range(end - at))
            rows[split], at = end - at, end
    return rows


def log1p(name: str) -> Any:
    """Return the expression of `preprocess: log1p`; FuxiCTR looks the name up at its processor."""
    import polars as pl

    return pl.col(name).clip(lower_bound=0).log1p()


def build(folder: Path, min_count: int) -> Any:
    """Run its feature build and return the feature map."""
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    numeric = {"dtype": "float", "type": "numeric", "fill_na": 0, "preprocess": "log1p"}
    features = [
        {"name": INTEGERS, "active": True, **numeric, "normalizer": "StandardScaler"},
        {"name": CATEGORIES, "active": True, "dtype": "str", "type": "categorical", "fill_na": ""},
    ]
    processor = FeatureProcessor(
        feature_cols=features,
        label_col={"name": "label", "dtype": "float"},
        dataset_id="criteo",
        data_root=str(folder),
    )
    processor.log1p = log1p
    build_dataset(
        processor,
        **{f"{split}_data": str(folder / f"{split}.csv") for split in SPLITS},
        data_format="csv",
        sep="\t",
        min_categr_count=min_count,
    )
    return processor.feature_map


def load(features: Any, folder: Path, batch_size: int) -> dict[str, Any]:
    """Take one epoch of batches from its loader."""
    from fuxictr.pytorch.dataloaders import RankDataLoader

    begun = time.perf_counter()
    train, _ = RankDataLoader(
        features,
        "train",
        train_data=str(folder / "train.parquet"),
        batch_size=batch_size,
        data_format="parquet",
    )
    batches = rows = 0
    first = math.nan
    for batch in train:
        if not batches:
            first = time.perf_counter() - begun
        batches, rows = batches + 1, rows + len(batch["label"])
    seconds = time.perf_counter() - begun
    return {
        "batches": batches,
        "rows": rows,
        "first_batch_seconds": first,
        "epoch_seconds": seconds,
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job."""
    work = Path(job["work"])
    parts: dict[str, dict[str, Any]] = {"convert": {}, "start": {}, "build": {}, "load": {}}
    with measured(parts["convert"]):
        rows = convert(Path(job["input"]), work, job["parts"])
    with measured(parts["start"]):
        from fuxictr.preprocess.build_dataset import init_ray

        init_ray()
    with measured(parts["build"]):
        features = build(work, job["min_count"])
    encoded = work / "criteo"
    with measured(parts["load"]):
        parts["load"] |= load(features, encoded, job["batch_size"])
    return {
        **parts,
        "rows": rows,
        "vocabulary_rows": sum(one.get("vocab_size", 0) for one in features.features.values()),
        "output_bytes": sum(file.stat().st_size for file in encoded.glob("*.parquet")),
        "versions": {
            name: importlib.metadata.version(name) for name in ("fuxictr", "polars", "ray")
        },
    }


def main() -> None:
    """Run the job named on the command line, and print the answer."""
    job = json.loads(Path(sys.argv[1]).read_text())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    os.environ["POLARS_MAX_THREADS"] = str(job["threads"])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    answer = run(job)
    print(f"\n{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
