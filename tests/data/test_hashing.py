from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import xxhash

from data.hashing import MISSING, string_keys

# Values of the published XXH64 algorithm, seed 0, read as signed integers; they must never change.
GOLDEN = {
    "": 0xEF46DB3751D8E999,
    "a": 0xD24EC4F1A98C6E5B,
    "abc": 0x44BC2CF5AD770999,
}


def test_golden_values():
    expected = np.array(list(GOLDEN.values()), np.uint64).view(np.int64)
    assert string_keys(list(GOLDEN)).tolist() == expected.tolist()
    assert MISSING == -30796717039906407


def test_repeats_order_and_nulls():
    values = ["b", None, "ä", "b", "7", None]
    keys = string_keys(pl.Series(values, dtype=pl.String))
    assert keys.dtype == np.int64
    plain = [
        MISSING if v is None else np.uint64(xxhash.xxh64_intdigest(v.encode())).view(np.int64)
        for v in values
    ]
    assert keys.tolist() == [int(key) for key in plain]
    assert keys[4] != 7


@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_nothing_to_hash(values):
    assert string_keys(values).tolist() == [MISSING] * len(values)


def test_numbers_are_refused():
    with pytest.raises(TypeError, match="Int64"):
        string_keys(pl.Series([1, 2]))
