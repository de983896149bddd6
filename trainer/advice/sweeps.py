"""Sweeps at hand, as studies of the data and model that advice is asked for."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embtables.compressor import TableConfig
from trainer.advice.evidence import Cell, Study
from trainer.advice.facts import Rows
from trainer.config import RunConfig
from trainer.overrides import differences, leaves
from trainer.records import FILE, Record, Records, over_seeds, read_records, without_paths
from trainer.rundir import computed

_SIZES = ("table", "budget", "ratio")
_WHOLE = (str(TableConfig()), 1.0)
_AUC_ERRORS = 2 * 2**0.5
"""Of two AUCs of one seed each: differences within two standard errors say nothing."""


def sweeps_at_hand(
    config: RunConfig, recipe: str, ids: int, rows: Rows, given: Iterable[Path], below: Path
) -> tuple[list[Study], list[str]]:
    """Return the studies of the sweeps that are given, and of those of the recipe below a folder.

    Those that are given may differ in how they train; those that are found may not.

    Args:
        config: the run that advice is asked for.
        recipe: its name.
        ids: of all its tables.
        rows: to train and to choose on.
        given: directories, or files of records.
        below: folder of sweeps, which need not be there.

    Returns:
        Studies, and why sweeps of the recipe were left out.

    Raises:
        ValueError: a path that is given is no sweep, or one of other data or another model.
    """
    studies, notes = [], []
    given = list(given)
    for path in given:
        records = read_records(path)
        other = _differences(records, config, ("data", "model"))
        if other:
            raise ValueError(
                f"{path}: a sweep of other data or another model\n  " + "\n  ".join(other)
            )
        studies.append(study_of(records, config, ids, rows, str(path)))
    seen = {path.resolve() for path in given}
    for file in sorted(below.glob(f"*/{FILE}")):
        if {file.resolve(), file.parent.resolve()} & seen:
            continue
        records = read_records(file)
        other = _differences(records, config)
        if records.recipe == recipe and other:
            notes.append(f"{file.parent}: left out, it is of another configuration ({other[0]})")
        elif records.recipe == recipe:
            studies.append(study_of(records, config, ids, rows, str(file.parent)))
    return [study for study in studies if study.cells], notes


def study_of(records: Records, config: RunConfig, ids: int, rows: Rows, source: str) -> Study:
    """Return the finished runs of a sweep, by table and size, as a study of the same data."""
    monitor = config.train.monitor
    asked = dict(leaves(config.plain()))
    runs: dict[tuple[str, float], list[Record]] = defaultdict(list)
    for run in records.runs:
        beside = {key: value for key, value in run.cell.items() if key not in _SIZES}
        same = all(asked.get(tuple(key.split("."))) == beside[key] for key in beside)
        if run.summary and same and _measured(run.summary, monitor):
            runs[run.summary["table"], _ratio(run.summary)].append(run)
    trained = {key: _rows_trained(found) for key, found in runs.items()}
    cells = [
        _cell(*key, found, monitor).model_copy(
            update={"cost": trained[key] / trained[_WHOLE] if _WHOLE in trained else None}
        )
        for key, found in runs.items()
    ]
    most = max((cell.seeds for cell in cells), default=0)
    error = rows.auc_error(max(cell.test for cell in cells)) if monitor == "auc" and cells else None
    whole = [cell.test for cell in cells if (cell.table, cell.ratio) == _WHOLE]
    return Study(
        source=source,
        about=f"{records.recipe}, these data, {most} seed{'s' * (most != 1)}",
        ids=ids,
        metric=monitor,
        grade="A",
        noise=_AUC_ERRORS * error if most == 1 and error else 0.0,
        whole=whole[0] if whole else None,
        same=True,
        cells=tuple(sorted(cells, key=lambda cell: (-cell.ratio, cell.table))),
    )


def _cell(table: str, ratio: float, runs: list[Record], monitor: str) -> Cell:
    summaries = [run.summary for run in runs if run.summary is not None]
    valid, test = (
        over_seeds([summary[split][monitor] for summary in summaries])
        for split in ("valid", "test")
    )
    name = " ".join(f"{key}={value}" for key, value in runs[0].cell.items())
    return Cell(
        table=table,
        ratio=ratio,
        test=test["mean"],
        std=test["std"],
        valid=valid["mean"],
        valid_std=valid["std"],
        seeds=len(summaries),
        cell=name,
    )


def _measured(summary: Mapping[str, Any], monitor: str) -> bool:
    """Whether a run has the metric, and it is defined."""
    return all(summary[split].get(monitor) is not None for split in ("valid", "test"))


def _rows_trained(runs: list[Record]) -> float:
    """Return the mean rows of all stages."""
    return statistics.fmean(
        sum(stage["rows"] for stage in run.summary["stages"]) for run in runs if run.summary
    )


def _ratio(summary: Mapping[str, Any]) -> float:
    """Return the share of the uncompressed bytes that a run was allowed; 1: all."""
    if summary["budget"] is not None:
        return min(1.0, float(f"{summary['budget'] / summary['bytes']['uncompressed']:.4g}"))
    return summary["ratio"] or 1.0


def _differences(records: Records, config: RunConfig, sections: Iterable[str] = ()) -> list[str]:
    """Return in what a sweep differs from a run, sizes and seed aside; in some sections or in all."""
    left, right = (_plain(one) for one in (records.config, without_paths(config.plain())))
    kept = tuple(sections) or tuple({**left, **right})
    return differences(*({key: one[key] for key in kept if key in one} for one in (left, right)))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {k: v for k, v in computed(dict(config)).items() if k not in (*_SIZES, "fields")}
    return {**found, "train": {k: v for k, v in found["train"].items() if k != "seed"}}
