"""What a report is about: cells of one data set and one model, from any number of runs and sweeps."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.store import Store
from trainer import fields
from trainer.metrics import sign_of
from trainer.overrides import leaves
from trainer.records import FILE, Record, Records, differing, read_records
from trainer.report.texts import bytes_text
from trainer.rundir import computed
from trainer.runs import FinishedRun

SIZES = ("ratio", "budget")
"""Keys that say how large the tables are."""


SAME_BYTES = 1.01
"""Sizes within this factor are one size."""


TABLES = "tables"
"""Key of a summary: what every table of the run is made of. Records of a report have it of one seed of
the cells whose tables are looked at, and of narrow ones."""


METRICS = {
    "auc": "AUC",
    "logloss": "logloss",
    "gauc": "GAUC",
    "recall": "recall@k",
    "ndcg": "NDCG@k",
}
"""Metric -> its title."""


@dataclass(eq=False)
class Cell:
    """One line of a comparison: the same configuration with several seeds.

    Attributes:
        values: axis -> value, as in `trainer.records.Record`.
        config: the configuration that the values change.
        runs: seed -> finished run.
        failures: what did not finish.
        folders: seed -> run directory, of those that are at hand.
    """

    values: dict[str, Any]
    config: dict[str, Any]
    runs: dict[int, Record] = field(default_factory=dict)
    failures: list[Record] = field(default_factory=list)
    folders: dict[int, Path] = field(default_factory=dict)

    @cached_property
    def table(self) -> str:
        """What its tables are made of."""
        return str(self._known["table"])

    @cached_property
    def beside(self) -> dict[str, Any]:
        """What it changes besides the table of most fields and the size."""
        return {k: v for k, v in self.values.items() if k not in ("table", *SIZES)}

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What it changes besides its tables: comparisons are made within one setting."""
        return {k: v for k, v in self.beside.items() if not k.startswith("fields")}

    @cached_property
    def size(self) -> str:
        """The size that was asked for, empty if none was."""
        ratio, budget = (self._known.get(key) for key in SIZES)
        if ratio is not None:
            return f"ratio {ratio:g}" if isinstance(ratio, float | int) else f"ratio {ratio}"
        return "" if budget is None else f"budget {bytes_text(budget)}"

    @cached_property
    def method(self) -> str:
        """All but the size: what is drawn as one line over the sizes."""
        return ", ".join([self.table, *(f"{k}={v}" for k, v in self.beside.items())])

    @property
    def name(self) -> str:
        """Method and size."""
        return f"{self.method}, {self.size}" if self.size else self.method

    @cached_property
    def role(self) -> str:
        """Which baseline it is: full, narrow, cut (the frequency cut), or none."""
        if not self.runs or self.beside != self.setting or self.config.get("fields"):
            return ""
        if self.table == "full":
            uncompressed = max(self.numbers("bytes", "uncompressed"))
            return "full" if self.bytes >= uncompressed else "narrow"
        is_cut = self.table.split("(")[0] == "frequency_cut" and "+" not in self.table
        return "cut" if is_cut else ""

    def by_seed(self, *path: str) -> dict[int, float]:
        """Return seed -> a number in the summary, such as test, auc; without what is not known."""
        found = {seed: _at(run.summary, path) for seed, run in self.runs.items()}
        return {seed: number for seed, number in found.items() if number is not None}

    def numbers(self, *path: str) -> list[float]:
        """Return a number in the summary of each seed that has it."""
        return list(self.by_seed(*path).values())

    def mean(self, *path: str) -> float | None:
        """Return the mean over seeds of a number in the summary, None if it is not known."""
        numbers = self.numbers(*path)
        return statistics.fmean(numbers) if numbers else None

    def spread(self, *path: str) -> float | None:
        """Return the standard deviation over seeds, None below two."""
        numbers = self.numbers(*path)
        return statistics.stdev(numbers) if len(numbers) > 1 else None

    @cached_property
    def bytes(self) -> float:
        """Bytes of the packed tables, the mean over seeds."""
        return statistics.fmean(self.numbers("bytes", "file"))

    @cached_property
    def rows_trained(self) -> float:
        """Rows that were trained on in all stages, the mean over seeds."""
        stages = [run.summary["stages"] for run in self.runs.values() if run.summary]
        return statistics.fmean(sum(stage["rows"] for stage in some) for some in stages)

    @property
    def shown(self) -> Record:
        """The run whose tables are shown: the first whose fields were measured, or that has tables."""
        runs = self.runs.values()
        return max(runs, key=lambda run: (bool(run.fields), TABLES in (run.summary or {})))

    def enriched(self, with_tables: bool) -> list[Record]:
        """Return its records with all that is known of them, and tables of the run shown at most.

        All others would be most of what the records hold, and no report reads them.
        """
        shown = self.shown if self.runs and with_tables else None
        runs = [run if run is shown else _without_tables(run) for run in self.runs.values()]
        return [*runs, *self.failures]

    @property
    def _known(self) -> dict[str, Any]:
        """What a run says of its table and size, or else what was asked for."""
        return next((run.summary for run in self.runs.values() if run.summary), self.values)


