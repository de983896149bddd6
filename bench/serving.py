"""How fast does an exported model answer, beside the model unpacked and TorchRec's quantized tables?

    python -m bench.serving [--rows 500000] [--threads 1 2]

DLRM (26 fields of width 16, 13 numbers) on synthetic rows with Criteo's cardinalities, trained for a few
steps: speed does not depend on what was learned. Test rows come in batches of 1, 64 and 4096, another
batch in every call. Contenders take turns in every round; ratios are medians over rounds.

- packed: the exported model, from ids to logits. unpacked: the tables as they are trained, those of a
  search as it finds them, below the same network.
- torchrec: an EmbeddingBagCollection of the same rows below the same network, as it is and quantized to
  int8 by torchrec.inference.modules.quantize_embeddings.
- values: the exported model from raw values (column -> list) to probabilities; file: from a TSV.

`tables` is the time of the look-up alone, `model` that of the whole.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.inference.modules import quantize_embeddings

from bench.common import write_result
from bench.row_store import in_turns, ratio
from data.batch import Batch
from data.hashing import MISSING
from data.loader import Loader
from data.store import Store
from embtables.rows.arena import Arena
from embtables.tables import Lookup
from embtables.torchrec_types import KeyedJaggedTensor, KeyedTensor
from trainer.config import RunConfig, load_config
from trainer.datasets import open_store
from trainer.loop import Trainer, train
from trainer.predict import PackedModel, Predictor
from trainer.runs import export_run

TABLES = ("full", "int8", "hash", "multiplex(lookups=2)", "graphhash", "dnis")
SHARE = 0.1
"""Of the bytes, for tables that shrink as far as they are asked to."""

NETWORK = ("model.kind=dlrm", "model.bottom=[512,256]", "model.top=[512,256]")
FEW = ("train.epochs=1", "train.limit_batches=8", "train.eval_batch_size=2048")
ROUNDS = {1: 500, 64: 300, 4096: 40}
"""Batch size -> rounds."""

BATCHES = 64
"""Different batches that take turns, at most."""


class Collection(nn.Module):
    """A TorchRec collection where `EmbeddingTables` stand."""

    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection = collection

    def lookup(self, kjt: KeyedJaggedTensor) -> tuple[KeyedTensor, dict[str, Any]]:
        return self.collection(kjt), {}


@torch.no_grad()
def collection_of(model: PackedModel) -> EmbeddingBagCollection:
    """Return a collection with the rows of full tables."""
    tables = model.tables
    configs = [
        EmbeddingBagConfig(
            name=feature.table,
            num_embeddings=tables.vocabularies[feature.table].rows,
            embedding_dim=feature.dim,
            feature_names=[feature.key],
        )
        for feature in tables.features
    ]
    collection = EmbeddingBagCollection(tables=configs)
    (arena,) = cast(nn.ModuleDict, tables.store.arenas).values()
    for config in configs:
        weight = collection.get_parameter(f"embedding_bags.{config.name}.weight")
        weight.copy_(cast(Arena, arena).table(config.name)["values"])
    return collection


def configuration(table: str, folder: Path, rows: int) -> RunConfig:
    """Return a run of a few steps."""
    shrinks = () if table in ("full", "int8") else (f"ratio={SHARE}",)
    data = (f"data.rows={rows}", "data.scale=1", f"data.store={folder / 'prepared'}")
    options = (*data, *NETWORK, *FEW, f"table={table}", *shrinks)
    return load_config("synthetic/autoint", options).config


def contenders(folder: Path, rows: int) -> tuple[dict[str, Predictor], Store]:
    """Return models by name, and the data."""
    found: dict[str, Predictor] = {}
    for table in TABLES:
        config = configuration(table, folder, rows)
        train(config, folder / table)
        export_run(folder / table, folder / f"{table}.packed")
        found[f"{table} packed"] = PackedModel.load(folder / f"{table}.packed")
        trainer = Trainer(config, open_store(config))
        found[f"{table} unpacked"] = Predictor(trainer.model, trainer.tables)
    full = cast(PackedModel, found["full packed"])
    plain = collection_of(full)
    (quantized,) = quantize_embeddings(
        nn.Sequential(plain), dtype=torch.qint8, inplace=False
    ).children()
    for name, collection in {"torchrec fp32": plain, "torchrec int8": quantized}.items():
        found[name] = Predictor(full.model, cast(Lookup, Collection(collection)))
    return found, open_store(configuration("full", folder, rows))


def raw_values(store: Store, rows: int) -> pl.DataFrame:
    """Return test rows as the source knows them: raw keys, and numbers before the transform."""
    split, schema = store.split("test"), store.schema
    columns: dict[str, pl.Series] = {}
    for at, column in enumerate(schema.fields):
        keys = store.keys(column.table_name)[split.ids[:rows, at]]
        columns[column.name] = pl.Series(keys).replace(MISSING, None)
    for at, name in enumerate(schema.numeric):
        stats = store.stats["columns"][name]
        dense = split.dense[:rows, at].astype(np.float64)
        numbers = np.expm1(dense * stats["std"] + stats["mean"]).round()
        missing = np.where(dense == 0, np.nan, numbers)
        columns[name] = pl.Series(missing).fill_nan(None).cast(pl.Int64)
    return pl.DataFrame(columns)


def works_of(
    models: dict[str, Predictor], batches: Sequence[Batch], frames: Sequence[dict[str, list]]
) -> dict[str, Callable[[], object]]:
    """Return what is timed; each call takes the next batch."""
    works: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        turn, other = cycle(batches), cycle(batches)
        works[f"{name}: tables"] = lambda m=model, turn=turn: look_up(m, next(turn))
        works[f"{name}: model"] = lambda m=model, turn=other: m(next(turn))
    values = cycle(frames)
    packed = cast(PackedModel, models["full packed"])
    works["full packed: values"] = lambda: packed.predict(next(values))
    return works


@torch.no_grad()
def look_up(model: Predictor, batch: Batch) -> None:
    """Look a batch up."""
    model.tables.lookup(batch.features)[0].values()


def measure(
    models: dict[str, Predictor], store: Store, size: int, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Return one line a contender."""
    torch.set_num_threads(threads)
    count = min(BATCHES, store.split("test").rows // size)
    batches = [
        b for b, _ in zip(Loader(store, "test", size, prefetch=0), range(count), strict=False)
    ]
    frame = raw_values(store, count * size)
    parts = [frame[at * size : (at + 1) * size].to_dict(as_series=False) for at in range(count)]
    works = works_of(models, batches, parts)
    times = in_turns(works, rounds)
    lines = []
    for name, found in times.items():
        contender, _, what = name.rpartition(": ")
        like = "model" if what == "values" else what
        lines.append(
            {
                "threads": threads,
                "batch": size,
                "contender": contender,
                "what": what,
                "p50_ms": round(float(np.percentile(found, 50)) * 1e3, 4),
                "p99_ms": round(float(np.percentile(found, 99)) * 1e3, 4),
                "rows_per_second": round(size / float(np.median(found))),
                "over_full_packed": round(ratio(found, times[f"full packed: {like}"]), 2),
            }
        )
    return lines


def file_rate(model: PackedModel, store: Store, folder: Path) -> dict[str, Any]:
    """Return rows a second from a TSV of the test rows to probabilities."""
    rows = store.split("test").rows
    raw_values(store, rows).write_csv(folder / "rows.tsv", separator="\t")
    begun = time.perf_counter()
    scored = sum(len(scores) for scores in model.predict_file(folder / "rows.tsv"))
    seconds = time.perf_counter() - begun
    assert scored == rows
    return {"rows": rows, "rows_per_second": round(rows / seconds)}


def sizes(models: dict[str, Predictor], folder: Path) -> dict[str, Any]:
    """Return bytes of the exported models."""
    packed = {
        name.removesuffix(" packed"): model.tables.file_bytes
        for name, model in models.items()
        if isinstance(model, PackedModel)
    }
    vocabulary = (folder / "full.packed" / "vocabulary.safetensors").stat().st_size
    return {"tables": packed, "vocabularies": vocabulary}


def check(models: dict[str, Predictor], store: Store) -> None:
    """Make sure that contenders of the same rows give the same logits, and values those of ids."""
    batch = next(iter(Loader(store, "test", 4096, prefetch=0)))
    packed = cast(PackedModel, models["full packed"])
    expected = packed(batch)
    torch.testing.assert_close(models["torchrec fp32"](batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(models["torchrec int8"](batch), expected, rtol=0.05, atol=0.05)
    scores = torch.from_numpy(packed.predict(raw_values(store, 4096)))
    torch.testing.assert_close(scores, expected.double().sigmoid(), rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="for data and models; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        models, store = contenders(folder, options.rows)
        check(models, store)
        lines = [
            line
            for threads in options.threads
            for size, rounds in ROUNDS.items()
            for line in measure(models, store, size, threads, rounds)
        ]
        result = {
            "bytes": sizes(models, folder),
            "file": file_rate(cast(PackedModel, models["full packed"]), store, folder),
            "cells": lines,
        }
    for line in lines:
        print(
            f"{line['threads']} {line['batch']:5} {line['contender']:32} {line['what']:7} "
            f"{line['p50_ms']:9.3f} {line['p99_ms']:9.3f} ms {line['rows_per_second']:10,} rows/s "
            f"x {line['over_full_packed']:.2f}"
        )
    print(result["bytes"], result["file"])
    write_result("serving", result)
