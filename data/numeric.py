"""Numeric columns: the transform, statistics of a stream, and the normalisation by them.

Shape letters: n values of one window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from data.schema import Column


@dataclass
class Statistics:
    """Count, mean, standard deviation and range of the values that are not missing."""

    count: int = 0
    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, pieces: Iterable[np.ndarray]) -> Statistics:
        """Return the statistics of a stream of arrays, NaN left out (Chan et al. 1979)."""
        total, squares = cls(min=np.inf, max=-np.inf), 0.0
        for piece in pieces:
            values = piece[~np.isnan(piece)]
            if len(values) == 0:
                continue
            count, mean = total.count + len(values), float(values.mean())
            shift = mean - total.mean
            squares += float(np.square(values - mean).sum())
            squares += shift**2 * total.count * len(values) / count
            total.mean += shift * len(values) / count
            total.count = count
            total.min = min(total.min, float(values.min()))
            total.max = max(total.max, float(values.max()))
        if total.count == 0:
            return cls()
        total.std = float(np.sqrt(squares / total.count))
        return total

    def as_dict(self) -> dict[str, float]:
        """Return the statistics as plain numbers."""
        return asdict(self)


def transform(column: Column, values: np.ndarray) -> np.ndarray:
    """Return values [n] float64 after the column's transform; NaN stays NaN."""
    return np.log1p(np.maximum(values, 0)) if column.transform == "log1p" else values


def normalize(column: Column, statistics: Statistics, values: np.ndarray) -> np.ndarray:
    """Return transformed values [n] after normalisation; missing becomes 0, constants become 0."""
    if column.normalize == "standard":
        values = (values - statistics.mean) / (statistics.std or 1.0)
    elif column.normalize == "minmax":
        values = (values - statistics.min) / ((statistics.max - statistics.min) or 1.0)
    return np.nan_to_num(values, nan=0.0)
