"""Sweeps: every cell of a grid on several seeds, each run once, and one file of what came of them.

A cell is one value of every axis. Each run has a directory of its own below ``runs/``; what is
finished there, or in the sweep's `results.json`, is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from data.store import Store
from trainer.config import RunConfig, load_config
from trainer.datasets import prepared
from trainer.grid import Axis, Grid, Texts
from trainer.jobs import Job, Outcome, failed, outcome_text, run_jobs
from trainer.metrics import sign_of
from trainer.overrides import differences, parse_override
from trainer.progress import Line, clock
from trainer.records import (
    FILE,
    Record,
    Records,
    differing,
    read_records,
    without_command,
    without_paths,
)
from trainer.rundir import computed, config_hash, lock

log = logging.getLogger("embtables")


def default_folder(grid: Grid) -> Path:
    """Return ``sweeps/<recipe>-<hash>``; axes and seeds may grow without changing it."""
    name = load_config(grid.recipe, grid.overrides).name.replace("/", "-")
    text = json.dumps(computed(grid.base().plain()), sort_keys=True)
    return Path("sweeps") / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep(
    grid: Grid, folder: Path, jobs: int = 1, threads: int | None = None, retry: bool = False
) -> Records:
    """Run what is missing of a grid.

    Args:
        grid: what to run.
        folder: where run directories and ``results.json`` are kept.
        jobs: runs at a time, each in a process of its own.
        threads: of each; default: the cores shared out among them.
        retry: try again what has failed before.

    Returns:
        All records of the folder, those of earlier grids on the same configuration included.

    Raises:
        ValueError: the grid or its data have problems, or the folder is in use or of another sweep.
        Interrupted: Ctrl-C; the same call goes on.
    """
    grid.check()
    own = (folder / "lock").exists() or (folder / FILE).exists()
    foreign = folder.is_dir() and any(folder.iterdir()) and not own
    if foreign or (folder / "config.yaml").exists():
        raise ValueError(f"{folder}: not empty and not a sweep; choose another --sweep-dir")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, "--sweep-dir"):
        work = _Sweep(grid, folder, retry)
        with Line() as line:
            work.line = line
            outcomes = run_jobs(work.wanted, jobs, threads, work.known(), work.look)
        return work.write(outcomes)


class _Sweep:
    """The state of a sweep: which run is which cell's, and what has been told."""

    line: Line

    def __init__(self, grid: Grid, folder: Path, retry: bool) -> None:
        self.grid, self.folder = grid, folder
        self.begun = time.monotonic()
        self.first: int | None = None
        self.told: set[Path] = set()
        self.titles: dict[Path, str] = {}
        self.jobs: dict[tuple[Texts, Texts, int], Job] = {}
        base = grid.base()
        self.head = {
            "name": folder.resolve().name,
            "recipe": load_config(grid.recipe, grid.overrides).name,
            "config": without_paths(base.plain()),
        }
        self.before = self._before(retry)
        self.older = {
            _key(one.cell, one.tuned, one.seed): one
            for one in (*self.before.trials, *self.before.runs)
        }
        sources = {config.data: config.data for config in self._configs()}
        stores = [Store.open(prepared(source)) for source in sources]
        self.data = dict(zip(sources, (store.content for store in stores), strict=True))
        if len(stores) == 1 and "bayes" in stores[0].stats:
            self.head["bayes"] = stores[0].stats["bayes"]

    def _configs(self) -> list[RunConfig]:
        cells, tunings = self.grid.cells, self.grid.tunings
        return [self.grid.config((*c, *t), 0) for c, t in product(cells, tunings)]

    def _before(self, retry: bool) -> Records:
        """Return the records that are there, without the failures that are to be tried again."""
        if not (self.folder / FILE).exists():
            return Records(**self.head, runs=[])
        found = read_records(self.folder)
        changed = differences(computed(found.config), computed(self.head["config"]))
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            raise ValueError(
                f"{self.folder}: holds a sweep of another configuration\n{lines}\n"
                "Give another --sweep-dir."
            )
        tune = _union({}, self.grid.tune)
        if found.runs and found.tune != tune:
            raise ValueError(
                f"{self.folder}: its cells were tuned over {found.tune or 'nothing'}, and this is over "
                f"{tune or 'nothing'}: every cell gets the same tries. Give the same --tune, or another "
                "--sweep-dir"
            )
        if not retry:
            return found
        kept = {
            name: [one for one in getattr(found, name) if one.failure is None]
            for name in ("runs", "trials")
        }
        return found.model_copy(update=kept)

    def known(self) -> dict[Path, Outcome]:
        """Return run directory -> outcome of what the records of before have of this grid."""
        outcomes = {}
        for cell, tuned, seed in product(
            self.grid.cells, self.grid.tunings, range(self.grid.seeds)
        ):
            one = self.older.get(_key(_values(cell), _values(tuned), seed))
            if one is not None:
                outcome = one.summary or failed(one.failure or "")
                outcomes[self.job(cell, tuned, seed).folder] = outcome
        return outcomes

    def job(self, cell: Texts, tuned: Texts, seed: int) -> Job:
        """Return the run of a cell."""
        key = (cell, tuned, seed)
        if key not in self.jobs:
            self.jobs[key] = self._job(cell, tuned, seed)
        return self.jobs[key]

    def _job(self, cell: Texts, tuned: Texts, seed: int) -> Job:
        config = self.grid.config((*cell, *tuned), seed)
        name = "-".join(
            [_slug(" ".join((*cell, *tuned))), f"seed{seed}", config_hash(config.plain())]
        )
        folder = self.folder / "runs" / name
        self.titles[folder] = " ".join((*cell, *tuned, f"seed {seed}"))
        return Job(config, folder)

    def wanted(self, outcomes: Mapping[Path, Outcome]) -> list[Job]:
        """Return the runs of all cells, first seeds first; others wait until their cell is tuned."""
        grid = self.grid
        jobs = [self.job(cell, tuned, 0) for cell, tuned in product(grid.cells, grid.tunings)]
        for seed, cell in product(range(1, grid.seeds), grid.cells):
            tuned = self.chosen(cell, outcomes)
            if tuned is not None:
                jobs.append(self.job(cell, tuned, seed))
        return jobs

    def chosen(self, cell: Texts, outcomes: Mapping[Path, Outcome]) -> Texts | None:
        """Return the tuning with the best monitored validation value; None while there is none."""
        tunings = self.grid.tunings
        if len(tunings) == 1:
            return tunings[0]
        tried = [outcomes.get(self.job(cell, tuned, 0).folder) for tuned in tunings]
        values = [None if one is None else _validation(one) for one in tried]
        able = [value for value in values if value is not None]
        return None if None in tried or not able else tunings[values.index(max(able))]

    def _check_data(self, job: Job, trained_on: str) -> None:
        now = self.data[job.config.data]
        if trained_on != now:
            raise ValueError(
                f"{self.folder}: {self.titles[job.folder]} was trained on {trained_on}, and the raw "
                f"files now give {now}: bring back the files of then, or give another --sweep-dir"
            )

    def look(self, outcomes: Mapping[Path, Outcome], running: Sequence[Path], total: int) -> None:
        """Tell what has come of the runs since the last look, and keep it."""
        if self.first is None:
            self.first = len(outcomes)
            self.told = set(outcomes)
            self.write(outcomes)
        new = [folder for folder in outcomes if folder not in self.told]
        for folder in new:
            log.info("%s: %s", self.titles[folder], outcome_text(outcomes[folder]))
        if new:
            self.told.update(new)
            self.write(outcomes)
        self.line.show(lambda: self._text(outcomes, running, total))

    def _text(self, outcomes: Mapping[Path, Outcome], running: Sequence[Path], total: int) -> str:
        mine = [outcomes[folder] for folder in outcomes if folder in self.titles]
        done = len(outcomes) - (self.first or 0)
        parts = [f"{len(mine)} of {total} runs"]
        failures = sum("failure" in one for one in mine)
        if failures:
            parts.append(f"{failures} failed")
        if done:
            each = (time.monotonic() - self.begun) / done
            parts.append(f"{clock(each * (total - len(mine)))} left")
        return "  ".join([*parts, *(f"[{self.titles[folder]}]" for folder in running)])

    def write(self, outcomes: Mapping[Path, Outcome]) -> Records:
        """Write the records of all outcomes, and of earlier grids."""
        grid = self.grid
        self.environment = self.before.environment or _first_environment(outcomes)
        runs, trials = [], []
        for cell in grid.cells:
            tuned = self.chosen(cell, outcomes)
            if len(grid.tunings) > 1:
                trials += self._records(outcomes, cell, grid.tunings, [0])
            if tuned is not None:
                runs += self._records(outcomes, cell, [tuned], range(grid.seeds))
            elif all(self.job(cell, one, 0).folder in outcomes for one in grid.tunings):
                runs += self._records(outcomes, cell, grid.tunings[:1], [0])
        records = Records(
            **self.head,
            environment=self.environment,
            axes=_union(self.before.axes, grid.over),
            tune=_union({}, grid.tune),
            runs=_with_older(runs, self.before.runs, tuned=False),
            trials=_with_older(trials, self.before.trials, tuned=True),
            rows_errors=self.before.rows_errors,
        )
        records.write(self.folder / FILE)
        return records

    def _records(
        self,
        outcomes: Mapping[Path, Outcome],
        cell: Texts,
        tunings: Sequence[Texts],
        seeds: Sequence[int],
    ) -> list[Record]:
        found = []
        for tuned, seed in product(tunings, seeds):
            job = self.job(cell, tuned, seed)
            one = outcomes.get(job.folder)
            if one is None:
                continue
            failure = one.get("failure")
            if failure is None:
                self._check_data(job, one["data"])
            record = Record(
                cell=_values(cell),
                seed=seed,
                tuned=_values(tuned),
                summary=one if failure is None else None,
                failure=None if failure is None else without_folders(failure),
                environment=differing(_environment(job.folder), self.environment),
            )
            # An older record of the same outcome may have more, such as its fields.
            older = self.older.get(_key(record.cell, record.tuned, seed), record)
            found.append(older if older.summary == record.summary else record)
        return found


