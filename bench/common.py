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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainer.config import load_config
from trainer.jobs import Job, Outcome, failed, finished, outcome_text, run_jobs
from trainer.records import Records, over_seeds, read_records, spread_text, without_command
from trainer.rundir import environment

RESULTS = Path(__file__).parent / "results"
METRICS = ("auc", "logloss", "gauc", "calibration", "recall", "recall_capped", "ndcg")

T = TypeVar("T")


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


def run_cells(
    question: str,
    cells: Sequence[Cell],
    options: argparse.Namespace,
    chosen: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run what is missing, print the table, write ``results/<question>.json`` and return it.

    The lines of cells that are not `chosen` by name stay what they are.
    """
    wanted = [cell for cell in cells if chosen is None or cell.name in chosen]
    outcomes = run_seeds(question, wanted, range(options.seeds), options)
    lines = {line["name"]: line for line in known_cells(question)}
    for cell, found in zip(wanted, outcomes, strict=True):
        where = _environment(folder_of(question, cell, 0, options))
        lines[cell.name] = describe(cell, found) | {"environment": where}
    by_cell = [lines[cell.name] for cell in cells if cell.name in lines]
    print_table(by_cell)
    return write_result(question, {"seeds": options.seeds, "cells": by_cell})


def run_seeds(
    question: str, cells: Sequence[Cell], seeds: Sequence[int], options: argparse.Namespace
) -> list[list[dict[str, Any]]]:
    """Return for each cell the summary of each seed, or {"failure": why there is none}."""
    root = [f"data.root={options.root.resolve()}"] if hasattr(options, "root") else []

    def job(cell: Cell, seed: int) -> Job:
        overrides = (*root, *cell.overrides, f"train.seed={seed}")
        config = load_config(cell.recipe, overrides).config
        return Job(config, folder_of(question, cell, seed, options))

    jobs = [[job(cell, seed) for seed in seeds] for cell in cells]
    every = [one for line in jobs for one in line]
    if options.finished:
        outcomes = {one.folder: finished(one) or failed("not run") for one in every}
    else:
        outcomes = run_jobs(lambda _: every, options.jobs, options.threads, look=_Told())
    return [[outcomes[one.folder] for one in line] for line in jobs]


class _Told:
    """Prints the outcome of each run once."""

    def __init__(self) -> None:
        self.known: set[Path] = set()

    def __call__(self, outcomes: Mapping[Path, Outcome], *_: Any) -> None:
        for folder in outcomes.keys() - self.known:
            self.known.add(folder)
            print(f"  {folder.name}: {outcome_text(outcomes[folder])}", file=sys.stderr, flush=True)


def in_processes(
    work: Callable[[Any], T], jobs: Sequence[Any], options: argparse.Namespace
) -> list[T]:
    """Return what `work` gives for each job, `options.jobs` of them at a time."""
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (threads,)) as pool:
        return list(pool.map(work, jobs))


def folder_of(question: str, cell: Cell, seed: int, options: argparse.Namespace) -> Path:
    """Return the run directory of a seed of a cell."""
    return options.runs / question / f"{_slug(cell.name)}-seed{seed}"


def write_result(question: str, found: dict[str, Any]) -> dict[str, Any]:
    """Write ``results/<question>.json``, with the environment unless it is there, and return it."""
    here = without_command(environment())
    result = {"question": question, "date": date.today().isoformat(), "environment": here, **found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{question}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def known_cells(question: str) -> list[dict[str, Any]]:
    """Return the cells of ``results/<question>.json``, none if it is not there."""
    file = RESULTS / f"{question}.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    return found["cells"] if "cells" in found else _swept(read_records(file))


def option(cell: dict[str, Any], key: str) -> str | None:
    """Return what the last override of a key says in a cell, None if there is none."""
    said = [text.partition("=")[2] for text in cell["overrides"] if text.startswith(f"{key}=")]
    return said[-1] if said else None


def _swept(records: Records) -> list[dict[str, Any]]:
    """Return the cells of a sweep over tables and ratios, the uncompressed table's first.

    ``cost`` is the number of rows trained on in all stages, validation rows of a search included, over
    that of the uncompressed table's training; ``width`` that of the widest table, where the
    records have its tables (those of full ones they do).
    """
    outcomes: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in records.runs:
        key = (run.cell["table"], run.cell["ratio"])
        outcomes.setdefault(key, []).append(run.summary or failed(run.failure or ""))
    whole = _rows_trained(outcomes.get(("full", 1.0), []))
    cells = []
    for (table, ratio), found in sorted(outcomes.items(), key=lambda one: one[0] != ("full", 1.0)):
        name = f"{'narrow' if table == 'full' else table} {ratio:g}"
        cell = Cell(name, records.recipe, (f"table={table}", f"ratio={ratio:g}"))
        if (table, ratio) == ("full", 1.0):
            cell = Cell("full", records.recipe)
        line = describe(cell, found)
        if (rows := _rows_trained(found)) and whole:
            line["cost"] = rows / whole
            widths = [table["width"] for one in found for table in one.get("tables", ())]
            if widths:
                line["width"] = max(widths)
        cells.append(line)
    return cells


def _rows_trained(outcomes: Sequence[dict[str, Any]]) -> float | None:
    rows = [sum(stage["rows"] for stage in one["stages"]) for one in outcomes if "stages" in one]
    return statistics.fmean(rows) if rows else None


def print_table(cells: Sequence[dict[str, Any]]) -> None:
    """Print one line a cell: mean and spread over seeds."""
    print(f"{'cell':44} {'AUC':>16} {'logloss':>16} {'GAUC':>16} {'bytes':>12} {'ratio':>7}")
    for cell in cells:
        if "test" not in cell:
            print(f"{cell['name']:44} failed: {cell['failures'][0]}")
            continue
        numbers = [spread_text(cell["test"].get(metric)) for metric in ("auc", "logloss", "gauc")]
        print(
            f"{cell['name']:44} {numbers[0]:>16} {numbers[1]:>16} {numbers[2]:>16} "
            f"{cell['bytes']['file']:12,} {cell['bytes']['file'] / cell['bytes']['uncompressed']:7.4f}"
        )


def describe(cell: Cell, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the line of a cell: metrics over its seeds, bytes, speed, and what failed."""
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
                metric: over_seeds([one[split][metric] for one in done])
                for metric in METRICS
                if done[0][split].get(metric) is not None
            }
        line["bytes"] = done[0]["bytes"]
        line["epochs"] = [one["epoch"] for one in done]
        line["rows_per_second"] = [round(one["rows_per_second"]) for one in done]
    return line


def _environment(folder: Path) -> dict[str, Any]:
    """Return where a run was made, without its command line, which names paths."""
    file = folder / "env.json"
    return without_command(json.loads(file.read_text())) if file.exists() else {}


def _slug(name: str) -> str:
    return "".join(char if char.isalnum() or char in ".-" else "_" for char in name)
