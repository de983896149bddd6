"""How many rows a second does a whole epoch train, beside the CTR libraries that people use?

    make bench-setup                                                  (once: the libraries' environments)
    python -m bench.training --frappe DIR --amazon DIR [--rounds 2] [--threads 2]

AutoInt, DCN-V2, DeepFM and DIN with the same architecture (equal numbers of trained parameters, or
the line says that it compares unlike models), rows, batches, epochs, learning rate, initial scale
and threads, in float32, here also in bfloat16 where the CPU has the instructions. Each runner is a
process of its own; ours run right before each library's, round by round, so that a machine that slows
down slows both. Round r has seed r. A win counts where our test AUC is not lower beyond seed noise.

Cells `frappe/*` follow the BARS protocol: dense Adam with L2 over every row at every step, for all.
In the others our rows are trained by lazy Adam, the libraries' by the dense Adam that they have.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import RESULTS, known_cells
from data.loader import Loader
from data.store import Store
from trainer.config import RunConfig
from trainer.datasets import open_store
from trainer.machine import use_bfloat16
from trainer.records import without_command
from trainer.rundir import environment

PRECISION = ("fp32", "bf16") if use_bfloat16("auto", torch.device("cpu")) else ("fp32",)
"""Our precisions: bfloat16 where the CPU has the instructions."""

PEERS_HOME = Path(".venv-peers")
RUNNERS = Path(__file__).parent / "peers"
PEERS = {
    "fuxictr": (PEERS_HOME / "fuxictr", "fuxictr_runner.py"),
    "deepctr": (PEERS_HOME / "deepctr", "deepctr_runner.py"),
    "rechub": (PEERS_HOME / "deepctr", "rechub_runner.py"),
}
"""Name -> environment and runner."""

SEED_NOISE = 5e-4
"""AUC that seeds of one model are apart: five runs of a BARS model have a std of .0002 to .0008."""


@dataclass(frozen=True)
class Cell:
    """One architecture on one data set.

    Attributes:
        data: data section of the configuration; a root of "frappe" or "amazon" is given by the user.
        model: model section.
        l2: of dense Adam (BARS); 0 trains our rows by lazy Adam.
        choose: the epoch on validation, with early stopping (FuxiCTR alone), instead of the last one.
    """

    name: str
    data: dict[str, Any]
    model: dict[str, Any]
    batch_size: int = 4096
    epochs: int = 2
    l2: float = 0.0
    choose: bool = False


FRAPPE = {"kind": "frappe_x1", "root": "frappe"}
CRITEO = {"kind": "synthetic", "rows": 1_000_000, "scale": 1.0}
AMAZON = {"kind": "amazon", "root": "amazon", "max_length": 100}
HIDDEN = {"hidden": [400, 400, 400]}
NORMED = {**HIDDEN, "batch_norm": True}
BARS_DCNV2 = {"kind": "dcnv2", "dim": 10, "cross_layers": 4, **NORMED, "dropout": 0.4}
BARS_AUTOINT = {"kind": "autoint", "dim": 10, "layers": 6, "heads": 4, "attention_dim": 128}
SQUARE_AUTOINT = {"kind": "autoint", "dim": 16, "layers": 3, "heads": 2, "attention_dim": 16}
DIN = {"kind": "din", "dim": 32, "attention_hidden": [64, 32], "hidden": [256, 128]}
RELU = {"attention_activation": "relu", "activation": "relu"}

CELLS = (
    Cell(
        "frappe/deepfm",
        FRAPPE,
        {"kind": "deepfm", "dim": 10, **NORMED, "dropout": 0.2},
        epochs=4,
        l2=0.05,
    ),
    Cell("frappe/dcnv2", FRAPPE, BARS_DCNV2, epochs=4, l2=0.05),
    Cell("frappe/autoint", FRAPPE, {**BARS_AUTOINT, "scale": False}, l2=0.05),
    # Interacting layers as wide as the embedding: the form that every library has.
    Cell("frappe/autoint-square", FRAPPE, SQUARE_AUTOINT, epochs=4, l2=0.05),
    Cell("criteo/deepfm", CRITEO, {"kind": "deepfm", "dim": 16, **HIDDEN}, epochs=1),
    Cell(
        "criteo/dcnv2", CRITEO, {"kind": "dcnv2", "dim": 16, "numeric": "value", **HIDDEN}, epochs=1
    ),
    Cell("criteo/autoint", CRITEO, SQUARE_AUTOINT, epochs=1),
    Cell("amazon/din", AMAZON, {**DIN, **RELU}, batch_size=1024),
    Cell("amazon/din-dice", AMAZON, {**DIN, "softmax": True}, batch_size=1024),
)


def run_config(cell: Cell, options: argparse.Namespace, seed: int, precision: str) -> RunConfig:
    """Return our whole configuration of a run."""
    data = dict(cell.data)
    if "root" in data:
        data["root"] = str(getattr(options, data["root"]).resolve())
    rows: dict[str, Any] = {"kind": "adam", "lr": options.lr}
    if cell.l2:
        rows = {"kind": "dense_adam", "lr": options.lr, "l2": cell.l2}
    train = {
        "batch_size": cell.batch_size,
        "epochs": cell.epochs,
        "seed": seed,
        "patience": cell.epochs,
        "reduce_lr": None,
        # FuxiCTR always clips so; with the L2 of BARS it decides how fast the first epochs learn.
        "clip_norm": 10.0 if cell.l2 else None,
        "limit_batches": options.rows and math.ceil(options.rows / cell.batch_size),
        "precision": precision,
    }
    tree = {
        "data": data,
        "model": cell.model,
        "init": {"kind": "normal", "scale": 1e-4},
        "rows": rows,
        "dense": {"kind": "adam", "lr": options.lr},
        "train": train,
    }
    return RunConfig.model_validate(tree)


def export(store: Store, folder: Path) -> None:
    """Write a prepared store as the plain arrays that `bench.peers.job` reads."""
    if (folder / "data.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {table.name: table.rows for table in store.schema.tables}
    fields = [
        {"name": c.name, "table": c.table_name, "rows": sizes[c.table_name], "kind": c.kind}
        for c in store.schema.fields
    ]
    parts = {name: _columns(store, name) for name in store.schema.rows}
    jagged = [column.name for column in store.schema.fields if column.kind != "categorical"]
    longest = {c: max(int(split[c][1].max()) for split in parts.values()) for c in jagged}
    for name, columns in parts.items():
        for column, (values, lengths) in columns.items():
            array = padded(values, lengths, longest[column]) if column in longest else values
            np.save(folder / f"{name}.{column}.npy", array)
    description = {"numeric": store.schema.numeric, "fields": fields}
    (folder / "data.json").write_text(json.dumps(description))


def _columns(store: Store, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return column -> (values, lengths of its rows [N]) of a split, in the store's order."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in Loader(store, split, 1 << 16):
        ones = np.ones(len(batch.label), np.int64)
        columns = {"label": (batch.label.numpy(), ones), "dense": (batch.dense.numpy(), ones)}
        for name, bags in batch.features.to_dict().items():
            columns[name] = (bags.values().numpy().astype(np.int32), bags.lengths().numpy())
        for name, column in columns.items():
            found.setdefault(name, []).append(column)
    return {
        name: (np.concatenate([c[0] for c in column]), np.concatenate([c[1] for c in column]))
        for name, column in found.items()
    }


def padded(values: np.ndarray, lengths: np.ndarray, longest: int) -> np.ndarray:
    """Return a jagged column as [N, longest] int32, zeros behind the ids of a row."""
    found = np.zeros((len(lengths), longest), np.int32)
    found[np.arange(longest) < lengths[:, None]] = values
    return found


def run_cell(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds of a cell and return its line of the result."""
    runs: dict[str, list[dict[str, Any]]] = {}
    pairs: dict[str, dict[str, list[float]]] = {}
    peers = [name for name in PEERS if options.only is None or name in options.only] or [""]
    for seed in range(options.rounds):
        for peer in peers:
            if peer in runs and "failure" in runs[peer][-1]:
                continue
            speeds = {}
            for runner in (*PRECISION, peer) if peer else PRECISION:
                found = run_one(cell, options, seed, runner)
                runs.setdefault(runner, []).append(found)
                speeds[runner] = found.get("rows_per_second")
                _progress(cell, runner, found)
            if peer and all(speeds.values()):
                for runner, speed in speeds.items():
                    pairs.setdefault(peer, {}).setdefault(runner, []).append(speed)
    return {
        "name": cell.name,
        "date": date.today().isoformat(),
        "environment": without_command(environment()),
        "threads": options.threads,
        "data": {k: v for k, v in cell.data.items() if k != "root"},
        "model": run_config(cell, options, 0, "fp32").model.model_dump(mode="json"),
        "training": {
            "batch_size": cell.batch_size,
            "epochs": cell.epochs,
            "lr": options.lr,
            "l2": cell.l2,
            "our_rows": "dense_adam" if cell.l2 else "adam",
        },
        "runners": summarise(runs, pairs),
    }