def without_folders(text: str) -> str:
    """Return a text in which absolute paths have lost their folders, which say nothing elsewhere."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+", "", text)


def _first_environment(outcomes: Mapping[Path, Outcome]) -> dict[str, Any]:
    """Return where runs were made, which need not be where and how they are looked at now."""
    done = (_environment(folder) for folder, one in outcomes.items() if "failure" not in one)
    return next(filter(None, done), {})


def _environment(folder: Path) -> dict[str, Any]:
    """Return where a run was made; nothing where its directory is gone."""
    file = folder / "env.json"
    return without_command(json.loads(file.read_text())) if file.exists() else {}


def _with_older(new: list[Record], old: list[Record], tuned: bool) -> list[Record]:
    """Return new records, and older ones that none of them stands for."""

    def key(one: Record) -> str:
        return _key(one.cell, one.tuned if tuned else {}, one.seed)

    known = {key(one) for one in new}
    return [*new, *(one for one in old if key(one) not in known)]


def _union(before: Mapping[str, list[Any]], axes: Sequence[Axis]) -> dict[str, list[Any]]:
    found = {key: list(values) for key, values in before.items()}
    for axis in axes:
        values = found.setdefault(axis.key, [])
        values += [v for v in (_value(t) for t in axis.texts()) if v not in values]
    return found


def _validation(outcome: Outcome) -> float | None:
    """Return the monitored validation value, its sign such that more is better; None of a failure."""
    if "failure" in outcome:
        return None
    monitor = outcome["monitor"]
    return sign_of(monitor) * outcome["valid"][monitor]


def _values(texts: Texts) -> dict[str, Any]:
    return {text.partition("=")[0]: _value(text) for text in texts}


def _value(text: str) -> Any:
    return parse_override(text)[1]


def _key(cell: Mapping[str, Any], tuned: Mapping[str, Any], seed: int) -> str:
    return json.dumps([cell, tuned, seed], sort_keys=True)


def _slug(text: str) -> str:
    return "".join(char if char.isalnum() or char in "=.-" else "_" for char in text)[:100]
