"""What a data set holds: its columns before `prepare` (Column) and after it (Schema)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from embtables.registry import Config

SPLITS = ("train", "valid", "test")


class Column(Config):
    """One declared column of a source.

    A numeric column becomes one float32 of the dense matrix; the others become ids.
    """

    name: str
    kind: Literal["numeric", "categorical", "multi", "sequence"]
    table: str | None = Field(
        default=None, description="table its ids belong to; default: the column itself"
    )
    vocabulary: Literal["closed", "open"] = Field(
        default="closed",
        description="closed: dictionary built in training rows; open: raw 64-bit ids",
    )
    min_count: int = Field(
        default=1, ge=1, description="rarer training values share the unknown row"
    )
    max_length: int | None = Field(
        default=None, ge=1, description="sequence: keep that many last ids"
    )
    transform: Literal["none", "log1p"] = Field(
        default="none", description="numeric: applied first"
    )
    normalize: Literal["none", "standard", "minmax"] = Field(
        default="none", description="numeric: by statistics of the training rows"
    )

    @property
    def table_name(self) -> str:
        """Name of the table its ids belong to."""
        return self.table or self.name


class Table(Config):
    """The ids of one table after `prepare`.

    Closed: ids are 0 .. rows-1, id 0 is the out-of-vocabulary row (unknown or rarer than min_count),
    the others are the training values by falling frequency. A missing value is a value of its own.
    Open: ids are any 64-bit integers, and `rows` counts the distinct ones of the training rows.
    """

    name: str
    rows: int
    vocabulary: Literal["closed", "open"]


class Schema(Config):
    """A prepared data set: what a loader delivers and what a model may ask for."""

    columns: tuple[Column, ...]
    tables: tuple[Table, ...]
    rows: dict[str, int] = Field(description="split -> number of rows")
    group: str | None = Field(default=None, description="what the group ids of GAUC stand for")

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric columns, in the order of the dense matrix."""
        return tuple(c.name for c in self.columns if c.kind == "numeric")

    @property
    def fields(self) -> tuple[Column, ...]:
        """Columns that hold ids, in the order of the keys of the KeyedJaggedTensor."""
        return tuple(c for c in self.columns if c.kind != "numeric")


Counts = dict[str, np.ndarray]
"""table -> [rows] int64, how often each id of a closed table occurs in the training rows."""
