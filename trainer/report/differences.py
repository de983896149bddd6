"""Which cells of a section differ, and which only seem to.

Every cell is compared with the full table and with the narrow full table next below it in bytes, in the
same setting; seeds are paired, and so are test rows where the predictions and the data are at hand
(`trainer.significance`). p-values are Holm-adjusted over the cells of one metric and one baseline.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from trainer.evaluation import truth_of
from trainer.metrics import sign_of
from trainer.records import RowsError
from trainer.report.sections import Cell, Section
from trainer.runs import FinishedRun
from trainer.significance import Difference, Statistic, holm, paired, statistics_of

LEVEL = 0.05
"""Below which an adjusted p-value is called a difference."""

Verdict = Literal["better", "worse", "not told apart", "not judged"]


@dataclass(frozen=True)
class Compared:
    """A cell against a baseline.

    Attributes:
        metric: name.
        baseline: full or narrow.
        cell, other: the cell, and the baseline.
        difference: of the cell minus the baseline.
        p: Holm-adjusted, NaN where nothing is known.
    """

    metric: str
    baseline: str
    cell: Cell
    other: Cell
    difference: Difference
    p: float

    @property
    def verdict(self) -> Verdict:
        """What can be said."""
        if math.isnan(self.p):
            return "not judged"
        if self.p >= LEVEL:
            return "not told apart"
        return "better" if self.difference.value * sign_of(self.metric) > 0 else "worse"


class Differences:
    """Differences of the cells of a section.

    Attributes:
        missing: why other test rows are not reckoned with, where they are not.
        compared: every cell against its baselines.
    """

    def __init__(self, section: Section) -> None:
        self.section = section
        self._known: dict[str, dict[tuple[int, ...], RowsError]] = {}
        for one in section.records.rows_errors:
            self._keep(one)
        self.missing = ""
        self._statistics = self._of_rows()
        self._scores = cache(self._scores_of)
        self._parts = lru_cache(maxsize=8)(self._mean_parts)
        self.compared = [
            one
            for metric in section.metrics
            for baseline in ("full", "narrow")
            for one in self._family(metric, baseline)
        ]

    def of(self, metric: str, cell: Cell, other: Cell) -> Difference | None:
        """Return a metric of a cell minus that of another, None without a common seed."""
        ours, theirs = cell.by_seed("test", metric), other.by_seed("test", metric)
        seeds = tuple(sorted(ours.keys() & theirs.keys()))
        if not seeds:
            return None
        values = [ours[seed] - theirs[seed] for seed in seeds]
        return paired(values, self._rows_error(metric, cell, other, seeds))

    def alike(self, metric: str, cells: Sequence[Cell]) -> tuple[Cell | None, list[Cell]]:
        """Return the best of some cells, and the others whose 95 % interval of it holds zero."""
        sign = sign_of(metric)
        means = {cell: mean for cell in cells if (mean := cell.mean("test", metric)) is not None}
        if not means:
            return None, []
        best = max(means, key=lambda cell: sign * means[cell])
        alike = []
        for cell in means:
            found = None if cell is best else self.of(metric, cell, best)
            if found is not None and found.interval[0] <= 0 <= found.interval[1]:
                alike.append(cell)
        return best, alike

    @property
    def rows_errors(self) -> list[RowsError]:
        """What is known of test rows, to be kept with the records."""
        return [one for by_seeds in self._known.values() for one in by_seeds.values()]

    def _family(self, metric: str, baseline: str) -> list[Compared]:
        """Return the cells against one baseline, their p-values adjusted together."""
        find = self.section.full if baseline == "full" else self.section.narrow
        found = []
        for cell in self.section.done:
            other = None if cell.role == "full" else find(cell)
            difference = None if other is None else self.of(metric, cell, other)
            if other is not None and difference is not None:
                found.append(Compared(metric, baseline, cell, other, difference, math.nan))
        judged = [one for one in found if not math.isnan(one.difference.p)]
        adjusted = holm([one.difference.p for one in judged])
        return [
            *(replace(one, p=p) for one, p in zip(judged, adjusted, strict=True)),
            *(one for one in found if math.isnan(one.difference.p)),
        ]

    # -- test rows -------------------------------------------------------------------------------

    def _of_rows(self) -> dict[str, Statistic]:
        """Return how metrics are compared row by row, nothing where rows are not at hand."""
        store = self.section.store
        rows = [rows for cell in self.section.done for rows in cell.numbers("test", "rows")]
        if store is None:
            self.missing = "the prepared data of the runs are not at hand"
        elif not set(self.section.metrics) & {"auc", "logloss"}:
            self.missing = "retrieval keeps nothing row by row"
        elif len(set(rows)) > 1:
            self.missing = "the runs were measured on different numbers of rows"
        else:
            try:
                return statistics_of(*truth_of(store, "test", int(rows[0])))
            except ValueError as error:
                self.missing = str(error)
        return {}

    def _rows_error(
        self, metric: str, cell: Cell, other: Cell, seeds: tuple[int, ...]
    ) -> float | None:
        """Return the standard error over test rows, from as many of the seeds as it is known of.

        That of fewer seeds is rather too large: what the rows and one seed do together is in it.
        """
        pair = _pair(metric, cell.values, other.values)
        known = [some for some in self._known.get(pair, {}) if set(some) <= set(seeds)]
        most = max(known, key=len, default=())
        here = tuple(s for s in seeds if s in cell.folders and s in other.folders)
        if len(here) > len(most) and metric in self._statistics:
            parts = [self._parts(metric, one, here) for one in (cell, other)]
            error = self._statistics[metric].error(parts[0] - parts[1])
            cells, most = (cell.values, other.values), here
            self._keep(RowsError(metric=metric, cells=cells, seeds=list(here), error=error))
        return self._known[pair][most].error if most else None

    def _keep(self, one: RowsError) -> None:
        self._known.setdefault(_pair(one.metric, *one.cells), {})[tuple(one.seeds)] = one

    def _mean_parts(self, metric: str, cell: Cell, seeds: tuple[int, ...]) -> np.ndarray:
        """Return the parts of a metric, row by row or group by group, averaged over seeds."""
        statistic = self._statistics[metric]
        parts = [statistic.parts(self._scores(cell.folders[seed])) for seed in seeds]
        return np.mean(parts, axis=0)

    def _scores_of(self, folder: Path) -> np.ndarray:
        assert self.section.store is not None
        return FinishedRun.open(folder).scores(self.section.store, "test")


def _pair(metric: str, cell: object, other: object) -> str:
    """Return one text for a metric of two cells, in either order."""
    cells = sorted(json.dumps(one, sort_keys=True) for one in (cell, other))
    return json.dumps([metric, *cells])
