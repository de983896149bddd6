from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from data.bayes import auc, bayes
from data.hashing import MISSING
from data.numeric import Statistics
from data.vocabulary import Dictionary, Lookup, by_frequency, count_keys

keys = st.integers(-3, 3) | st.sampled_from([MISSING, -(2**63), 2**63 - 1])
pieces = st.lists(st.lists(keys, max_size=12), max_size=8)


@given(pieces=pieces)
def test_count_keys(pieces):
    found, counts = count_keys(np.array(piece, np.int64) for piece in pieces)
    expected = Counter(key for piece in pieces for key in piece)
    assert found.tolist() == sorted(expected)
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == expected


@given(pieces=pieces, min_count=st.integers(1, 4), asked=st.lists(keys))
def test_dictionary(pieces, min_count, asked):
    counted = count_keys(np.array(piece, np.int64) for piece in pieces)
    kept_keys, kept_counts = by_frequency(counted, min_count)
    counts = Counter(key for piece in pieces for key in piece)
    kept = [k for k in counts if counts[k] >= min_count or k == MISSING]
    order = sorted(kept, key=lambda k: (-counts[k], k))
    assert kept_keys[1:].tolist() == order
    rare = counts.total() - sum(counts[k] for k in kept)
    assert kept_counts.tolist() == [rare, *(counts[k] for k in order)]
    ids = {key: 1 + i for i, key in enumerate(order)}
    got = Dictionary(kept_keys).ids(np.array(asked, np.int64))
    assert got.tolist() == [ids.get(key, 0) for key in asked]


@pytest.mark.parametrize("shift", [0, 13, 40, 51])
@pytest.mark.parametrize("count", [0, 1, 2, 700, 4096])
def test_lookup_of_keys_that_look_alike(count, shift):
    """Neighbours, and multiples of powers of two: what a weak hash would put into a few slots."""
    table = np.arange(-(count // 2), count - count // 2) << shift
    asked = np.arange(-3000, 3000) << shift
    lookup = Lookup(table)
    places = {key: place for place, key in enumerate(table.tolist())}
    assert lookup.find(asked).tolist() == [places.get(key, -1) for key in asked.tolist()]
    assert lookup.find(asked[:0]).tolist() == []


def test_counting_many_pieces_of_a_growing_set():
    random = np.random.default_rng(4)
    pieces = [random.integers(0, 30 * (1 + at), 500) for at in range(40)]
    found, counts = count_keys(iter(pieces))
    expected = np.unique(np.concatenate(pieces), return_counts=True)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(counts, expected[1])


def test_statistics_of_a_stream():
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    values[::7] = np.nan
    got = Statistics.of(np.split(values, [3, 3, 500]))
    assert got.count == np.isfinite(values).sum()
    assert got.mean == pytest.approx(np.nanmean(values), rel=1e-14)
    assert got.std == pytest.approx(np.nanstd(values), rel=1e-9)
    assert (got.min, got.max) == (np.nanmin(values), np.nanmax(values))
    assert Statistics.of([np.full(3, np.nan)]) == Statistics()


@pytest.mark.parametrize("at_once", [10**6, 50])
@pytest.mark.parametrize("decimals", [1, 9])
def test_bayes_against_scikit_learn(monkeypatch, at_once, decimals):
    monkeypatch.setattr("data.bayes.SORTED_AT_ONCE", at_once)
    random = np.random.default_rng(1)
    probability = random.random(500).round(decimals).clip(0.01, 0.99)
    label = (random.random(500) < probability).astype(np.uint8)

    def stream():
        return zip(np.split(probability, [0, 9, 300]), np.split(label, [0, 9, 300]), strict=True)

    got = bayes(stream, 500)
    assert got["auc"] == pytest.approx(roc_auc_score(label, probability), abs=1e-12)
    assert got["logloss"] == pytest.approx(log_loss(label, probability), abs=1e-12)
    ones = [(probability, np.ones(500, np.uint8))]
    assert auc(lambda: iter(ones), 500) is None
