"""What the csv and parquet sources share: columns declared in the configuration."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data.features import keys, read_features
from data.hashing import MISSING
from data.rows import Rows
from data.schema import SPLITS, Column
from data.source import Chunk, Source, SourceConfig
from data.splits import TRAIN, VALID, uniform


class GenericConfig(SourceConfig):
    """Options of a source with declared columns."""

    columns: tuple[Column, ...] = Field(description="what the model may read")
    label: str | None = Field(
        default="label", description="column of the label, 0 or 1; null: every row is a click"
    )
    group: str | None = Field(default=None, description="column that groups rows, for GAUC")
    day: str | None = Field(default=None, description="column of whole numbers: time")
    day_length: int = Field(default=1, ge=1, description="how much of `day` a day is, as 86400")
    files: tuple[str, ...] = Field(default=(), description="below root, in time order")
    train: tuple[str, ...] = Field(default=(), description="files of a fixed split, instead")
    valid: tuple[str, ...] = Field(default=(), description="beside `train`")
    test: tuple[str, ...] = Field(default=(), description="beside `train`")
    valid_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the rows of `train` that validates, drawn by split.seed",
    )

    @model_validator(mode="before")
    @classmethod
    def _fixed_by_files(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("train"):
            split = given.get("split", {})
            if isinstance(split, dict):
                return {**given, "split": {"kind": "fixed", **split}}
        return given

    @model_validator(mode="after")
    def _one_way(self) -> GenericConfig:
        if bool(self.files) == bool(self.train):
            raise ValueError("give either `files`, or `train` with `valid` and `test`")
        if bool(self.train) != (self.split.kind == "fixed"):
            raise ValueError(
                f"split.kind={self.split.kind} does not fit: `train`, `valid` and `test` files are "
                "split.kind=fixed; `files` are split by random, last_day or last_seventh"
            )
        if self.valid_share and (self.valid or not self.train):
            raise ValueError(
                f"valid_share={self.valid_share:g} takes rows out of `train` files, where no file "
                "validates: leave out `valid`, or with `files` use split.kind=random and split.parts"
            )
        return self


class GenericSource(Source):
    """Rows of declared columns; a subclass says how files are named and read."""

    def __init__(self, config: GenericConfig) -> None:
        super().__init__(config)
        self.group_name = config.group

    def columns(self) -> tuple[Column, ...]:
        """Return the columns as declared, and what an id is where that is left to the files."""
        return self._typed

    @cached_property
    def _typed(self) -> tuple[Column, ...]:
        return tuple(
            column
            if column.type or column.kind == "numeric"
            else column.model_copy(update={"type": self._type(column.cell_name)})
            for column in self.config.columns
        )

    def inputs(self) -> list[Path]:
        """Return the files, those of the training split first."""
        return [path for path, _ in self._files()]

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows, one chunk a block of a file."""
        row = 0
        for path, split in self._files():
            for chunk in self._read(path, self._wanted()):
                stop = row + len(chunk.label)
                if split is not None:
                    chunk.split = self._fixed(split, row, stop)
                row = stop
                yield chunk

    @abstractmethod
    def _find(self, names: Sequence[str]) -> list[Path]:
        """Return the files of these names below root."""

    @abstractmethod
    def _read(self, path: Path, wanted: list[str]) -> Iterator[Chunk]:
        """Yield the wanted columns of a file, each block by `_parse`."""

    @abstractmethod
    def _type(self, cell: str) -> Literal["string", "integer"]:
        """Return what an id in these cells of the files is."""

    def _files(self) -> list[tuple[Path, int | None]]:
        config = self.config
        if config.files:
            return [(path, None) for path in self._find(config.files)]
        return [
            (path, number)
            for number, split in enumerate(SPLITS)
            for path in self._find(getattr(config, split))
        ]

    def _fixed(self, split: int, start: int, stop: int) -> np.ndarray:
        """Return the split of the rows start .. stop, which come from the files of one split."""
        found = np.full(stop - start, split, np.uint8)
        if split == TRAIN:
            drawn = uniform(self.config.split.seed, start, stop)
            found[drawn < self.config.valid_share] = VALID
        return found

    def _wanted(self) -> list[str]:
        config = self.config
        extra = [name for name in (config.label, config.group, config.day) if name]
        return list(dict.fromkeys([*(column.cell_name for column in config.columns), *extra]))

    def _parse(self, rows: Rows) -> Chunk:
        config = self.config
        labels = (
            np.ones(len(rows), np.float32) if config.label is None else rows.labels(config.label)
        )
        chunk = Chunk(**vars(read_features(rows, self.columns())), label=labels)
        if config.group is not None:
            chunk.group = keys(rows, Column(name=config.group, kind="categorical"))
        if config.day is not None:
            times = rows.integers(config.day)
            rows.expect(config.day, times == MISSING, "a whole number")
            chunk.day = times // config.day_length
        return chunk
