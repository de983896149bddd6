"""Hashing of 64-bit ids: vectorised, salted, the same in every process, platform and release.

    row = (mix64(id + salt) >> 32) * rows >> 32          salt = xxh64(name, seed = probe)

mix64 is the finaliser of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
Generators, OOPSLA 2014) in wrapping 64-bit arithmetic. A salt depends on the *name* of what is
hashed, so adding a feature moves no other feature's rows, and on nothing random, so hashes do not
change with the training seed. The golden vectors in the tests pin all of it.
"""

from __future__ import annotations

import xxhash
from torch import Tensor

MAX_ROWS = 2**31 - 1
"""Largest table that a hash can address: 32 bits of hash are scaled by the number of rows."""

_STEP1, _STEP2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64's constants as signed int64


def salt(name: str, probe: int = 0) -> int:
    """Return the int64 salt of the probe-th hash of a named table."""
    value = xxhash.xxh64_intdigest(name.encode(), seed=probe)
    return value - 2**64 if value >= 2**63 else value


def mix64(x: Tensor) -> Tensor:
    """Return the splitmix64 finaliser of int64 values, elementwise, any shape."""
    x = (x ^ _shift(x, 30)) * _STEP1
    x = (x ^ _shift(x, 27)) * _STEP2
    return x ^ _shift(x, 31)


def hash_rows(ids: Tensor, salts: Tensor, rows: Tensor) -> Tensor:
    """Return a row in [0, rows) for every id.

    Args:
        ids: int64, any value.
        salts: int64, broadcast against ids.
        rows: int64 in 1 .. MAX_ROWS, broadcast against ids.
    """
    return _shift(_shift(mix64(ids + salts), 32) * rows, 32)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right as if the int64 were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
