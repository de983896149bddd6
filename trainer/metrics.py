"""Exact ranking and calibration metrics in float64.

Shape letters: N rows, G groups.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import polars as pl

_SCORE_BITS = 32
"""Of a sort key; a label takes 1 bit below them, a group the 31 above."""


def sign_of(metric: str) -> int:
    """Return 1 for a metric of which more is better, -1 for one of which less is."""
    return -1 if metric == "logloss" else 1


@dataclass(frozen=True)
class GroupAUC:
    """AUC within groups, weighted by rows, over the groups that hold both labels.

    Attributes:
        value: the weighted mean, NaN if no group holds both labels.
        groups: groups that count.
        dropped_groups: groups of one label, which are in neither numerator nor denominator.
        dropped_rows: their rows.
    """

    value: float
    groups: int
    dropped_groups: int
    dropped_rows: int


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve; tied scores count one half.

    Args:
        label: [N] 0 or 1.
        score: [N] any increasing function of the predicted probability.

    Returns:
        P(score of a positive > score of a negative) + P(tie) / 2, or NaN, with a warning, if there
        is only one label.

    Raises:
        ValueError: a score is NaN.
    """
    value = float(group_aucs(label, score, None)[0][0]) if len(label) else math.nan
    if math.isnan(value):
        only = f"all {len(label)} labels are {label[0]:g}" if len(label) else "there are no rows"
        warnings.warn(f"AUC is undefined: {only}", RuntimeWarning, stacklevel=2)
    return value


def gauc(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> GroupAUC:
    """Return sum_g n_g AUC_g / sum_g n_g over the groups g that hold both labels.

    Args:
        label: [N] 0 or 1.
        score: [N] any increasing function of the predicted probability.
        group: [N] integer group ids, in any order.

    Raises:
        ValueError: a score is NaN.
    """
    values, sizes = group_aucs(label, score, group)
    counts = ~np.isnan(values)
    rows = sizes[counts].sum()
    value = float((values[counts] * sizes[counts]).sum() / rows) if rows else math.nan
    return GroupAUC(value, int(counts.sum()), int((~counts).sum()), int(sizes[~counts].sum()))


def logloss(label: np.ndarray, logit: np.ndarray) -> float:
    """Return the mean binary cross-entropy, from logits so that sure predictions stay exact.

    Args:
        label: [N] 0 or 1.
        logit: [N] log-odds.
    """
    return float(np.mean(losses(label, logit)))


def losses(label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """Return the binary cross-entropy of each row, [N] float64."""
    y, x = label.astype(np.float64), logit.astype(np.float64)
    return np.maximum(x, 0.0) - x * y + np.log1p(np.exp(-np.abs(x)))


def calibration(label: np.ndarray, logit: np.ndarray) -> float:
    """Return mean predicted probability / mean label: 1 is calibrated, NaN without positives.

    Args:
        label: [N] 0 or 1.
        logit: [N] log-odds.
    """
    positives = float(label.sum(dtype=np.float64))
    probability = np.exp(-np.logaddexp(0.0, -logit.astype(np.float64)))
    return float(probability.sum()) / positives if positives else math.nan


def evaluate(
    label: np.ndarray, logit: np.ndarray, group: np.ndarray | None = None
) -> dict[str, float]:
    """Return every metric by name: auc, logloss, calibration, rows, and gauc with what it dropped.

    Args:
        label: [N] 0 or 1.
        logit: [N] log-odds.
        group: [N] group ids, or None for no gauc.

    Raises:
        ValueError: a logit is NaN.
    """
    metrics: dict[str, float] = {
        "auc": auc(label, logit),
        "logloss": logloss(label, logit),
        "calibration": calibration(label, logit),
        "rows": len(label),
    }
    if group is not None:
        by_group = gauc(label, logit, group)
        metrics |= {
            "gauc": by_group.value,
            "gauc_groups": by_group.groups,
            "gauc_dropped_groups": by_group.dropped_groups,
            "gauc_dropped_rows": by_group.dropped_rows,
        }
    return metrics


def group_aucs(
    label: np.ndarray, score: np.ndarray, group: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (AUC [G], NaN where a group holds one label; rows [G]), by rising group.

    Rows are sorted as integers that hold group, score and label, from high bits to low. In this order
    a positive has below it every negative of its group with a smaller score or the same one; ties
    count one half, so AUC = (negatives below positives - tied pairs / 2) / (p q). All counts are
    integers: the division is the only rounding.
    """
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} predictions are NaN")
    keys = _score_codes(score) << np.uint64(1) | (label > 0)
    if group is not None:
        keys |= _group_codes(group) << np.uint64(_SCORE_BITS + 1)
    keys.sort()
    groups = keys >> np.uint64(_SCORE_BITS + 1)
    starts = np.flatnonzero(np.diff(groups, prepend=~groups[:1]))
    sizes = np.diff(starts, append=len(keys))

    positives = np.flatnonzero(keys & np.uint64(1))
    before = np.searchsorted(positives, starts)
    p = np.diff(before, append=len(positives))
    below = _sums(positives - np.arange(len(positives)), before) - p * (starts - before)
    twice_wins = 2 * below - _tied_pairs(keys, starts)
    pairs = p * (sizes - p)
    return np.where(pairs > 0, twice_wins / np.where(pairs > 0, 2 * pairs, 1), np.nan), sizes


def _tied_pairs(keys: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return [G] pairs of a positive and a negative of one score, of sorted keys [N]."""
    last_negative = np.flatnonzero((keys[1:] ^ keys[:-1]) == 1)
    first = np.searchsorted(keys, keys[last_negative], side="left")
    end = np.searchsorted(keys, keys[last_negative] + np.uint64(1), side="right")
    pairs = (last_negative + 1 - first) * (end - last_negative - 1)
    return _sums(pairs, np.searchsorted(last_negative, starts))


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sums of the segments of integers that begin at `starts`; they may be empty."""
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(total[starts], append=total[-1])


def _score_codes(score: np.ndarray) -> np.ndarray:
    """Return [N] uint64 below 2**32 in the order of the scores, equal where they are equal."""
    with np.errstate(over="ignore"):
        single = score.astype(np.float32, copy=False)
    if score.dtype.itemsize > 4 and (single != score).any():
        return np.unique(score, return_inverse=True)[1].astype(np.uint64)
    bits = (single + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    # Floats are sign and magnitude: flip all bits of the negative ones, the sign of the others.
    return (bits ^ (bits >> 31 | np.int32(-(2**31)))).view(np.uint32).astype(np.uint64)


def _group_codes(group: np.ndarray) -> np.ndarray:
    """Return [N] uint64 below 2**31, another for each group."""
    if len(group) and int(group.max()) - int(group.min()) < 2 ** (63 - _SCORE_BITS):
        return (group - group.min()).astype(np.uint64)
    return pl.Series(group).rank("dense").to_numpy().astype(np.uint64)
