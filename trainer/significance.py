"""Whether one model is better than another, or chance: paired comparisons on the same rows.

Chance comes from two sides. Other test rows would have given other numbers, and so would other seeds of
training. With A and B trained with the same S seeds, and measured on the same rows,

    D          mean over seeds of metric(A) - metric(B)
    rows       standard error of D over test rows: DeLong's for AUC, that of a mean for logloss, that of
               a ratio for GAUC, each of the differences row by row, averaged over the seeds
    seeds      standard deviation of the S differences / sqrt(S)
    together   sqrt(rows^2 + seeds^2), with a Student t of Satterthwaite's degrees of freedom
               (Biometrics Bulletin 1946): those of the seeds are S - 1, those of the rows without end

Rows and seeds are crossed, and what they do together is counted on both sides: the interval is rather
too wide than too narrow. With one seed it says nothing about another training; where the predictions
are not kept it says nothing about other test rows.

Shape letters: N rows, P positives, Q negatives, G groups, S seeds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import stdtr, stdtrit

from trainer import metrics

LEVEL = 0.95
"""Of all intervals."""


@dataclass(frozen=True)
class Difference:
    """A metric of A minus that of B.

    Attributes:
        value: mean over seeds.
        seeds: S.
        rows_error: standard error over test rows, None if predictions are not known.
        seeds_error: standard error over seeds, None for one seed.
    """

    value: float
    seeds: int
    rows_error: float | None
    seeds_error: float | None

    @property
    def error(self) -> float:
        """Standard error of both sources, NaN if neither is known."""
        known = [e for e in (self.rows_error, self.seeds_error) if e is not None]
        return math.hypot(*known) if known else math.nan

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the Student t."""
        if not self.seeds_error:
            return math.inf
        return (self.seeds - 1) * (self.error / self.seeds_error) ** 4

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        half = float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference, NaN if no error is known."""
        if self.error == 0:
            return float(self.value == 0)
        return 2 * float(stdtr(self.freedom, -abs(self.value) / self.error))


def paired(differences: Sequence[float], rows_error: float | None = None) -> Difference:
    """Return the mean of the differences [S] of runs with the same seed, and its errors."""
    count = len(differences)
    seeds = float(np.std(differences, ddof=1)) / count**0.5 if count > 1 else None
    return Difference(float(np.mean(differences)), count, rows_error, seeds)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979).

    Calling all differences real whose adjusted p is below 0.05 calls some noise real in at most 5 %
    of such reports.
    """
    order = np.argsort(values)
    ordered = np.asarray(values, np.float64)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(ordered), 1)
    return adjusted.tolist()


