"""Which split a row belongs to.

Shape letters: N rows of the input, n rows of one window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.arrays import Spill, windows
from data.source import SplitConfig

TRAIN, VALID, TEST = range(3)


def assign(split: SplitConfig, spill: Spill) -> Iterator[np.ndarray]:
    """Yield the split [n] uint8 of all rows by window.

    random: by a hash of seed and row number. last_day: the rows of the largest day, and
    last_seventh: the last N // 7 rows, are held out; their first half validates, the second tests.

    Raises:
        ValueError: the source has no days or fixed split, or all rows fall on one day.
    """
    if split.kind == "fixed":
        return _given(spill)
    if split.kind == "random":
        return _random(split, spill.rows)
    if split.kind == "last_seventh":
        return _halves(_after(spill.rows - spill.rows // 7, spill.rows), spill.rows // 7)
    return _last_day(spill)


def _given(spill: Spill) -> Iterator[np.ndarray]:
    if not spill.has("split"):
        raise ValueError(
            "data.split.kind=fixed, but this source does not fix a split. "
            "Choose random, last_day or last_seventh"
        )
    return spill.stream("split")


def _random(split: SplitConfig, rows: int) -> Iterator[np.ndarray]:
    edges = np.cumsum(split.parts)[:2] / sum(split.parts)
    for start, stop in windows(rows):
        drawn = uniform(split.seed, start, stop)
        yield np.searchsorted(edges, drawn, side="right").astype(np.uint8)


def uniform(seed: int, start: int, stop: int) -> np.ndarray:
    """Return numbers in [0, 1) for the rows start .. stop, a hash of seed and row number alone."""
    salt = splitmix64(np.array([seed % 2**64], np.uint64))
    bits = splitmix64(np.arange(start, stop, dtype=np.uint64) ^ salt)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _last_day(spill: Spill) -> Iterator[np.ndarray]:
    if not spill.has("day"):
        raise ValueError(
            "data.split.kind=last_day, but this source has no days. "
            "Choose random or last_seventh, or name the column of days"
        )
    last = max(int(days.max()) for days in spill.stream("day"))
    held = sum(int((days == last).sum()) for days in spill.stream("day"))
    if held == spill.rows:
        raise ValueError(
            f"data.split.kind=last_day, but all {held:,} rows are of one day: none is left to train "
            "on. Choose random or last_seventh, or give the files of more days"
        )
    return _halves((days == last for days in spill.stream("day")), held)


def _after(first: int, rows: int) -> Iterator[np.ndarray]:
    for start, stop in windows(rows):
        yield np.arange(start, stop) >= first


def _halves(held: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Cut the `count` rows held out in half, in the order of the rows."""
    seen = 0
    for mask in held:
        rank = seen + np.cumsum(mask)
        later = np.where(rank <= count // 2, VALID, TEST)
        yield np.where(mask, later, TRAIN).astype(np.uint8)
        seen = int(rank[-1])


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Return the SplitMix64 output function of each uint64 (Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
