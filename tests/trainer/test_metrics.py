"""Metrics against scikit-learn and against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from trainer import metrics


def rows(seed: int, count: int = 400, levels: int = 15) -> tuple[np.ndarray, ...]:
    """Labels, coarse scores (many ties) and groups, some of one class."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, count).astype(np.float32) / levels
    label = (rng.random(count) < 0.2 + 0.6 * score).astype(np.float32)
    return label, score, rng.integers(0, 60, count)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_auc_with_ties_equals_scikit_learn(seed: int, levels: int) -> None:
    label, score, _ = rows(seed, levels=levels)
    assert metrics.auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_auc_by_hand() -> None:
    label = np.array([0.0, 1.0, 0.0, 1.0])
    assert metrics.auc(label, np.array([0.1, 0.4, 0.35, 0.8])) == 1.0
    assert metrics.auc(label, np.array([0.1, 0.35, 0.35, 0.2])) == (1 + 0.5 + 1 + 0) / 4
    assert metrics.auc(label, np.zeros(4)) == 0.5
    assert metrics.auc(label, np.array([9.0, 1.0, 8.0, 2.0])) == 0.0


@pytest.mark.parametrize("label", [np.ones(3), np.zeros(3), np.zeros(0)])
def test_auc_of_one_class_is_nan_and_warns(label: np.ndarray) -> None:
    with pytest.warns(RuntimeWarning, match="AUC is undefined"):
        assert math.isnan(metrics.auc(label, np.arange(len(label)) / 3))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_gauc_equals_a_loop_over_groups(seed: int) -> None:
    label, score, group = rows(seed)
    total = weight = dropped = dropped_rows = 0
    for one in np.unique(group):
        inside = group == one
        if len(set(label[inside])) < 2:
            dropped, dropped_rows = dropped + 1, dropped_rows + int(inside.sum())
            continue
        total += inside.sum() * roc_auc_score(label[inside], score[inside])
        weight += inside.sum()
    found = metrics.gauc(label, score, group)
    assert found.value == pytest.approx(total / weight, abs=1e-12)
    assert (found.dropped_groups, found.dropped_rows) == (dropped, dropped_rows)
    assert found.groups == len(np.unique(group)) - dropped


def test_gauc_of_one_class_groups_alone_is_nan() -> None:
    found = metrics.gauc(np.array([1.0, 1.0, 0.0]), np.arange(3.0), np.array([7, 7, 8]))
    assert math.isnan(found.value)
    assert (found.groups, found.dropped_groups, found.dropped_rows) == (0, 2, 3)


def test_gauc_of_pairs_is_the_share_of_wins() -> None:
    label = np.array([1.0, 0.0] * 4)
    score = np.array([2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 5.0, 4.0])
    assert metrics.gauc(label, score, np.repeat(np.arange(4), 2)).value == (1 + 0 + 0.5 + 1) / 4


def test_auc_does_not_depend_on_row_order_or_scale() -> None:
    label, score, group = rows(3)
    order = np.random.default_rng(0).permutation(len(label))
    assert metrics.auc(label, score) == metrics.auc(label[order], 100 * score[order] - 7)
    one = metrics.gauc(label, score, group)
    assert one == metrics.gauc(label[order], score[order], group[order])


def pairs_won(label: np.ndarray, score: np.ndarray) -> tuple[int, int]:
    """Twice the pairs that a positive wins, ties once, and twice all pairs, in Python's integers."""
    up, down = score[label > 0, None], score[None, label == 0]
    return 2 * int((up > down).sum()) + int((up == down).sum()), 2 * up.size * down.size


SIGNS = np.array([-np.inf, -3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.5, 3e38, np.inf])
SCORES = {
    "float32": SIGNS.astype(np.float32),
    "float64": SIGNS,
    "half precision": np.arange(-5, 5, dtype=np.float16) / 3,
    "closer than float32": 1 + np.arange(10) * 2.0**-40,
    "beyond float32": np.array([-1e300, -1e299, 0, 1e-300, 2e-300, 1e299, 1e300, 7, 8, 9]),
    "integers": np.arange(-5, 5) * (2**40 + 1),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_any_size_are_counted_exactly(name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        score = rng.choice(SCORES[name], 60)
        label = (rng.random(60) < 0.4).astype(np.float32)
        won, pairs = pairs_won(label, score)
        assert metrics.auc(label, score) == won / pairs
        by_group = metrics.gauc(label, score, np.full(60, 3))
        assert by_group.value == pytest.approx(won / pairs, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_group_ids_of_any_size_give_the_same(dtype: type) -> None:
    label, score, group = rows(7)
    ids = np.random.default_rng(0).integers(0, 2**63, 60).view(np.uint64)
    ids[:30] += np.uint64(2**63)
    wide = ids.astype(dtype)
    assert len(np.unique(wide)) == 60
    found = metrics.gauc(label, score, wide[group])
    expected = metrics.gauc(label, score, group)
    assert found.value == pytest.approx(expected.value, abs=1e-15)
    assert (found.groups, found.dropped_rows) == (expected.groups, expected.dropped_rows)


def test_gauc_of_nothing() -> None:
    found = metrics.gauc(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    assert math.isnan(found.value)
    assert (found.groups, found.dropped_groups, found.dropped_rows) == (0, 0, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_logloss_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 3, 200)
    label = (rng.random(200) < 0.4).astype(np.float64)
    expected = log_loss(label, 1 / (1 + np.exp(-logit)), labels=[0, 1])
    assert metrics.logloss(label, logit) == pytest.approx(expected, rel=1e-12)


def test_logloss_of_sure_predictions_is_exact() -> None:
    label = np.array([1.0, 0.0])
    assert metrics.logloss(label, np.array([2000.0, -2000.0])) == 0.0
    assert metrics.logloss(label, np.array([-2000.0, 2000.0])) == 2000.0
    assert metrics.logloss(label, np.zeros(2)) == pytest.approx(math.log(2))


def test_calibration_is_mean_prediction_over_mean_label() -> None:
    label = np.array([1.0, 0.0, 0.0, 0.0])
    assert metrics.calibration(label, np.full(4, -math.log(3))) == pytest.approx(1.0)
    assert metrics.calibration(label, np.zeros(4)) == pytest.approx(2.0)
    assert math.isnan(metrics.calibration(np.zeros(4), np.zeros(4)))


def test_nan_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 predictions are NaN"):
        metrics.evaluate(np.array([0.0, 1.0]), np.array([0.0, math.nan]))


def test_evaluate_names_gauc_only_with_groups() -> None:
    label, score, group = rows(5)
    assert metrics.evaluate(label, score).keys() == {"auc", "logloss", "calibration", "rows"}
    grouped = metrics.evaluate(label, score, group)
    assert grouped["gauc"] == metrics.gauc(label, score, group).value
    assert grouped["gauc_dropped_rows"] > 0
