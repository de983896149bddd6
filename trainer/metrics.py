"""Exact ranking and calibration metrics in float64.

Shape letters: N rows, G groups.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np


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
    value = float(_group_aucs(label, score, None)[0][0]) if len(label) else math.nan
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
    values, sizes = _group_aucs(label, score, group)
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
    y, x = label.astype(np.float64), logit.astype(np.float64)
    return float(np.mean(np.maximum(x, 0.0) - x * y + np.log1p(np.exp(-np.abs(x)))))


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


def _group_aucs(
    label: np.ndarray, score: np.ndarray, group: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (AUC [G], NaN where a group holds one label; rows [G]) by segment rank sums.

    With R the sum of the ranks of the p positives among p + q rows, ties at their mean rank,
    AUC = (R - p (p + 1) / 2) / (p q).
    """
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} predictions are NaN")
    order = np.argsort(score) if group is None else np.lexsort((score, group))
    score, positive = score[order], label[order] > 0
    new_group = np.zeros(len(order), dtype=bool)
    new_group[:1] = True
    if group is not None:
        sorted_group = group[order]
        new_group[1:] = sorted_group[1:] != sorted_group[:-1]
    new_value = new_group.copy()
    new_value[1:] |= score[1:] != score[:-1]

    starts = np.flatnonzero(new_group)
    sizes = np.diff(starts, append=len(order))
    runs = np.flatnonzero(new_value)
    lengths = np.diff(runs, append=len(order))
    mean_rank = np.repeat(runs + (lengths + 1) / 2, lengths) - np.repeat(starts, sizes)

    p = np.add.reduceat(positive.astype(np.float64), starts) if len(starts) else np.zeros(0)
    rank_sum = np.add.reduceat(np.where(positive, mean_rank, 0.0), starts) if len(starts) else p
    pairs = p * (sizes - p)
    wins = rank_sum - p * (p + 1) / 2
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1.0), np.nan), sizes
