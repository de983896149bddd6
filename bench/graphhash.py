"""Does a map of clusters beat hashing and plain narrow tables at equal bytes, in retrieval?

    python -m bench.graphhash DIR [--seeds 3] [--jobs 2] [--methods graphhash hash] [--ratios 0.16]

Matrix factorization with BPR on Gowalla, 64 numbers a row, at about 16, 5 and 1.5 % of the bytes (1.6
instead of 1.5, where the narrow table has its one number a row). Each method has its learning rate
chosen of five or six by the validation recall of seed 0, and its epoch by that of every seed; test is
read once. Every trained table is ranked twice: items with equal scores by training count, and in an
arbitrary order. The last line ranks by training count alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import (
    Cell,
    arguments,
    describe,
    folder_of,
    in_processes,
    over_seeds,
    run_seeds,
    spread_text,
    write_result,
)
from trainer.config import load_config
from trainer.datasets import open_store
from trainer.predict import PackedModel
from trainer.retrieval import Retrieval, vectors_of

RECIPE = "gowalla/mf"
METHODS = {
    "narrow": "full",
    "hash": "hash",
    "double_hash": "double_hash",
    "frequency": "frequency",
    "double_frequency": "double_frequency",
    "graphhash": "graphhash",
    "double_graphhash": "double_graphhash",
}
RATIOS = (0.16, 0.05, 0.016)
RATES = (3e-2, 1e-2, 5e-3, 1e-3, 3e-4)
BEYOND = {3e-2: 1e-1, 3e-4: 1e-4}  # tried too by a line whose best rate is an end of the others
EPOCHS = 40  # the lowest rates are still rising after the 20 of the recipe
METRICS = ("recall", "recall_capped", "ndcg")


def contenders(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Return line -> overrides, but for the learning rate."""
    sized = {
        f"{method} {ratio:.1%}": (f"table={METHODS[method]}", f"ratio={ratio}")
        for ratio in options.ratios
        for method in options.methods
    }
    return {"full": (), **sized}


class Tuned(NamedTuple):
    """The learning rate of a line."""

    cell: Cell
    lr: float
    valid: dict[float, float]
    """Validation recall of seed 0 by rate, but for the rates whose runs failed."""


def tune(options: argparse.Namespace) -> dict[str, Tuned]:
    """Return for each line the rate with the best validation recall."""
    lines = contenders(options)
    recalls = _try(lines, dict.fromkeys(lines, RATES), options)
    ends = {n: (BEYOND[best],) for n, v in recalls.items() if v and (best := _best(v)) in BEYOND}
    for name, valid in _try(lines, ends, options).items():
        recalls[name] |= valid
    rates = {name: _best(valid) for name, valid in recalls.items()}
    return {n: Tuned(_cell(n, lines[n], rate), rate, recalls[n]) for n, rate in rates.items()}


def _try(
    lines: dict[str, tuple[str, ...]],
    rates: dict[str, tuple[float, ...]],
    options: argparse.Namespace,
) -> dict[str, dict[float, float]]:
    """Return the validation recall of seed 0 of lines by rate, but for the rates whose runs failed."""
    pairs = [(name, rate) for name, own in rates.items() for rate in own]
    cells = [_cell(name, lines[name], rate) for name, rate in pairs]
    recalls: dict[str, dict[float, float]] = {name: {} for name in rates}
    outcomes = run_seeds("graphhash", cells, [0], options)
    for (name, rate), (found,) in zip(pairs, outcomes, strict=True):
        if "valid" in found:
            recalls[name][rate] = found["valid"]["recall"]
    return recalls


def _best(valid: dict[float, float]) -> float:
    """Return the best rate; where all failed the first, with whose reason the line is reported."""
    return max(valid, key=valid.__getitem__, default=RATES[0])


def _cell(name: str, overrides: tuple[str, ...], rate: float) -> Cell:
    given = (*overrides, f"train.epochs={EPOCHS}", f"rows.lr={rate}")
    return Cell(f"{name} lr {rate:g}", RECIPE, given)


def without_tie_break(job: tuple[Path, Path]) -> dict[str, float]:
    """Return the test metrics of a finished run with ties in an arbitrary order."""
    root, folder = job
    model = PackedModel.load(folder / "model.safetensors")
    return _retrieval(root, "arbitrary").measure("test", vectors_of(model, 16384))


def _retrieval(root: Path, ties: Any) -> Retrieval:
    store = open_store(load_config(RECIPE, [f"data.root={root}"]).config)
    return Retrieval(store, "user", "item", ties=ties)


def run(options: argparse.Namespace) -> dict[str, Any]:
    root, seeds = options.root.resolve(), range(options.seeds)
    chosen = tune(options)
    outcomes = run_seeds("graphhash", [one.cell for one in chosen.values()], seeds, options)
    lines = []
    for (name, (cell, lr, valid)), found in zip(chosen.items(), outcomes, strict=True):
        line = describe(cell, found) | {"name": name, "lr": lr, "valid_recall_by_lr": valid}
        done = [seed for seed in seeds if "failure" not in found[seed]]
        jobs = [(root, folder_of("graphhash", cell, seed, options)) for seed in done]
        untied = in_processes(without_tie_break, jobs, options)
        if untied:
            line["test_without_tie_break"] = {
                metric: over_seeds([one[metric] for one in untied]) for metric in METRICS
            }
        lines.append(line)
    ranked = _retrieval(root, "popularity")
    popularity = {split: ranked.measure(split, ranked.popularity) for split in ("valid", "test")}
    return {"seeds": options.seeds, "cells": lines, "popularity": popularity} | _checks(lines)


def _checks(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what was expected, as numbers: a ratio for each size, and the gain by the tie-break."""
    recall = {line["name"]: line["test"]["recall"]["mean"] for line in lines if "test" in line}
    over = {
        name.split()[1]: recall[name] / recall[f"double_frequency {name.split()[1]}"]
        for name in recall
        if name.startswith("graphhash ") and f"double_frequency {name.split()[1]}" in recall
    }
    gains = {
        line["name"]: recall[line["name"]] - line["test_without_tie_break"]["recall"]["mean"]
        for line in lines
        if "test" in line
    }
    return {"graphhash_over_double_frequency": over, "recall_gained_by_tie_break": gains}


def show(result: dict[str, Any]) -> None:
    titles = ("recall@20", "NDCG@20", "recall, no tie-break", "bytes")
    print(f"{'table':26}{'lr':>7}" + "".join(f"{title:>22}" for title in titles))
    for line in result["cells"]:
        if "test" not in line:
            print(f"{line['name']:26} failed: {line['failures'][0]}")
            continue
        untied = line["test_without_tie_break"]["recall"]
        cells = [spread_text(m) for m in (line["test"]["recall"], line["test"]["ndcg"], untied)]
        cells.append(f"{line['bytes']['file']:,}")
        print(f"{line['name']:26}{line['lr']:7g}" + "".join(f"{cell:>22}" for cell in cells))
    test = result["popularity"]["test"]
    print(f"{'popularity':33}{test['recall']:22.5f}{test['ndcg']:22.5f}")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    found = run(parser.parse_args())
    show(found)
    write_result("graphhash", found)