@dataclass
class Section:
    """The cells of one data set and one model.

    Attributes:
        records: all runs, what they have in common, and what is known of them.
        cells: in the order of the runs.
    """

    records: Records
    cells: list[Cell]

    @cached_property
    def done(self) -> list[Cell]:
        """Cells with a finished run."""
        return [cell for cell in self.cells if cell.runs]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of what was measured on the test rows."""
        return [name for name in METRICS if any(cell.numbers("test", name) for cell in self.done)]

    @cached_property
    def machines(self) -> dict[str, int]:
        """Machine -> how many runs were made on it."""
        runs = (run for cell in self.done for run in cell.runs.values())
        return dict(Counter(map(self.machine, runs)))

    def machine(self, run: Record) -> str:
        """Return where a run was made, such as "AMD EPYC, AVX2, 2 cores, 1 thread"."""
        known = {**self.records.environment, **run.environment}
        names = [known.get(key) for key in ("cpu", "cpu_capability", "gpu")]
        counts = [(known.get(key), key) for key in ("cores", "threads", "ranks")]
        return ", ".join(
            [str(name) for name in names if name]
            + [f"{n} {key if n > 1 else key[:-1]}" for n, key in counts if n]
        )

    @cached_property
    def store(self) -> Store | None:
        """The prepared data, if they are at hand."""
        runs = (FinishedRun.open(path) for cell in self.done for path in cell.folders.values())
        return next((store for run in runs if (store := run.prepared_store())), None)

    def full(self, cell: Cell) -> Cell | None:
        """Return the full table in the setting of a cell."""
        found = (c for c in self.done if c.role == "full" and c.setting == cell.setting)
        return next(found, None)

    def narrow(self, cell: Cell) -> Cell | None:
        """Return the largest narrow full table, in the setting of a cell, that is no larger.

        One of the same size but for a few bytes, as two methods under one budget have, counts too.
        """
        found = [
            other
            for other in self.done
            if other.role == "narrow" and other is not cell and other.setting == cell.setting
            if other.bytes <= SAME_BYTES * cell.bytes
        ]
        return max(found, key=lambda other: other.bytes, default=None)

    def front(self, metric: str) -> list[Cell]:
        """Return the Pareto front by rising bytes: cells better than all that are no larger."""
        sign, best, found = sign_of(metric), -math.inf, []
        points = [
            (cell.bytes, -sign * value, cell)
            for cell in self.done
            if (value := cell.mean("test", metric)) is not None
        ]
        for _, loss, cell in sorted(points, key=lambda point: point[:2]):
            if -loss > best:
                best = -loss
                found.append(cell)
        return found

    def shown_fields(self) -> list[Cell]:
        """Return the cells whose tables are looked at one by one: full ones, and the front.

        A cell that other records bring onto the front has no tables unless its run is at hand.
        """
        front = self.front(self.metrics[0]) if self.metrics else []
        return [cell for cell in self.done if cell.role == "full" or cell in front]

    def measure_fields(self) -> None:
        """Measure the tables of the cells that are shown (`trainer.fields`), each with one seed."""
        for cell in self.shown_fields():
            if self.store is not None and cell.folders and not cell.shown.fields:
                seed, path = next(iter(cell.folders.items()))
                found = fields.fields_of(FinishedRun.open(path), self.store)
                cell.runs[seed] = cell.runs[seed].model_copy(update={"fields": found})

    def enriched(self) -> Records:
        """Return the records with all that is known of their runs, to make the report elsewhere."""
        looked_at = {*self.shown_fields(), *(c for c in self.done if c.role == "narrow")}
        runs = [run for cell in self.cells for run in cell.enriched(cell in looked_at)]
        # Every cell says its own size; one of the configuration would be that of cells without any.
        config = self.records.config | dict.fromkeys(SIZES)
        return self.records.model_copy(update={"runs": runs, "config": config})


def read_sections(paths: Sequence[Path]) -> list[Section]:
    """Return the cells of run directories, sweep directories and files of records.

    What has the same data and model is one section. A run beside a sweep, or beside another run, is a
    cell of what its configuration changes.

    Raises:
        ValueError: a path is none of these, or there are two different runs of one cell and seed.
    """
    together: dict[tuple[str, ...], list[Records]] = {}
    folders: dict[str, Path] = {}
    for path in paths:
        records = read_records(path)
        together.setdefault(_subject(records), []).append(records)
        folders |= _run_folders(path)
    return [_section(records, folders) for records in together.values()]


def _subject(records: Records) -> tuple[str, ...]:
    for run in records.runs:
        if run.summary is not None:
            return run.summary["data"], run.summary["model"]
    return (records.recipe,)


def _run_folders(path: Path) -> dict[str, Path]:
    """Return identity -> directory of the finished runs below a run, a sweep, or its records."""
    top = path.parent if path.name == FILE else path
    files = top.rglob("summary.json") if top.is_dir() else ()
    return {_identity(json.loads(file.read_text())): file.parent for file in files}


def _section(together: Sequence[Records], folders: dict[str, Path]) -> Section:
    sweeps = [records for records in together if records.axes]
    first = (sweeps or together)[0]
    cells: dict[str, Cell] = {}
    for records in together:
        for run in records.runs:
            values = _values(run.cell, records.config, first.config)
            cell = cells.setdefault(_same(values), Cell(values, first.config))
            where = differing({**records.environment, **run.environment}, first.environment)
            _add(cell, run.model_copy(update={"cell": values, "environment": where}), folders)
    name = first.name if sweeps or len(together) == 1 else first.recipe
    errors = [
        error.model_copy(
            update={"cells": tuple(_values(c, records.config, first.config) for c in error.cells)}
        )
        for records in together
        for error in records.rows_errors
    ]
    section = Section(first.model_copy(update={"name": name}), list(cells.values()))
    bayes = first.bayes or (section.store.stats.get("bayes") if section.store else None)
    section.records = section.records.model_copy(update={"bayes": bayes, "rows_errors": errors})
    return section


def _values(cell: dict[str, Any], config: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Return table, size and all that a cell of one configuration changes of the first one."""
    given = {key: config[key] for key in ("table", *SIZES) if config.get(key) is not None}
    if cell.keys() & set(SIZES):
        given = {"table": given["table"]}
    values = given | changes(first, config) | cell
    return {key: value for key, value in values.items() if key not in SIZES or value is not None}


