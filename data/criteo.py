"""Criteo click logs: Kaggle train.txt and the 1TB day files, plain or gzip, in order.

A line is a label, 13 integers and 26 hexadecimal categories, separated by tabs; an empty value is
missing (Criteo Kaggle Display Advertising Challenge 2014; Criteo 1TB Click Logs 2015).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from data import text
from data.features import read_features
from data.rows import Numbers
from data.schema import Column
from data.source import Chunk, Source, SourceConfig, sources

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
LAYOUT = text.Layout(("label", *INTEGERS, *CATEGORIES), separator="\t")


class CriteoConfig(SourceConfig):
    """Options of the Criteo source."""

    kind: Literal["criteo"] = "criteo"
    root: Path | None = Field(
        default=None, description="folder of train.txt or day_0 .. day_23, or a file"
    )
    files: tuple[str, ...] = Field(
        default=(), description="files below root, in time order; default: all"
    )
    integers: Literal["log1p", "category"] = Field(
        default="log1p",
        description="log1p: log(1 + max(v, 0)) as a number; "
        "category: floor(ln(v)^2) where v > 2, else v, as an id",
    )
    normalize: Literal["none", "standard", "minmax"] = Field(
        default="none", description="of log1p integers"
    )
    vocabulary: Literal["closed", "open"] = "closed"
    min_count: int = Field(
        default=1, ge=1, description="rarer training values share the unknown row"
    )


@sources.register("criteo")
class Criteo(Source):
    """Rows of 13 integers I1 .. I13 and 26 categories C1 .. C26; a file is a day."""

    Config = CriteoConfig
    config: CriteoConfig

    def columns(self) -> tuple[Column, ...]:
        """Return I1 .. I13, then C1 .. C26."""
        config = self.config
        category = partial(
            Column,
            kind="categorical",
            vocabulary=config.vocabulary,
            min_count=config.min_count,
        )
        integer = (
            partial(category, type="logarithm")
            if config.integers == "category"
            else partial(
                Column,
                kind="numeric",
                type="integer",
                transform="log1p",
                normalize=config.normalize,
            )
        )
        return (
            *(integer(name=name) for name in INTEGERS),
            *(category(name=name, type="hex") for name in CATEGORIES),
        )

    def layout(self) -> text.Layout:
        """Return the layout of the raw files."""
        return LAYOUT

    def inputs(self) -> list[Path]:
        """Return the files in time order."""
        root, names = self.config.root, self.config.files
        if root is not None and root.is_file() and not names:
            return [root]
        if root is None or names:
            return text.find(root, names or ["train.txt"])
        return _days(root) or text.find(root, ["train.txt"])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows, one chunk a block."""
        for day, path in enumerate(self.inputs()):
            parse = partial(self._parse, day=day)
            yield from text.read_numbers(path, LAYOUT, LAYOUT.names, parse, self.bad)

    def _parse(self, rows: Numbers, day: int) -> Chunk:
        return Chunk(
            **vars(read_features(rows, self.columns())),
            label=rows.labels("label"),
            day=np.full(len(rows), day, np.int64),
        )


def _days(root: Path) -> list[Path]:
    """Return day_0, day_1, ... of a folder by number; a day is read once, plain before gzip."""
    days: dict[int, Path] = {}
    for path in sorted(root.glob("day_*")):
        match = re.fullmatch(r"day_(\d+)(\.gz)?", path.name)
        if match:
            days.setdefault(int(match[1]), path)
    return [days[day] for day in sorted(days)]
