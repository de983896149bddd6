"""Avazu click log: train.csv of the Kaggle challenge, plain or gzip, in time order.

The header is id, click, hour (YYMMDDHH), C1, banner_pos, ..., C21 (Avazu Click-Through Rate
Prediction, Kaggle 2014). The row's id is dropped; the hour gives two fields, hour of day and
weekday, and the day of a split by time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from data import text
from data.features import hours, read_features
from data.rows import Rows
from data.schema import Column
from data.source import Chunk, Source, SourceConfig, SplitConfig, sources

STRINGS = (
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
)
INTEGERS = (
    "C1",
    "banner_pos",
    "device_type",
    "device_conn_type",
    *(f"C{i}" for i in range(14, 22)),
)
FIELDS = ("hour", "weekday", *INTEGERS[:2], *STRINGS, *INTEGERS[2:])


class AvazuConfig(SourceConfig):
    """Options of the Avazu source."""

    kind: Literal["avazu"] = "avazu"
    root: Path | None = Field(
        default=None, description="folder of train.csv or train.gz, or a file"
    )
    files: tuple[str, ...] = Field(
        default=(), description="files below root, in time order; default: all"
    )
    split: SplitConfig = SplitConfig(kind="last_day")
    vocabulary: Literal["closed", "open"] = "closed"
    min_count: int = Field(
        default=1, ge=1, description="rarer training values share the unknown row"
    )


@sources.register("avazu")
class Avazu(Source):
    """Rows of 23 categorical fields: hour of day, weekday and the log's 21 others."""

    Config = AvazuConfig
    config: AvazuConfig

    def columns(self) -> tuple[Column, ...]:
        """Return hour and weekday, then the fields in the order of the file."""
        options = {"vocabulary": self.config.vocabulary, "min_count": self.config.min_count}
        category = partial(Column, kind="categorical", **options)
        return (
            category(name="hour", type="hour"),
            category(name="weekday", cell="hour", type="weekday"),
            *(
                category(name=name, type="string" if name in STRINGS else "integer")
                for name in FIELDS[2:]
            ),
        )

    def inputs(self) -> list[Path]:
        """Return the files in time order."""
        root, names = self.config.root, self.config.files
        if root is not None and root.is_file() and not names:
            return [root]
        if root is not None and not names and (root / "train.gz").is_file():
            return [root / "train.gz"]
        return text.find(root, names or ["train.csv"])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows, one chunk a block."""
        wanted = ("click", "hour", *INTEGERS, *STRINGS)
        for path in self.inputs():
            yield from text.read(path, text.Layout(), wanted, self._parse, self.bad)

    def _parse(self, rows: Rows) -> Chunk:
        time = hours(rows, "hour")
        return Chunk(
            **vars(read_features(rows, self.columns())),
            label=rows.labels("click"),
            day=time.dt.epoch("d").fill_null(0).cast(pl.Int64).to_numpy(),
        )