def _add(cell: Cell, run: Record, folders: dict[str, Path]) -> None:
    cell.failures = [one for one in cell.failures if one.seed != run.seed]
    if run.summary is None:
        if run.seed not in cell.runs:
            cell.failures.append(run)
        return
    identity, other = _identity(run.summary), cell.runs.get(run.seed)
    if other is not None and other.summary is not None:
        if _identity(other.summary) != identity:
            raise ValueError(
                f"two different runs of {cell.name} with seed {run.seed} were given; leave one out"
            )
        known = {"summary": other.summary | run.summary, "fields": run.fields or other.fields}
        run = run.model_copy(update=known)
    folder = folders.get(identity)
    if folder is not None:
        cell.folders[run.seed] = folder
        whole = json.loads((folder / "summary.json").read_text())
        run = run.model_copy(update={"summary": whole})
        kept = folder / fields.FILE
        if kept.exists():
            run = run.model_copy(update={"fields": json.loads(kept.read_text())})
    cell.runs[run.seed] = run


def changes(base: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return key -> value of what a configuration changes, besides seed, table and size.

    The value of a key that it lacks is None, as is that of a section that is taken back.
    """
    before, after = (dict(leaves(computed(one))) for one in (base, config))
    above = {path[:depth] for path in after for depth in range(1, len(path))}
    gone = [p for p in before if not any(p[:depth] in after for depth in range(1, len(p) + 1))]
    found = after | dict.fromkeys(path for path in gone if path not in above)
    return {
        ".".join(path): value
        for path, value in found.items()
        if path not in before or before[path] != value
        if path not in {("train", "seed"), ("table",), *((size,) for size in SIZES)}
    }


def _without_tables(run: Record) -> Record:
    kept = {key: value for key, value in (run.summary or {}).items() if key != TABLES}
    return run.model_copy(update={"summary": kept})


def _identity(summary: dict[str, Any]) -> str:
    """Return one text for the summaries of one run, whether they have its tables or not."""
    return _same({key: value for key, value in summary.items() if key != TABLES})


def _same(value: Any) -> str:
    """Return one text for equal JSON values."""
    return json.dumps(value, sort_keys=True)


def _at(tree: Any, path: Iterable[str]) -> Any:
    for key in path:
        tree = None if tree is None else tree.get(key)
    return tree
