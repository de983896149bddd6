"""Runs as lines of numbers, for a data frame: one line a run, failed ones too."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.records import Record
from trainer.report.sections import SIZES, Cell, Section


def lines_of(section: Section) -> list[dict[str, Any]]:
    """Return one flat line a run of a section: what it is, and what was measured of it."""
    runs = [(cell, run) for cell in section.cells for run in (*cell.runs.values(), *cell.failures)]
    return [_line(section, cell, run) for cell, run in runs]


def write_lines(lines: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write results.csv and results.json (records): every line has every column."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    whole = [{column: line.get(column) for column in columns} for line in lines]
    (folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n")


def _line(section: Section, cell: Cell, run: Record) -> dict[str, Any]:
    summary = run.summary or {}
    asked = {key: summary.get(key, cell.values.get(key)) for key in SIZES}
    line: dict[str, Any] = {
        "name": section.records.name,
        "recipe": section.records.recipe,
        "data": summary.get("data"),
        "model": summary.get("model"),
        "table": cell.table,
        **asked,
        **cell.beside,
        **run.tuned,
        "seed": run.seed,
        "failure": run.failure,
    }
    for split in ("valid", "test"):
        line |= {f"{split}_{key}": value for key, value in summary.get(split, {}).items()}
    line |= {f"bytes_{key}": value for key, value in summary.get("bytes", {}).items()}
    line |= {f"seconds_{key}": value for key, value in summary.get("seconds", {}).items()}
    for key in ("epoch", "epochs_trained", "rows_per_second", "peak_memory_bytes"):
        line[key] = summary.get(key)
    line["machine"] = section.machine(run) or None
    line["rows_trained"] = sum(stage["rows"] for stage in summary.get("stages", [])) or None
    return line
