"""Parquet files, with the columns declared in the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from data import text
from data.generic import GenericConfig, GenericSource
from data.rows import Rows
from data.source import Chunk, sources
from embtables.registry import nearest

ROWS = 2**18
"""Rows read at a time."""


class ParquetConfig(GenericConfig):
    """Options of the parquet source."""

    kind: Literal["parquet"] = "parquet"


@sources.register("parquet")
class Parquet(GenericSource):
    """Rows of Parquet files; a multi or sequence column is a list, or text with a separator."""

    Config = ParquetConfig
    config: ParquetConfig

    def _find(self, names: Sequence[str]) -> list[Path]:
        return text.find(self.config.root, names)

    def _read(self, path: Path, wanted: list[str]) -> Iterator[Chunk]:
        frames = _scan(path, wanted).collect_batches(chunk_size=ROWS, maintain_order=True)
        first = 1
        for frame in frames:
            lines = np.arange(first, first + len(frame))
            yield Rows(path, frame, lines, unit="row ").read(self._parse, self.bad)
            first += len(frame)


def _scan(path: Path, wanted: list[str]) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path)
        names = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    for name in wanted:
        if name not in names:
            hint = nearest(name, names)
            raise ValueError(f"{path}: no column {name!r}.{hint} It has: {', '.join(names)}")
    return frame.select(wanted)