def run_one(cell: Cell, options: argparse.Namespace, seed: int, runner: str) -> dict[str, Any]:
    """Run one process to its end and return its answer, with rows a second."""
    ours = runner in PRECISION
    config = run_config(cell, options, seed, runner if ours else "fp32")
    store = open_store(config)
    arrays = options.work / store.path.name
    export(store, arrays)
    limit = config.train.limit_batches or math.inf
    rows = {
        "train": int(min(store.schema.rows["train"], limit * config.train.batch_size)),
        "test": int(min(store.schema.rows["test"], limit * config.train.eval_batch_size)),
    }
    if cell.choose:
        rows["valid"] = store.schema.rows["valid"]
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        job = {
            "data": str(arrays),
            "model": config.model.model_dump(mode="json"),
            "batch_size": cell.batch_size,
            "epochs": cell.epochs,
            "lr": options.lr,
            "l2": cell.l2,
            "seed": seed,
            "choose": cell.choose,
            "rows": rows,
            "threads": options.threads,
            "work": work,
            "config": config.plain(),
        }
        home, script = (None, "embtables_runner.py") if ours else PEERS[runner]
        python = sys.executable if home is None else str(home / "bin" / "python")
        found = _start(python, RUNNERS / script, job)
    if "failure" not in found:
        # The first epoch also pays for what happens once: compiling, allocating, reading files.
        after = found["seconds"][1:] or found["seconds"]
        found["rows_per_second"] = rows["train"] * len(after) / sum(after)
    return found


