"""Two finished runs on the same rows: what differs, and how much of it chance explains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation import truth_of
from trainer.runs import FinishedRun
from trainer.significance import Difference, statistics_of
from trainer.summary import CLICKS


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs.

    Attributes:
        runs: their directories.
        split: train, valid or test.
        rows: rows that both were measured on.
        groups: whether chance draws groups of rows.
        metrics: metric -> its values of both runs, and the difference.
    """

    runs: tuple[Path, Path]
    split: str
    rows: int
    groups: bool
    metrics: dict[str, tuple[tuple[float, float], Difference]]

    def plain(self) -> dict[str, Any]:
        """Return JSON values; an interval has 95 %."""
        return {
            "runs": list(map(str, self.runs)),
            "split": self.split,
            "rows": self.rows,
            **{
                metric: {
                    "values": list(values),
                    "difference": difference.value,
                    "standard_error": difference.error,
                    "interval": list(difference.interval),
                    "p": difference.p,
                }
                for metric, (values, difference) in self.metrics.items()
            },
        }

    def text(self) -> str:
        """Return a few lines for people."""
        drawn = "users or other groups" if self.groups else "rows"
        lines = [
            f"first   {self.runs[0]}",
            f"second  {self.runs[1]}",
            f"{'':10}{'first':>9}{'second':>9}{'first - second':>16}{'95 % interval':>24}{'p':>9}",
        ]
        for metric, ((one, other), found) in self.metrics.items():
            low, high = found.interval
            lines.append(
                f"{CLICKS[metric]:10}{one:9.5f}{other:9.5f}{found.value:+16.5f}"
                f"{f'{low:+.5f} .. {high:+.5f}':>24}{found.p:9.2g}"
            )
        return "\n".join(
            [
                *lines,
                f"Paired on {self.rows:,} {self.split} rows; the interval is of other {drawn} of this "
                "kind. Another seed moves both runs too:",
                "train several of each, and give them to embtables report.",
            ]
        )


def compare_runs(one: Path, other: Path, split: str = "test") -> Comparison:
    """Return what differs between two runs on the rows of a split, pair by pair.

    AUC by DeLong's test, logloss and GAUC by the normal interval of their differences; where the data
    name a group, it is the groups that are drawn (`trainer.significance`).

    Raises:
        ValueError: a run is missing or not finished, both were not measured on the same rows, they
            were measured by retrieval, or a metric is undefined on the rows.
    """
    runs = FinishedRun.open(one), FinishedRun.open(other)
    _check_same_rows(*runs, split)
    store = runs[0].store()
    first, second = (run.scores(store, split) for run in runs)
    if len(first) != len(second):
        raise ValueError(
            f"{one} was measured on {len(first):,} rows and {other} on {len(second):,}: "
            "compare runs of one train.limit_batches and train.eval_batch_size"
        )
    label, group = truth_of(store, split, len(first))
    found = {}
    for metric, statistic in statistics_of(label, group).items():
        values = tuple(statistic.value(statistic.parts(score)) for score in (first, second))
        found[metric] = values, statistic.compare([first], [second])
    return Comparison((one, other), split, len(first), group is not None, found)


def _check_same_rows(one: FinishedRun, other: FinishedRun, split: str) -> None:
    data = [run.summary["data"] for run in (one, other)]
    if data[0] != data[1]:
        raise ValueError(
            f"{one.path} was measured on {data[0]} and {other.path} on {data[1]}: only runs on the "
            "same data can be compared"
        )
    for run in (one, other):
        if run.config.train.loss == "bpr":
            raise ValueError(
                f"{run.path} was measured by retrieval (train.loss=bpr), of which nothing is kept "
                "row by row; give several seeds of both runs to embtables report"
            )
