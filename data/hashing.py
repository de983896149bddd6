"""Keys of raw values: one signed 64-bit integer a value, the same on every machine and release.

An integer is its own key; a string's key is XXH64 of its UTF-8 bytes with seed 0, its 64 bits read
as a signed integer; a missing value is `MISSING`. So the string "7" and the integer 7 have
different keys, and a column is read as one or the other, never both. Keys are stored in prepared
data and in packed tables: nothing here may ever change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import xxhash

MISSING = -int.from_bytes(b"missing", "big")
"""Key of a missing value: not 0, -1 or an end of the int64 range, which programs reserve."""

_SEED = 0

_FEW = 256
"""Below so many strings to look for equal ones takes longer than to hash them all."""


def string_keys(values: Sequence[str | None] | pl.Series) -> np.ndarray:
    """Return the [n] int64 keys of n strings; None (null) becomes `MISSING`.

    Each distinct string is hashed once, so that repeated values cost one dictionary look-up.

    Raises:
        TypeError: the values are not strings (a number hashed as text would get another key).
    """
    series = values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
    if series.dtype != pl.String:
        raise TypeError(f"string_keys needs strings, got {series.dtype}")
    if len(series) < _FEW:
        return _hashed(series)
    distinct = series.drop_nulls().unique()
    keys = pl.Series(_hashed(distinct))
    found = series.replace_strict(distinct, keys, default=None, return_dtype=pl.Int64)
    return found.fill_null(MISSING).to_numpy()


def _hashed(series: pl.Series) -> np.ndarray:
    missing = MISSING % 2**64
    hashed = (
        missing if text is None else xxhash.xxh64_intdigest(text.encode(), _SEED)
        for text in series.to_list()
    )
    return np.fromiter(hashed, np.uint64, len(series)).view(np.int64)
