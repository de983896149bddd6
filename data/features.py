"""From cells of raw rows to keys and numbers, by declared columns: what preparing and predicting share.

Shape letters: n rows of a block, m ids of a jagged column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import polars as pl

from data.hashing import MISSING
from data.rows import Numbers, Rows
from data.schema import Column


@dataclass
class Features:
    """What the cells of n rows say.

    Attributes:
        numeric: column -> [n] float64, NaN where missing.
        single: categorical column -> [n] int64 raw key of the value. A number is its own key, a
            string is `data.hashing.string_keys` of it, a missing value is `data.hashing.MISSING`.
        jagged: multi or sequence column -> (values [m] int64 raw keys, lengths [n] int64).
    """

    numeric: dict[str, np.ndarray] = field(default_factory=dict)
    single: dict[str, np.ndarray] = field(default_factory=dict)
    jagged: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def read_features(rows: Numbers, columns: Iterable[Column]) -> Features:
    """Read declared columns; sequences in full length.

    Args:
        rows: `data.rows.Rows`; `data.cells.Cells` will do where `only_numbers(columns)`.
        columns: what to read.
    """
    found = Features()
    for column in columns:
        if column.kind == "numeric":
            found.numeric[column.name] = _numbers(rows, column)
        elif column.kind == "categorical":
            found.single[column.name] = keys(rows, column)
        else:
            found.jagged[column.name] = cast(Rows, rows).lists(
                column.cell_name, column.separator, partial(keys, column=column)
            )
    return found


def only_numbers(columns: Iterable[Column]) -> bool:
    """Return whether every cell is one number, so that `data.text.read_numbers` can read them."""
    return all(
        column.kind in ("numeric", "categorical") and column.type in ("integer", "hex", "logarithm")
        for column in columns
    )


def keys(rows: Numbers, column: Column) -> np.ndarray:
    """Return the raw keys [n] of a column of one id."""
    name, kind = column.cell_name, column.type
    if kind == "hex":
        return rows.hexadecimals(name)
    if kind == "logarithm":
        return logarithm(rows.integers(name))
    rows = cast(Rows, rows)
    if kind in ("hour", "weekday"):
        time = hours(rows, name)
        part = time.dt.hour() if kind == "hour" else time.dt.weekday()
        return part.cast(pl.Int64).fill_null(MISSING).to_numpy()
    if kind == "integer" or (kind is None and rows.frame[name].dtype.is_numeric()):
        return rows.integers(name)
    return rows.strings(name)


def logarithm(integers: np.ndarray) -> np.ndarray:
    """Return a category of each integer: floor(ln(v)^2) + 3 above 2, and the others as they are.

    The transform of the Kaggle winners (Juan et al., "3 Idiots", 2014), who keep small values apart
    from the logarithms: hence the 3.
    """
    logs = np.log(np.maximum(integers, 1).astype(np.float64))
    return np.where(integers > 2, np.floor(logs**2).astype(np.int64) + 3, integers)


def hours(rows: Rows, name: str) -> pl.Series:
    """Return [n] times of cells YYMMDDHH."""
    hour = rows.frame[name].cast(pl.String)
    # Polars reads an hour only beside its minute.
    time = (hour + "00").str.to_datetime("%y%m%d%H%M", strict=False)
    wrong = time.is_null() | (hour.str.len_bytes() != 8).fill_null(True)
    rows.expect(name, wrong, "an hour YYMMDDHH")
    return time


def last_ids(
    values: np.ndarray, lengths: np.ndarray, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (values [m'], lengths [n]) with only the last `most` ids of each row; None keeps all."""
    if most is None or lengths.max(initial=0) <= most:
        return values, lengths
    ends = np.cumsum(lengths)
    from_end = np.repeat(ends, lengths) - np.arange(len(values))
    return values[from_end <= most], np.minimum(lengths, most)


def _numbers(rows: Numbers, column: Column) -> np.ndarray:
    if column.type != "integer":
        return cast(Rows, rows).numbers(column.cell_name)
    integers = rows.integers(column.cell_name)
    return np.where(integers == MISSING, np.nan, integers)
