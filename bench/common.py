"""What the benchmarks share: run every (cell, seed) once, keep it, and write one JSON of them all.

A cell is a recipe with overrides. Every run is what `embtables train` does, kept in its run directory,
so that a broken benchmark goes on where it stopped. A run that failed stays in the result, with its
reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from trainer.config import load_config
from trainer.loop import train
from trainer.rundir import environment

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """One line of a benchmark's table.

    Attributes:
        name: what the line is called.
        recipe: recipe that is trained.
        overrides: ``key=value`` texts laid over it.
        published: values of a source outside this repository to hold it against.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    published: dict[str, float] | None = None


def arguments(description: str | None, needs_data: bool = True) -> argparse.ArgumentParser:
    """Return the command line of a benchmark."""
    parser = argparse.ArgumentParser(description=description)
    if needs_data:
        parser.add_argument("root", type=Path, help="folder of the raw data")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="of each run; default: cores / jobs")
    parser.add_argument("--finished", action="store_true", help="run nothing, report what there is")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="run directories")
    return parser


def run_cells(question: str, cells: Sequence[Cell], options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, print the table, write ``results/<question>.json`` and return it."""
    pairs = [(cell, seed) for cell in cells for seed in range(options.seeds)]
    folders = [options.runs / question / f"{_slug(cell.name)}-seed{seed}" for cell, seed in pairs]
    root = [f"data.root={options.root.resolve()}"] if hasattr(options, "root") else []

    jobs = [
        (cell.recipe, (*root, *cell.overrides, f"train.seed={seed}"), folder, options.finished)
        for (cell, seed), folder in zip(pairs, folders, strict=True)
    ]
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (threads,)) as pool:
        outcomes = list(pool.map(_run, jobs))
    by_cell = [
        _cell(cell, [one for (other, _), one in zip(pairs, outcomes, strict=True) if other is cell])
        for cell in cells
    ]
    result = {"seeds": options.seeds, "environment": _environment(folders), "cells": by_cell}
    print_table(by_cell)
    return write_result(question, result)


def write_result(question: str, found: dict[str, Any]) -> dict[str, Any]:
    """Write ``results/<question>.json``, with the environment unless it is there, and return it."""
    here = {key: value for key, value in environment().items() if key != "command"}
    result = {"question": question, "date": date.today().isoformat(), "environment": here, **found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{question}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def known_cells(question: str) -> list[dict[str, Any]]:
    """Return the cells of ``results/<question>.json``, none if it is not there."""
    file = RESULTS / f"{question}.json"
    return json.loads(file.read_text())["cells"] if file.exists() else []


def print_table(cells: Sequence[dict[str, Any]]) -> None:
    """Print one line a cell: mean and spread over seeds."""
    print(f"{'cell':44} {'AUC':>16} {'logloss':>16} {'GAUC':>16} {'bytes':>12} {'ratio':>7}")
    for cell in cells:
        if "test" not in cell:
            print(f"{cell['name']:44} failed: {cell['failures'][0]}")
            continue
        numbers = [_spread(cell["test"].get(metric)) for metric in ("auc", "logloss", "gauc")]
        print(
            f"{cell['name']:44} {numbers[0]:>16} {numbers[1]:>16} {numbers[2]:>16} "
            f"{cell['bytes']['file']:12,} {cell['bytes']['file'] / cell['bytes']['uncompressed']:7.4f}"
        )


def _run(job: tuple[str, tuple[str, ...], Path, bool]) -> dict[str, Any]:
    """Return the summary of a run, or why there is none."""
    recipe, overrides, folder, finished_only = job
    if finished_only and not (folder / "summary.json").exists():
        return {"failure": "not run"}
    try:
        found = train(load_config(recipe, overrides).config, folder)
    except (ValueError, RuntimeError, OSError) as error:
        return {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    print(f"  {folder.name}: test AUC {found['test']['auc']:.5f}", file=sys.stderr, flush=True)
    return found


def _cell(cell: Cell, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [outcome for outcome in outcomes if "failure" not in outcome]
    line: dict[str, Any] = {
        "name": cell.name,
        "recipe": cell.recipe,
        "overrides": list(cell.overrides),
    }
    if cell.published:
        line["published"] = cell.published
    failures = [outcome["failure"] for outcome in outcomes if "failure" in outcome]
    if failures:
        line["failures"] = failures
    if done:
        for split in ("valid", "test"):
            line[split] = {
                metric: _over_seeds([one[split][metric] for one in done])
                for metric in ("auc", "logloss", "gauc", "calibration")
                if done[0][split].get(metric) is not None
            }
        line["bytes"] = done[0]["bytes"]
        line["epochs"] = [one["epoch"] for one in done]
        line["rows_per_second"] = [round(one["rows_per_second"]) for one in done]
    return line


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}


def _spread(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    spread = "" if metric["std"] is None else f" ±{metric['std']:.5f}"
    return f"{metric['mean']:.5f}{spread}"


def _environment(folders: Sequence[Path]) -> dict[str, Any]:
    """Return where the first run was made, without its command line, which names paths."""
    files = [folder / "env.json" for folder in folders]
    found = next((json.loads(file.read_text()) for file in files if file.exists()), {})
    found.pop("command", None)
    return found


def _slug(name: str) -> str:
    return "".join(char if char.isalnum() or char in ".-" else "_" for char in name)
