"""Frappe_x1: app usage with context, in the BARS split (train.csv, valid.csv, test.csv).

Header label,user,item,daytime,weekday,isweekend,homework,cost,weather,country,city; all integers
(Baltrunas et al., arXiv:1505.03014).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from data import text
from data.features import read_features
from data.rows import Numbers
from data.schema import SPLITS, Column
from data.source import Chunk, Source, SourceConfig, SplitConfig, sources

FIELDS = (
    "user",
    "item",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
)


class FrappeConfig(SourceConfig):
    """Options of the Frappe_x1 source."""

    kind: Literal["frappe_x1"] = "frappe_x1"
    root: Path | None = Field(
        default=None, description="folder of train.csv, valid.csv and test.csv"
    )
    split: SplitConfig = SplitConfig(kind="fixed")
    min_count: int = Field(
        default=1, ge=1, description="rarer training values share the unknown row"
    )


@sources.register("frappe_x1")
class Frappe(Source):
    """Rows of 10 categorical fields in a fixed split."""

    Config = FrappeConfig
    config: FrappeConfig

    def columns(self) -> tuple[Column, ...]:
        """Return the 10 fields in the order of the files."""
        count = self.config.min_count
        column = partial(Column, kind="categorical", type="integer", min_count=count)
        return tuple(column(name=name) for name in FIELDS)

    def inputs(self) -> list[Path]:
        """Return the three files."""
        return text.find(self.config.root, [f"{split}.csv" for split in SPLITS])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows, one chunk a block."""
        for split, path in enumerate(self.inputs()):
            parse = partial(self._parse, split=split)
            wanted = ("label", *FIELDS)
            yield from text.read_numbers(path, text.Layout(), wanted, parse, self.bad)

    def _parse(self, rows: Numbers, split: int) -> Chunk:
        return Chunk(
            **vars(read_features(rows, self.columns())),
            label=rows.labels("label"),
            split=np.full(len(rows), split, np.uint8),
        )