def _start(python: str, script: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of a runner, or why there is none."""
    if not Path(python).exists():
        return {"failure": "not installed: make bench-setup"}
    file = Path(job["work"]) / "job.json"
    file.write_text(json.dumps(job))
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(job["threads"])
    )
    # A runner imports no module of this folder but through its own environment.
    done = subprocess.run(
        [python, str(script), str(file)],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"failure": f"exit status {done.returncode}: {last}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def summarise(
    runs: dict[str, list[dict[str, Any]]], pairs: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Return runner -> medians over rounds, and for the libraries how ours compares."""
    lines: dict[str, Any] = {}
    for runner, found in runs.items():
        done = [one for one in found if "failure" not in one]
        if not done:
            lines[runner] = {"failure": found[-1]["failure"]}
            continue
        by_seed = list({one["auc"]: one for one in done}.values())
        lines[runner] = {
            "rows_per_second": round(statistics.median(one["rows_per_second"] for one in done)),
            "rows_per_second_rounds": [round(one["rows_per_second"]) for one in done],
            "seconds": [[round(s, 3) for s in one["seconds"]] for one in done],
            "parameters": done[0]["parameters"],
            "auc": [one["auc"] for one in by_seed],
            "logloss": [one["logloss"] for one in by_seed],
            "peak_memory_bytes": max(one["peak_memory_bytes"] for one in done),
            "versions": done[0]["versions"],
            **({"note": done[0]["note"]} if "note" in done[0] else {}),
        }
    for peer, speeds in pairs.items():
        lines[peer]["ours"] = {
            ours: compare(lines[ours], lines[peer], speeds[ours], speeds[peer])
            for ours in PRECISION
        }
    return lines


def compare(
    ours: dict[str, Any], peer: dict[str, Any], our_speed: list[float], peer_speed: list[float]
) -> dict[str, Any]:
    """Return how many times as fast ours is, and whether that counts."""
    here, there = (sum(line["parameters"].values()) for line in (ours, peer))
    gap = statistics.fmean(ours["auc"]) - statistics.fmean(peer["auc"])
    noise = max(SEED_NOISE, 2 * math.hypot(_error(ours["auc"]), _error(peer["auc"])))
    ratio = statistics.median(our_speed) / statistics.median(peer_speed)
    result = {"times_as_fast": round(ratio, 3), "auc_gap": gap, "auc_noise": noise}
    if here != there:
        return {**result, "counts": False, "why": f"not comparable: {here} vs {there} parameters"}
    if gap < -noise:
        return {**result, "counts": False, "why": "our AUC is lower beyond seed noise"}
    return {**result, "counts": True, "win": ratio > 1}


def _error(values: Sequence[float]) -> float:
    """Return the standard error of a mean over seeds."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _progress(cell: Cell, runner: str, found: dict[str, Any]) -> None:
    told = found.get("failure") or (
        f"{found['rows_per_second']:,.0f} rows/s, AUC {found['auc']:.5f}, epochs "
        + " ".join(f"{s:.1f}" for s in found["seconds"])
    )
    print(f"  {cell.name} {runner}: {told}", file=sys.stderr, flush=True)


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print one line a runner: speed, AUC, size, and how many times as fast ours is."""
    print(f"{'cell':22} {'runner':9} {'rows/s':>10} {'AUC':>17} {'parameters':>12} {'ours/it':>14}")
    for line in lines:
        for runner, one in line["runners"].items():
            head = f"{line['name']:22} {runner:9}"
            if "failure" in one:
                print(f"{head} {one['failure']}")
                continue
            spread = max(one["auc"]) - min(one["auc"])
            ratios = [f"{r['times_as_fast']:.2f}" for r in one.get("ours", {}).values()]
            reasons = {r["why"] for r in one.get("ours", {}).values() if "why" in r}
            print(
                f"{head} {one['rows_per_second']:>10,} "
                f"{statistics.fmean(one['auc']):>9.5f} ±{spread / 2:.5f} "
                f"{sum(one['parameters'].values()):>12,} {' / '.join(ratios):>14}  "
                f"{'; '.join(sorted(reasons))}"
            )


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frappe", type=Path, help="folder of Frappe_x1; without it no frappe/*")
    parser.add_argument("--amazon", type=Path, help="folder of Amazon; without it no amazon/*")
    parser.add_argument("--cells", default="*", help="pattern of names, such as 'criteo/*'")
    parser.add_argument("--only", nargs="*", choices=PEERS, help="libraries; none: ours alone")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each runner, seeds 0, 1, ..")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every runner")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--rows", type=int, help="train on so many rows, to try things out: no file"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench/training"), help="scratch")
    return parser


def main() -> None:
    """Run the chosen cells; each is in the result as soon as it is done."""
    options = arguments().parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [cell for cell in CELLS if fnmatch.fnmatch(cell.name, options.cells)]
    file = RESULTS / "training.json"
    kept = {line["name"]: line for line in known_cells("training")}
    lines = []
    for cell in chosen:
        if "root" in cell.data and getattr(options, cell.data["root"]) is None:
            print(f"{cell.name}: left out, --{cell.data['root']} is not given", file=sys.stderr)
            continue
        lines.append(run_cell(cell, options))
        if options.only and cell.name in kept:  # the other libraries stay as they were measured
            lines[-1]["runners"] = kept[cell.name]["runners"] | lines[-1]["runners"]
        kept[cell.name] = lines[-1]
        if options.rows is None:
            ordered = [kept[one.name] for one in CELLS if one.name in kept]
            result = {"question": "training", "cells": ordered}
            file.write_text(json.dumps(result, indent=1) + "\n")
    print_table(lines)


if __name__ == "__main__":
    main()
