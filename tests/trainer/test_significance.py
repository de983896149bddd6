"""Paired comparisons against brute force, bootstrap, closed forms, and their own promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer import metrics
from trainer.significance import AUC, GAUC, Difference, Logloss, holm, paired, statistics_of


def sample(
    seed: int, rows: int = 80, levels: int | None = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and the scores of two models that know something of them, on few levels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    label[:4] = 0, 0, 1, 1
    common = label + rng.normal(size=rows)
    a, b = (common + rng.normal(size=rows) for _ in range(2))
    if levels is not None:
        a, b = np.round(a * levels / 4), np.round(b * levels / 4)
    return label, a, b


def delong(label: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return difference and standard error from all pairs, as DeLong et al. (1988) write it."""
    kernels = []
    for score in (a, b):
        x, y = score[label == 1][:, None], score[label == 0][None, :]
        kernels.append((x > y) + 0.5 * (x == y))
    auc = [kernel.mean() for kernel in kernels]
    s10 = np.cov([kernel.mean(1) for kernel in kernels]) / (label == 1).sum()
    s01 = np.cov([kernel.mean(0) for kernel in kernels]) / (label == 0).sum()
    s = s10 + s01
    return auc[0] - auc[1], (s[0, 0] + s[1, 1] - 2 * s[0, 1]) ** 0.5


@given(st.integers(0, 10**6), st.sampled_from([2, 6, None]))
def test_auc_is_delong_of_all_pairs(seed: int, levels: int | None) -> None:
    label, a, b = sample(seed, levels=levels)
    found = AUC(label).compare([a], [b])
    value, error = delong(label, a, b)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.rows_error == pytest.approx(error, rel=1e-9)
    assert found.value == pytest.approx(metrics.auc(label, a) - metrics.auc(label, b), abs=1e-12)


def test_groups_of_one_row_are_rows() -> None:
    label, a, b = sample(1, rows=3000)
    alone = np.random.default_rng(0).permutation(len(label))
    for kind, tolerance in ((AUC, 2e-3), (Logloss, 1e-9)):
        free = kind(label).compare([a], [b])
        grouped = kind(label, alone).compare([a], [b])
        assert grouped.rows_error == pytest.approx(free.rows_error, rel=tolerance)


@pytest.mark.parametrize("kind", [AUC, Logloss])
def test_rows_that_come_k_times_tell_once(kind: type[AUC | Logloss]) -> None:
    label, a, b = sample(2, rows=500)
    once = kind(label, np.arange(500)).compare([a], [b])
    thrice = [np.tile(column, 3) for column in (label, a, b)]
    found = kind(thrice[0], np.tile(np.arange(500), 3)).compare([thrice[1]], [thrice[2]])
    assert found.rows_error == pytest.approx(once.rows_error)
    naive = kind(thrice[0]).compare([thrice[1]], [thrice[2]])
    assert naive.error == pytest.approx(found.error / 3**0.5, rel=0.01)


def test_logloss_is_a_paired_t_test_of_the_losses() -> None:
    label, a, b = sample(3, rows=400)
    found = Logloss(label).compare([a], [b])
    test: Any = stats.ttest_rel(metrics.losses(label, a), metrics.losses(label, b))
    assert found.value / found.error == pytest.approx(test.statistic)
    assert found.p == pytest.approx(test.pvalue, rel=0.02)  # normal instead of t with 399
    assert found.value == pytest.approx(metrics.logloss(label, a) - metrics.logloss(label, b))


def test_gauc_is_what_a_bootstrap_over_groups_gives() -> None:
    label, a, b = sample(4, rows=3000)
    rng = np.random.default_rng(0)
    group = np.sort(rng.geometric(0.02, 3000))  # of very different sizes
    found = GAUC(label, group).compare([a], [b])
    both = [metrics.gauc(label, score, group).value for score in (a, b)]
    assert found.value == pytest.approx(both[0] - both[1])

    values, sizes = metrics.group_aucs(label, a, group)
    others = metrics.group_aucs(label, b, group)[0]
    mixed = ~np.isnan(values)
    gain, size = (values - others)[mixed], sizes[mixed]
    drawn = rng.integers(0, len(gain), (4000, len(gain)))
    resampled = (gain * size)[drawn].sum(1) / size[drawn].sum(1)
    assert found.error == pytest.approx(resampled.std(), rel=0.1)


def test_the_same_predictions_do_not_differ() -> None:
    label, a, _ = sample(5)
    for statistic in statistics_of(label, np.arange(80) // 20).values():
        found = statistic.compare([a, a], [a, a])
        assert (found.value, found.p, found.interval) == (0, 1, (0, 0))


def test_turning_the_models_round_turns_the_interval_round() -> None:
    label, a, b = sample(6)
    one, other = AUC(label).compare([a], [b]), AUC(label).compare([b], [a])
    assert one.interval == pytest.approx([-bound for bound in reversed(other.interval)])
    assert one.p == pytest.approx(other.p)


def test_seeds_alone_are_a_paired_t_test() -> None:
    differences = [0.0021, 0.0008, 0.0015]
    found = paired(differences)
    test: Any = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_freedom_lies_between_that_of_seeds_and_of_rows() -> None:
    assert Difference(0.1, 3, 0.0, 0.02).freedom == pytest.approx(2)
    assert Difference(0.1, 3, 0.02, 0.02).freedom == pytest.approx(2 * 4)  # Welch, by hand
    assert Difference(0.1, 3, 0.02, 0.0).freedom == math.inf
    assert Difference(0.1, 3, 0.03, 0.04).error == pytest.approx(0.05)


def test_nothing_known_says_nothing() -> None:
    found = paired([0.01])
    assert all(map(math.isnan, (found.error, found.p, *found.interval)))


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, and never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_below_bonferroni(values: list[float]) -> None:
    adjusted = np.array(holm(values))
    assert (np.diff(adjusted[np.argsort(values)]) >= 0).all()
    assert (adjusted >= values).all()
    assert (adjusted <= np.minimum(1, len(values) * np.array(values)) + 1e-15).all()


def test_auc_interval_covers_no_difference_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(600):
        label, a, b = sample(1000 + seed, rows=150, levels=None)
        low, high = AUC(label).compare([a], [b]).interval
        inside += low <= 0 <= high
    assert 0.93 < inside / 600 < 0.97


@pytest.mark.parametrize(("rows_sd", "seeds_sd"), [(1.0, 0.1), (0.1, 1.0), (1.0, 1.0)])
def test_interval_of_rows_and_seeds_covers_the_truth(rows_sd: float, seeds_sd: float) -> None:
    # difference of row r under seed s = truth + row effect + seed effect + what both do together
    rng = np.random.default_rng(0)
    rows, seeds, truth, inside = 100, 3, 0.3, 0
    for _ in range(1000):
        parts = truth + rows_sd * rows**0.5 * rng.normal(size=rows)
        parts = parts + seeds_sd * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, rows))
        error = float(parts.mean(0).std(ddof=1)) / rows**0.5
        low, high = paired(parts.mean(1).tolist(), error).interval
        inside += low <= truth <= high
    assert 0.94 < inside / 1000 < 0.99


def test_undefined_metrics_are_refused_with_their_counts() -> None:
    with pytest.raises(ValueError, match="of 5 rows 5 are positive and 0 negative"):
        AUC(np.ones(5))
    with pytest.raises(ValueError, match="1 of 2 groups hold both labels"):
        GAUC(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="one group"):
        AUC(np.array([0, 1, 0, 1]), np.zeros(4)).error(np.array([0.1, 0.2, 0.3, 0.4]))
