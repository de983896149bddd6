"""Parquet files, with the columns declared in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import polars as pl

from data import text
from data.generic import GenericConfig, GenericSource
from data.rows import BadRows, Rows, check_columns
from data.source import Chunk, sources

ROWS = 2**18
"""Rows read at a time."""

T = TypeVar("T")


class ParquetConfig(GenericConfig):
    """Options of the parquet source."""

    kind: Literal["parquet"] = "parquet"


@sources.register("parquet")
class Parquet(GenericSource):
    """Rows of Parquet files; a multi or sequence column is a list, or text with a separator."""

    Config = ParquetConfig
    config: ParquetConfig
    blank_is_missing = False

    def _type(self, cell: str) -> Literal["string", "integer"]:
        first = self.inputs()[0]
        dtype = _scan(first, [cell]).collect_schema()[cell]
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        return "integer" if inner.is_numeric() else "string"

    def _find(self, names: Sequence[str]) -> list[Path]:
        return text.find(self.config.root, names)

    def _read(self, path: Path, wanted: list[str]) -> Iterator[Chunk]:
        yield from read(path, wanted, self._parse, self.bad)


def read(
    path: Path, wanted: Sequence[str], parse: Callable[[Rows], T], bad: BadRows
) -> Iterator[T]:
    """Yield `parse(rows)` for each block of a file, as `data.text.read` does.

    Raises:
        ValueError: the file is no Parquet or has not the wanted columns, or a row is bad and bad rows
            are errors. The message names file and row.
    """
    first = 1
    for frame in _scan(path, wanted).collect_batches(chunk_size=ROWS, maintain_order=True):
        lines = np.arange(first, first + len(frame))
        yield Rows(path, frame, lines, unit="row ").read(parse, bad)
        first += len(frame)


def _scan(path: Path, wanted: Sequence[str]) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path)
        names = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    check_columns(f"{path}", names, wanted)
    return frame.select(wanted)
