"""What a data set holds: its columns before `prepare` (Column) and after it (Schema)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from embtables.registry import Config

SPLITS = ("train", "valid", "test")


class Column(Config):
    """One declared column of a source: what its cells hold, and what they become.

    A numeric column becomes one float32 of the dense matrix; the others become ids.
    """

    name: str
    kind: Literal["numeric", "categorical", "multi", "sequence"]
    cell: str | None = Field(default=None, description="its name in the file; default: the same")
    type: Literal["string", "integer", "hex", "logarithm", "hour", "weekday"] | None = Field(
        default=None,
        description="what an id is; default: as in the file, in text a string. logarithm: "
        "floor(ln(v)^2) of an integer; hour, weekday: those of an hour YYMMDDHH. "
        "numeric: integer, if nothing else may come",
    )
    separator: str | None = Field(
        default=None, description="multi, sequence: stands between the values of a cell of text"
    )
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

    @property
    def cell_name(self) -> str:
        """Name of the cell it is read from."""
        return self.cell or self.name

    @model_validator(mode="after")
    def _options_fit(self) -> Column:
        jagged = self.kind in ("multi", "sequence")
        if self.separator is not None and not (jagged and self.separator):
            raise ValueError(
                f"column {self.name!r}: only a multi or sequence column has a separator"
            )
        if self.kind == "numeric" and self.type not in (None, "integer"):
            raise ValueError(f"column {self.name!r}: a numeric column has no type but integer")
        return self


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
