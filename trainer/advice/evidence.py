"""What has been measured of tables under budgets: our results, published ones, and sweeps at hand.

A study holds tables of one data set and model at one or several budgets; the tables of one budget can be
compared. ``evidence.yaml`` has those that are shipped, with rules that hold where the data are of some
kind. Figures that cite bench/results are compared with the files there by a test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, Field

from embtables.compressor import parse_table
from embtables.registry import Config
from trainer.advice.facts import Facts
from trainer.metrics import sign_of

FILE = Path(__file__).with_name("evidence.yaml")

NEAR = 10**0.5
"""Budgets within this factor say something about each other: half a decade."""
GRADES = {"A": 1.0, "B": 0.5, "C": 0.25}
"""Weight of a study. A: several seeds, the protocol is known; B: one seed, or a flaw; C: read off a
figure, or a pilot of one seed."""
SAME = 10.0
"""Weight of a study of the same data and model."""

TableText = Annotated[str, AfterValidator(lambda text: str(parse_table(text)))]
"""A table in its compact form, such as hash+int8."""


class Cell(Config):
    """One table at one budget.

    Metrics are means over the seeds, deviations are of one seed.
    """

    table: TableText
    ratio: float = Field(gt=0, description="bytes over those of the full table")
    test: float
    std: float | None = None
    valid: float | None = Field(default=None, description="what tables are compared by, if known")
    valid_std: float | None = None
    seeds: int = 1
    cost: float | None = Field(
        default=None, description="rows trained on over those of the full table's training"
    )
    width: int | None = Field(
        default=None, description="numbers that are left of a row, where it is cut to so many"
    )
    cell: str = Field(default="", description="its name in the source")

    @property
    def judged(self) -> tuple[float, float | None]:
        """What it is compared by, and the deviation of that; None: not known, as of one seed."""
        return (self.test, self.std) if self.valid is None else (self.valid, self.valid_std)


class Outcome(NamedTuple):
    """One comparison in which a table was better than another."""

    better: str
    worse: str
    weight: float


class Study(Config):
    """Tables of one data set and model."""

    source: str = Field(description="file, or paper and table")
    about: str = Field(description="model, data, seeds")
    recipe: str = Field(default="", description="the recipe that was run, as it is")
    ids: int = Field(ge=1, description="of all tables")
    metric: str = "auc"
    grade: Literal["A", "B", "C"]
    noise: float = Field(default=0.0, ge=0, description="differences below it say nothing")
    whole: float | None = Field(default=None, description="of the uncompressed table, on test")
    same: bool = Field(default=False, description="of the data and model that advice is asked for")
    cells: tuple[Cell, ...]

    @property
    def retrieval(self) -> bool:
        """Whether ranking is measured by retrieval."""
        return self.metric in ("recall", "ndcg")

    def at(self, facts: Facts) -> tuple[Cell, ...]:
        """Return the cells of the nearest budget at which tables can be compared, best first; or none.

        Rows cut to one number are another thing than those of several: in studies of other data they
        stand for themselves alone, and where the budget leaves no number for what is worse than them.
        """
        levels: dict[float, list[Cell]] = {}
        for cell in self.cells:
            if self.same or cell.width is None or (cell.width == 1) == (facts.narrow <= 1):
                levels.setdefault(cell.ratio, []).append(cell)
        near = [
            (round(_decades(level, facts.ratio), 6), level)
            for level, cells in levels.items()
            if len(cells) > 1 and _decades(level, facts.ratio) <= _decades(NEAR, 1) + 1e-9
        ]
        found = levels[min(near)[1]] if near else []
        return tuple(
            sorted(found, key=lambda cell: (-sign_of(self.metric) * cell.judged[0], cell.table))
        )

    def weight(self, facts: Facts) -> float:
        """Return how much it says about a data set and a budget: 0 for nothing."""
        cells = self.at(facts)
        if not cells or self.retrieval != facts.retrieval:
            return 0.0
        far = _decades(cells[0].ratio, facts.ratio)
        if self.same:
            return SAME / (1 + far)
        return GRADES[self.grade] / (1 + far + _decades(self.ids, facts.ids))

    def outcomes(self, facts: Facts) -> list[Outcome]:
        """Return the comparisons at the nearest budget, of tables that can be told apart.

        Tables put in order are one fact less than there are tables, however many pairs they make: a
        comparison of n tables weighs 2 / n of the study's weight.
        """
        cells = self.at(facts)
        weight = self.weight(facts) * 2 / max(len(cells), 1)
        return [
            Outcome(one.table, other.table, weight)
            for one, other in permutations(cells, 2)
            if weight and self.told(one, other) == 1
        ]

    def told(self, one: Cell, other: Cell) -> float:
        """Return 1 if a table is better than another, 0 if it is worse, 0.5 if nobody can tell."""
        difference = one.judged[0] - other.judged[0]
        error = math.hypot(self._error(one), self._error(other))
        if abs(difference) <= max(self.noise, 2 * error):
            return 0.5
        return float(sign_of(self.metric) * difference > 0)

    def _error(self, cell: Cell) -> float:
        """Return the standard error; a deviation that is not known is what is usual in the study."""
        std = cell.judged[1]
        if std is None:
            known = [found for one in self.cells if (found := one.judged[1]) is not None]
            std = statistics.median(known) if known else 0.0
        return std / math.sqrt(cell.seeds)


class Range(Config):
    """Numbers from `least` to `most`."""

    least: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: float | None) -> bool:
        return value is not None and self.least <= value <= self.most


class Rule(Config):
    """What speaks for or against a table where the data are of some kind."""

    table: TableText
    verdict: Literal["for", "against"]
    when: dict[str, Range] = Field(description="number of `Facts` -> where the rule holds")
    says: str = Field(description="with {names} of Facts")
    source: str
    cells: tuple[Cell, ...] = Field(default=(), description="cells of the source that it quotes")

    def holds(self, facts: Facts) -> bool:
        """Return whether the data are of its kind."""
        return all(getattr(facts, name) in span for name, span in self.when.items())

    def text(self, facts: Facts) -> str:
        """Return what it says of a data set, and where that is from."""
        known = {name: getattr(facts, name) for name in (*Facts.__dataclass_fields__, "ratio")}
        return f"{self.says.format(**known)} ({self.source})"


class LookUp(Config):
    """How long a packed table takes to be read, over a full table of the same width."""

    table: TableText
    dim: int
    times: float

    def __str__(self) -> str:
        """Return the factor in words."""
        return f"{self.times:g} times those of a full table of width {self.dim}"


class Speed(Config):
    """Look-ups of one run."""

    source: str
    about: str
    cells: tuple[LookUp, ...]

    def of(self, table: str, dim: int) -> LookUp | None:
        """Return what was measured of a table at the width nearest to one, or None."""
        mine = [cell for cell in self.cells if cell.table == table]
        return min(mine, key=lambda cell: _decades(cell.dim, dim), default=None)


class Evidence(Config):
    """All that is shipped."""

    baselines: tuple[TableText, ...] = Field(description="what every other table has to beat")
    speed: Speed
    rules: tuple[Rule, ...]
    studies: tuple[Study, ...]

    @property
    def tables(self) -> list[str]:
        """Compact forms of all tables that it speaks of, each once."""
        named = [*self.baselines, *(rule.table for rule in self.rules)]
        named += [cell.table for study in self.studies for cell in study.cells]
        return list(dict.fromkeys(named))


def read_evidence(file: Path = FILE) -> Evidence:
    """Return the evidence of a YAML file."""
    return Evidence.model_validate(yaml.safe_load(file.read_text()))


def with_same(studies: Sequence[Study], recipe: str) -> list[Study]:
    """Return the studies, those of a recipe marked as of the same data and model."""
    marks: list[dict[str, Any]] = [{"same": bool(s.recipe) and s.recipe == recipe} for s in studies]
    return [one.model_copy(update=mark) for one, mark in zip(studies, marks, strict=True)]


def _decades(one: float, other: float) -> float:
    return abs(math.log10(one / other))
