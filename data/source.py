"""The contract of a data source: declared columns, and a stream of chunks of raw rows.

A source is one file in `data/`: a frozen `Config` whose `kind` is the file's name, and a
class below the `sources.register(kind)` decorator. It reads its files in bounded memory and knows
nothing of vocabularies, splits or storage: `data.prepare` does the rest for every source alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data.features import Features
from data.rows import BadRows
from data.schema import Column
from data.text import Layout
from embtables.registry import Config, Registry


class SplitConfig(Config):
    """How rows are divided into train, valid and test."""

    kind: Literal["fixed", "random", "last_day", "last_seventh"] = Field(
        default="random",
        description="fixed: by the source; random: 8:1:1 by default; "
        "last_day / last_seventh: first half of it validates, second half tests",
    )
    parts: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1), description="random: shares of train, valid and test"
    )
    seed: int = Field(default=0, description="random: of the draw")


class SourceConfig(Config):
    """Options that every source has."""

    kind: Any
    root: Path | None = Field(default=None, description="folder of the raw files")
    store: Path = Field(
        default=Path("prepared"), description="folder that prepared data sets are kept in"
    )
    bad_rows: Literal["error", "skip"] = Field(
        default="error", description="skip: count and report them"
    )
    split: SplitConfig = SplitConfig()


@dataclass
class Chunk(Features):
    """Some raw rows with their labels, in file order. n = rows of the chunk.

    Attributes:
        label: [n] float32, 0 or 1.
        group: [n] int64 group ids for GAUC, or None.
        day: [n] int64 day of the row for a split by time, or None.
        split: [n] uint8 index into SPLITS where the source fixes the split, or None.
        probability: [n] float32 planted click probability, where known (it gives the Bayes bounds).
    """

    label: np.ndarray = field(kw_only=True)
    group: np.ndarray | None = None
    day: np.ndarray | None = None
    split: np.ndarray | None = None
    probability: np.ndarray | None = None


class Source(ABC):
    """One data source. Subclasses set `Config` and `group_name`.

    Attributes:
        config: its options.
        blank_is_missing: an empty string is a missing value, as in text.
        bad: where `chunks` reports a row that it cannot read.
    """

    Config: ClassVar[type[SourceConfig]]
    group_name: str | None = None
    blank_is_missing: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        self.config = config
        self.bad = BadRows(config.bad_rows)

    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """Return the columns, in the order in which they will be delivered.

        They say how a row to predict is read, so `type` is given where ids are, and `separator` where
        text holds several.
        """

    def layout(self) -> Layout:
        """Return how text files of rows to predict are made: with a header, unless overridden."""
        return Layout(quoted=True)

    @abstractmethod
    def inputs(self) -> list[Path]:
        """Return the files read, in order; their names, sizes and times decide about a re-run.

        Raises:
            ValueError: `data.root` is not given, or a file is missing; the message says which.
        """

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows in bounded memory.

        Raises:
            ValueError: a bad row: file, line number, and what was expected.
        """


sources: Registry[Source] = Registry("data", "data source")
