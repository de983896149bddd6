"""AUC and logloss of the planted probabilities: the best any model can reach in expectation.

Shape letters: n rows of one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

Pieces = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Starts a stream of (probability [n] float64, label [n])."""

SORTED_AT_ONCE = 2**22


def bayes(pieces: Pieces, rows: int) -> dict[str, float | None]:
    """Return AUC (None for a single class) and logloss of `rows` rows, computed in float64."""
    loss = 0.0
    for probability, label in pieces():
        hit = np.where(label > 0, probability, 1 - probability)
        loss -= float(np.log(np.maximum(hit, np.finfo(np.float64).tiny)).sum())
    return {"auc": auc(pieces, rows), "logloss": loss / rows}


def auc(pieces: Pieces, rows: int) -> float | None:
    """Return the area under the ROC curve by rank sums, ties averaged; None for a single class.

    The rows are ranked in ranges of probability, one a pass over the stream, so that memory is
    bounded at any number of rows.
    """
    parts = -(-rows // SORTED_AT_ONCE)
    sample = next(probability for probability, _ in pieces() if len(probability))
    edges = np.quantile(sample, np.arange(1, parts) / parts)
    area, positives, negatives = 0.0, 0, 0
    for low, high in pairwise([-np.inf, *edges, np.inf]):
        selected = [(p, y > 0) for p, y in _between(pieces, low, high)]
        probability, label = (np.concatenate(arrays) for arrays in zip(*selected, strict=True))
        wins, above, below = _rank_sum(probability, label)
        area += wins + above * negatives
        positives, negatives = positives + above, negatives + below
    return area / (positives * negatives) if positives and negatives else None


def _between(pieces: Pieces, low: float, high: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for probability, label in pieces():
        inside = (probability >= low) & (probability < high)
        yield probability[inside], label[inside]


def _rank_sum(probability: np.ndarray, label: np.ndarray) -> tuple[float, int, int]:
    """Return the pairs won by a positive (ties count half), and the numbers of both classes."""
    _, tie, size = np.unique(probability, return_inverse=True, return_counts=True)
    rank = np.cumsum(size) - (size - 1) / 2
    positives = int(label.sum())
    wins = float(rank[tie][label].sum()) - positives * (positives + 1) / 2
    return wins, positives, len(label) - positives