class Statistic(ABC):
    """A metric of predictions on rows, as the sum of parts whose differences have a spread.

    Args:
        label: [N] 0 or 1.
        group: [N] group ids: rows of one group (one user) are not independent, so groups are what
            chance draws. None: rows are.

    Raises:
        ValueError: the metric is undefined on these rows.
    """

    def __init__(self, label: np.ndarray, group: np.ndarray | None = None) -> None:
        self.label, self.group = label.astype(bool), group

    @abstractmethod
    def parts(self, score: np.ndarray) -> np.ndarray:
        """Return the parts of a model's scores [N] (logits)."""

    @abstractmethod
    def value(self, parts: np.ndarray) -> float:
        """Return the metric."""

    @abstractmethod
    def error(self, parts: np.ndarray) -> float:
        """Return the standard error of the value of a difference of parts."""

    def compare(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Difference:
        """Return the difference of scores [N] of models A and B, each of S seeds."""
        parts = [self.parts(x) - self.parts(y) for x, y in zip(a, b, strict=True)]
        return paired([self.value(part) for part in parts], self.error(np.mean(parts, axis=0)))

    def _clustered(self, influence: np.ndarray) -> float:
        """Return the standard error of a sum of influences [N] of rows that come in groups."""
        sums = np.bincount(self._codes, influence)
        if len(sums) < 2:
            raise ValueError("all rows are of one group: chance has nothing to draw from")
        return float((np.square(sums).sum() * len(sums) / (len(sums) - 1)) ** 0.5)

    @cached_property
    def _codes(self) -> np.ndarray:
        assert self.group is not None
        return np.unique(self.group, return_inverse=True)[1]


class AUC(Statistic):
    """Area under the ROC curve, with DeLong's variance (Biometrics 1988) in O(N log N).

    The part of a positive is the share of negatives below it, that of a negative the share of
    positives above it, ties counted one half (Sun and Xu, IEEE Signal Processing Letters 2014, have
    them from midranks). With groups the variance is of their sums (Obuchowski, Biometrics 1997).
    """

    def __init__(self, label: np.ndarray, group: np.ndarray | None = None) -> None:
        super().__init__(label, group)
        self.counts = int(self.label.sum()), int((~self.label).sum())
        if min(self.counts) < 2:
            raise ValueError(
                f"AUC has no interval: of {len(label)} rows {self.counts[0]} are positive and "
                f"{self.counts[1]} negative, and it takes two of each"
            )

    def parts(self, score: np.ndarray) -> np.ndarray:
        """Return [N] shares of the rows of the other label that a row is ranked rightly with."""
        positives, negatives = score[self.label], score[~self.label]
        parts = np.empty(len(score))
        parts[self.label] = _below(positives, negatives)
        parts[~self.label] = 1 - _below(negatives, positives)
        return parts

    def value(self, parts: np.ndarray) -> float:
        """Return the AUC."""
        return float(parts[self.label].mean())

    def error(self, parts: np.ndarray) -> float:
        """Return DeLong's standard error."""
        if self.group is not None:
            weight = np.where(self.label, *(1 / count for count in self.counts))
            return self._clustered((parts - self.value(parts)) * weight)
        variances = [parts[rows].var(ddof=1) / rows.sum() for rows in (self.label, ~self.label)]
        return float(sum(variances) ** 0.5)


def _below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each value the share of the others below it, equal ones counted one half."""
    others = np.sort(others)
    twice = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    return twice / (2 * len(others))


class Logloss(Statistic):
    """Mean binary cross-entropy; its parts are the losses of the rows [N]."""

    def parts(self, score: np.ndarray) -> np.ndarray:
        """Return [N] losses."""
        return metrics.losses(self.label, score)

    def value(self, parts: np.ndarray) -> float:
        """Return the mean."""
        return float(parts.mean())

    def error(self, parts: np.ndarray) -> float:
        """Return the standard error of the mean."""
        rows = len(parts)
        if self.group is not None:
            return self._clustered((parts - parts.mean()) / rows)
        return float(parts.std(ddof=1)) / rows**0.5


class GAUC(Statistic):
    """AUC within groups, weighted by rows; its parts are the AUCs of the groups [G] with both labels.

    The error is that of a ratio of two sums over groups drawn at random (Cochran, Sampling
    Techniques, 1977, section 6.4), what a bootstrap over groups tends to.
    """

    def __init__(self, label: np.ndarray, group: np.ndarray | None = None) -> None:
        super().__init__(label, group)
        assert group is not None
        values, sizes = metrics.group_aucs(label, np.zeros(len(label)), group)
        self._mixed = ~np.isnan(values)
        if self._mixed.sum() < 2:
            raise ValueError(
                f"GAUC has no interval: {self._mixed.sum()} of {len(values)} groups hold both labels, "
                "and it takes two"
            )
        self._weights = sizes[self._mixed] / sizes[self._mixed].sum()

    def parts(self, score: np.ndarray) -> np.ndarray:
        """Return the AUC of each group."""
        assert self.group is not None
        return metrics.group_aucs(self.label, score, self.group)[0][self._mixed]

    def value(self, parts: np.ndarray) -> float:
        """Return the mean weighted by rows."""
        return float(parts @ self._weights)

    def error(self, parts: np.ndarray) -> float:
        """Return the standard error of the weighted mean."""
        spread = self._weights * (parts - self.value(parts))
        return float((np.square(spread).sum() * len(parts) / (len(parts) - 1)) ** 0.5)


def statistics_of(label: np.ndarray, group: np.ndarray | None) -> dict[str, Statistic]:
    """Return metric -> how it is compared on these rows; GAUC where two groups hold both labels.

    Raises:
        ValueError: AUC is undefined on these rows.
    """
    found: dict[str, Statistic] = {"auc": AUC(label, group), "logloss": Logloss(label, group)}
    if group is not None and metrics.gauc(label, np.zeros(len(label)), group).groups > 1:
        found["gauc"] = GAUC(label, group)
    return found
